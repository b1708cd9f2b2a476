"""`mergeflow verify`: read files again, every byte, and compare them with what they claim and with a lock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergeflow.cli import options
from mergeflow.cli.report import Screen
from mergeflow.cli.text import print_json, table
from mergeflow.errors import MergeflowError, MissingInput

if TYPE_CHECKING:
    from mergeflow.formats.files import Fingerprint
    from mergeflow.provenance.lock import Lock
    from mergeflow.sources.memo import Known, Memo

SCHEMA = "mergeflow/verify/1"
OK, UNKNOWN, DIFFERS, MISSING, DAMAGED = "ok", "unknown", "differs", "missing", "damaged"
CODES = {OK: 0, UNKNOWN: 2, MISSING: 4, DIFFERS: 3, DAMAGED: 5}  # in ascending order of how much they matter


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one file, and why, in one line."""

    file: str
    verdict: str
    why: str
    digest: str | None = None


@click.command(no_args_is_help=True)
@click.argument("files", nargs=-1, type=click.Path(path_type=Path), metavar="[FILE]...")
@click.option(
    "--recipe", type=click.Path(path_type=Path), help="Verify the outputs of a recipe; with its lock, sources too."
)
@click.option("--lock", "lock_file", type=click.Path(path_type=Path), help="Compare with this lock.")
@options.folder_options
@options.json_option
@options.debug_option
def command(files: tuple[Path, ...], recipe: Path | None, lock_file: Path | None, as_json: bool, **given: Any) -> None:
    """Read each FILE again, every byte of it, and compare its digest with the one that it carries, and with a lock
    where there is one. A file made by mergeflow carries its digest; in a lock, a file is looked up by its name among
    the outputs, else by its content.

    \b
    Exit codes: 0  every file is what it claims to be and what the lock says
                2  a file claims nothing and no lock says anything of it: nothing was verified
                3  a file differs from the lock
                4  a file is missing
                5  a file is not what it claims to be, or is damaged
    Where several hold, the first of 5, 3, 4, 2.
    """
    if not files and recipe is None:
        raise click.UsageError("name files, or a recipe with --recipe")
    if named := next((f for f in files if options.is_recipe(f.name)), None):
        raise click.UsageError(f"{named} is a recipe: mergeflow verify --recipe {named}")
    from mergeflow.provenance import lock as locks

    with Screen(brief=True) as screen:
        lock = locks.read(lock_file) if lock_file else None
        verdicts = []
        if recipe is not None:
            verdicts += list(_recipe(recipe, lock, screen, given))
        verdicts += [check(file, expected_of(lock, file), screen) for file in files]
    if as_json:
        print_json(SCHEMA, files=[asdict(verdict) for verdict in verdicts])
    else:
        click.echo("\n".join(table([(v.verdict, v.file, v.why) for v in verdicts], indent="", limit=60)))
    worst = max((v.verdict for v in verdicts), key=list(CODES).index)
    click.get_current_context().exit(CODES[worst])


def _recipe(recipe: Path, lock: Lock | None, screen: Screen, given: dict[str, Any]) -> Iterator[Verdict]:
    """The outputs of a recipe; and its sources, where a lock says what they must be."""
    from mergeflow.build.targets import file_of
    from mergeflow.provenance import lock as locks

    project, _ = options.open_project((str(recipe),), screen, **given)
    with project:
        if lock is None and project.lock_file().exists():
            lock = locks.read(project.lock_file())
        if lock is not None:
            for source in project.bound.sources:
                locked = lock.sources.get(source.name)
                yield check(source.path, {locked.digest: source.name} if locked else {}, screen)
        for path in project.bound.outputs:
            output = lock.outputs.get(path) if lock else None
            expected = {output.digest: path} if output and output.digest else {}
            yield check(file_of(project.bound, path, project.settings.output_root), expected, screen, shown=path)


def expected_of(lock: Lock | None, file: Path) -> dict[str, str]:
    """The digests that a lock allows a file, and whose they are: an output's of the same name, else all."""
    if lock is None:
        return {}
    outputs = {path: o.digest for path, o in lock.outputs.items() if o.digest}
    named = {digest: path for path, digest in outputs.items() if Path(path).name == file.name}
    sources = {s.digest: name for name, s in lock.sources.items()}
    return named or {**sources, **{digest: path for path, digest in outputs.items()}}


def check(file: Path, expected: dict[str, str], screen: Screen, shown: str = "") -> Verdict:
    """Read one file whole and judge it. `expected`: the digests that a lock allows it, none where no lock knows it."""
    from mergeflow.build.machine import budget
    from mergeflow.plan.embed import DIGEST
    from mergeflow.provenance.claims import claims_of
    from mergeflow.sources.identify import identify

    name = shown or str(file)
    try:
        found = identify(file, _unknowing(), screen, workers=budget(1).cores)
    except MissingInput:
        return Verdict(name, MISSING, "there is no such file")
    except MergeflowError as error:
        return Verdict(name, DAMAGED, error.message.removeprefix(f"{file}: "))
    digest, claimed = found.model, claims_of(file, found.metadata).get(DIGEST)
    if claimed is not None and claimed != digest:
        return Verdict(name, DAMAGED, f"its tensors are {_short(digest)}, it claims to be {_short(claimed)}", digest)
    if expected and digest not in expected:
        one = next(iter(expected.items())) if len(expected) == 1 else None
        locked = f"the lock says {_short(one[0])} ({one[1]})" if one else "which is none that the lock names"
        return Verdict(name, DIFFERS, f"it is {_short(digest)}, {locked}", digest)
    held = [*(["as it claims"] if claimed else []), *([f"as locked ({expected[digest]})"] if expected else [])]
    if held:
        return Verdict(name, OK, f"{_short(digest)}, {', '.join(held)}", digest)
    return Verdict(name, UNKNOWN, f"{_short(digest)}; it claims nothing, and no lock knows it", digest)


def _unknowing() -> Memo:
    """A memo that knows nothing, so that every byte is read."""
    from mergeflow.sources.memo import Memo

    class Unknowing(Memo):
        def __init__(self) -> None: ...

        def find(self, at: Fingerprint) -> Known | None:
            return None

        def remember(self, at: Fingerprint, known: Known) -> None: ...

    return Unknowing()


def _short(digest: str) -> str:
    return f"{digest[:15]}…"
