"""`mergeflow lock`: write down which files the sources are and what must come out; or check what is written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mergeflow.cli import options
from mergeflow.cli.report import Screen
from mergeflow.cli.text import plural, print_json
from mergeflow.errors import Differs

if TYPE_CHECKING:
    from mergeflow.provenance.lock import Lock

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
            click.echo(f"  {line}")
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
        click.echo(f"{done}: {what}")


def keep_expected(old: Lock, new: Lock) -> Lock:
    """The new lock, with the digests that the old one has for outputs that are the same but not built here."""
    outputs = {}
    for path, output in new.outputs.items():
        before = old.outputs.get(path)
        same = before is not None and before.key == output.key and output.digest is None
        outputs[path] = before if same and before is not None else output
    return new.model_copy(update={"outputs": outputs})


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
                f"{kind} {name}: {field}: {_short(was[field])} → {_short(now[field])}"
                for field in was
                if was[field] != now[field] and not (field == "digest" and was.get("key") != now.get("key"))
            ]
    return lines


def _short(value: object) -> str:
    text = "not built" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
    return text if len(text) <= 16 else f"{text[:15]}…"
