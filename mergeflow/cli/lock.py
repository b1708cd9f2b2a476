"""`mergeflow lock`: write down which files the sources are and what must come out; or check what is written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mergeflow.cli import options
from mergeflow.cli.report import Screen
from mergeflow.cli.text import echo, plural, print_json
from mergeflow.errors import Differs

if TYPE_CHECKING:
    from mergeflow.provenance.lock import Lock, LockedSource

SCHEMA = "mergeflow/lock/1"


@click.command()
@click.argument("recipe", required=False)
@click.option("--check", is_flag=True, help="Write nothing; exit with 3 when the lock is not as it would be written.")
@options.recipe_options
@options.folder_options
@options.json_option
@options.debug_option
def command(recipe: str | None, check: bool, as_json: bool, **given: Any) -> None:
    """Write RECIPE's lock beside it: the digests of its sources, the keys of its outputs, and the digests of those
    outputs that are built. A digest that was locked before stays while its output's key is the same.

    With a recipe and its lock, `mergeflow build --locked` gives the same bytes anywhere, or says what differs.
    """
    from mergeflow.provenance import lock as locks

    with Screen() as screen:
        project, _ = options.open_project((recipe,) if recipe else (), screen, **given)
        with project:
            path = project.lock_file()
            old = locks.read(path) if check or path.exists() else locks.Lock()
            new = keep_expected(old, project.make_lock())
    changes, first = differences(old, new), not path.exists()
    if not check and (changes or first):
        locks.write(new, path)
    unbuilt = sum(output.digest is None for output in new.outputs.values())
    if as_json:
        print_json(SCHEMA, file=str(path), changes=changes, written=not check and bool(changes), not_built=unbuilt)
    elif not first:
        for line in changes:
            echo(f"  {line}")
    if check and changes:
        if as_json:
            click.get_current_context().exit(Differs.exit_code)
        raise Differs(
            f"{path} is not as it would be written now", hint="`mergeflow lock` writes it, when that is meant"
        )
    if not as_json:
        what = f"{plural(len(new.sources), 'source')}, {plural(len(new.outputs), 'output')}"
        what += f" ({unbuilt:,} of them not built yet)" if unbuilt else ""
        done = f"{path} holds" if check else f"wrote {path}" if changes else f"{path} is unchanged"
        echo(f"{done}: {what}")


def keep_expected(old: Lock, new: Lock) -> Lock:
    """The new lock, with what the old one has and this machine does not know: digests of outputs that are the same but
    not built here, what sources are called and where they came from, when they were pointed at with --source."""
    sources = {name: _with_origin(old.sources.get(name), source) for name, source in new.sources.items()}
    outputs = {}
    for path, output in new.outputs.items():
        before = old.outputs.get(path)
        same = before is not None and before.key == output.key and output.digest is None
        outputs[path] = before if same and before is not None else output
    return new.model_copy(update={"sources": sources, "outputs": outputs})


def _with_origin(old: LockedSource | None, new: LockedSource) -> LockedSource:
    if old is None or old.sha256 != new.sha256:
        return new
    if new.file is None and new.url is None:
        return new.model_copy(update={"file": old.file, "url": old.url, "resolved": old.resolved})
    if new.url == old.url and new.resolved is None:
        return new.model_copy(update={"resolved": old.resolved})
    return new


def differences(old: Lock, new: Lock) -> list[str]:
    """What changes from one lock to the other, a line each."""
    lines = []
    if old.numerics != new.numerics:
        lines.append(f"numerics version: {old.numerics} → {new.numerics}")
    for kind in ("source", "output"):
        before, after = getattr(old, f"{kind}s"), getattr(new, f"{kind}s")
        lines += [f"{kind} {name} is new" for name in sorted(after.keys() - before.keys())]
        lines += [f"{kind} {name} is gone" for name in sorted(before.keys() - after.keys())]
        for name in sorted(before.keys() & after.keys()):
            was, now = before[name].model_dump(), after[name].model_dump()
            lines += [
                f"{kind} {name}: {field}: {_short(was[field], field)} → {_short(now[field], field)}"
                for field in was
                if was[field] != now[field] and not (field in ("digest", "sha256") and was.get("key") != now.get("key"))
            ]
    return lines


def _short(value: object, field: str) -> str:
    if value is None:
        return "not built" if field in ("digest", "sha256") else "none"
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return text if len(text) <= 16 else f"{text[:15]}…"
