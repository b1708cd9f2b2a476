"""`mergeflow check`: what model files are, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergeflow.cli import options
from mergeflow.cli.kinds import kind_rows, told_kind
from mergeflow.cli.report import Screen
from mergeflow.cli.text import echo, listed, paint, plural, print_json, table
from mergeflow.errors import IntegrityError, MergeflowError, MissingInput, RecipeError
from mergeflow.tensors import human_bytes

if TYPE_CHECKING:
    from mergeflow.build.health import Finding, Health
    from mergeflow.sources.identify import Identified
    from mergeflow.sources.memo import Memo

SCHEMA = "mergeflow/check/1"
OK, WRONG, MISSING, DAMAGED = "ok", "wrong", "missing", "damaged"
NO_COMPONENT = "(none)"
CODES = {OK: 0, WRONG: 3, MISSING: 4, DAMAGED: 5}  # in ascending order of how much they matter


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one file: what was found in it, or else why it could not be read."""

    file: Path
    verdict: str
    found: Identified | None = None
    health: Health | None = None
    error: MergeflowError | None = None


@click.command(no_args_is_help=True)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@click.option(
    "--remember",
    metavar="NAME",
    help="Call the VAE and the text encoders of FILE so from now on, wherever check finds them.",
)
@options.json_option
@options.debug_option
def command(files: tuple[Path, ...], remember: str | None, as_json: bool) -> None:
    """Say what each FILE is (architecture, components, precision, averages, what pruning would save) and what is wrong
    with it: broken position ids, values that are NaN or infinite, tensors that are missing, foreign or of the wrong
    shape. Nothing that a file holds is executed. Components with equal digests hold the same weights, and those whose
    digest is in the file known.toml of your configuration are called by their name.

    \b
    Exit codes: 0  nothing is wrong with any file
                3  something is
                4  a file is missing
                5  a file cannot be read: it is damaged, no model, or a pickle that asks for more than tensors
    Where several hold, the first of 5, 4, 3.
    """
    from mergeflow.build import known
    from mergeflow.sources.memo import Memo, default_folder

    names = known.read()
    with Screen(brief=True) as screen, closing(Memo(default_folder(), screen.warn)) as memo:
        verdicts = [look(file, memo, screen, names) for file in files]
        if remember is not None:
            _remember(remember, verdicts, screen)
    if as_json:
        print_json(SCHEMA, files=[_told(v) for v in verdicts])
    else:
        echo("\n\n".join("\n".join(_lines(v)) for v in verdicts))
    worst = max((v.verdict for v in verdicts), key=list(CODES).index)
    click.get_current_context().exit(CODES[worst])


def look(file: Path, memo: Memo, screen: Screen, known: Mapping[str, str]) -> Verdict:
    from mergeflow.build.health import judge, read_ids
    from mergeflow.build.machine import budget
    from mergeflow.sources.identify import identify

    try:
        found = identify(file, memo, screen, workers=budget(1).cores)
        health = judge(found, read_ids(found), known)
    except (MissingInput, IntegrityError) as error:
        return Verdict(file, MISSING if isinstance(error, MissingInput) else DAMAGED, error=error)
    return Verdict(file, WRONG if health.findings else OK, found, health)


def _remember(name: str, verdicts: Sequence[Verdict], screen: Screen) -> None:
    """Write down what the VAE and the text encoders of the one file are called.

    Raises:
        RecipeError: several files, or one without either.
        MissingInput, IntegrityError: the file cannot be read.
    """
    from mergeflow.build import known

    if len(verdicts) > 1:
        raise RecipeError("--remember is for one file", hint="give one FILE")
    if verdicts[0].error is not None:
        raise verdicts[0].error
    health = verdicts[0].health
    parts = {c: part.digest for c, part in health.parts.items() if c in known.COMPONENTS} if health else {}
    if not parts:
        raise RecipeError(f"{verdicts[0].file} has neither a VAE nor a text encoder that could be remembered")
    path = known.add(name, parts.values())
    screen.say(f"{name}: {listed(list(parts))} written to {path}")


def _told(v: Verdict) -> dict[str, Any]:
    """A verdict as it is printed with --json."""
    told: dict[str, Any] = {"file": str(v.file), "verdict": v.verdict}
    if v.error is not None:
        return {**told, "why": v.error.message, "hint": v.error.hint}
    assert v.found is not None
    assert v.health is not None
    health = v.health
    return {
        **told,
        "container": v.found.contents.container,
        "digest": v.found.model,
        "bytes": v.found.size,
        "architecture": health.architecture.name,
        "architecture_title": health.architecture.title,
        "architecture_reason": health.reason,
        "variant": health.variant,
        "kind": told_kind(health.kind),
        "components": {name or NO_COMPONENT: asdict(part) for name, part in health.parts.items()},
        "averages": health.averages,
        "tensor_bytes": health.nbytes,
        "pruned_bytes": health.pruned,
        "savings": dict(health.savings),
        "findings": [asdict(finding) for finding in health.findings],
        "notes": list(health.notes),
    }


def _lines(v: Verdict) -> Iterator[str]:
    yield f"{v.file}: {paint(_summary(v), fg='green' if v.verdict == OK else 'red')}"
    if v.error is not None:
        rows = [("why", v.error.message.removeprefix(f"{v.file}: ")), ("hint", v.error.hint)]
        yield from table(row for row in rows if row[1])
        return
    assert v.found is not None
    assert v.health is not None
    health = v.health
    variant = f", {health.variant}" if health.variant else ""
    facts = [
        ("format", v.found.contents.container),
        ("architecture", f"{health.architecture.title}{variant}: {health.reason}"),
    ]
    facts += kind_rows(told_kind(health.kind))
    facts.append(("size", f"{human_bytes(health.nbytes)} of tensors; {_pruning(health)}"))
    facts += [("note", note) for note in health.notes]
    yield from table(facts)
    if any(health.parts):
        yield from ("", "components")
        components = [
            (name or NO_COMPONENT, plural(part.tensors, "tensor"), human_bytes(part.nbytes), ", ".join(part.dtypes),
             f"{part.digest[:19]}…", part.known)
            for name, part in health.parts.items()
        ]  # fmt: skip
        yield from table(components, right=(1, 2))
    if health.findings:
        yield from ("", "wrong")
        for finding in health.findings:
            yield f"  {finding.text}"
            yield from table(_details(finding), indent="    ")


def _summary(v: Verdict) -> str:
    if v.verdict == WRONG and v.health is not None:
        return plural(len(v.health.findings), "thing") + (" is wrong" if len(v.health.findings) == 1 else " are wrong")
    return {OK: "nothing is wrong", MISSING: "there is no such file", DAMAGED: "cannot be read"}[v.verdict]


def _pruning(health: Health) -> str:
    if not health.savings:
        return "pruning would save nothing"
    steps = ", ".join(f"{human_bytes(n)} {what}" for what, n in health.savings.items())
    return f"pruning would leave {human_bytes(health.pruned)} ({steps})"


def _details(finding: Finding) -> Iterator[tuple[str, str]]:
    if finding.ids:
        yield "positions", listed([str(i) for i in finding.ids], 77)
        yield "hint", "an output with `fix: [clip_position_ids]` has them right"
    yield "such as" if len(finding.tensors) > 1 else "tensor", listed(finding.tensors, 2)
