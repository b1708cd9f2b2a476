"""`mergeflow arch`: the architectures that are known, or one of them; and whether a file describes one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mergeflow.cli import complete, options
from mergeflow.cli.text import echo, print_json, table
from mergeflow.errors import RecipeError

if TYPE_CHECKING:
    from mergeflow.arch import Architecture

SCHEMA = "mergeflow/arch/1"
OURS = "mergeflow"


@click.command()
@click.argument("name", required=False, shell_complete=complete.architectures)
@click.option(
    "--check",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Check that FILE describes an architecture, and show it; a mistake is told with its line.",
)
@options.json_option
@options.debug_option
def command(name: str | None, file: Path | None, as_json: bool) -> None:
    """List the architectures whose parts are known, or show NAME (or the file ./NAME.toml): its components and groups,
    which a recipe may name in replace: and in profiles, its blocks, and its buffers, which are never averaged.

    Architectures of your own are files NAME.toml in the folder that the list ends with, or wherever MERGEFLOW_ARCH
    says; or a recipe names the file: `arch: ./NAME.toml`.
    """
    from mergeflow.arch import find, is_path, names, read, user_files, user_places

    if file is not None and name is not None:
        raise RecipeError("--check FILE shows the file: a name besides is too much")
    known = {**dict.fromkeys(names(), OURS), **{own: str(path) for own, path in user_files().items()}}
    if file is not None:
        chosen, known = [read(file)[0]], {file.stem: str(file)}
    elif name is not None:
        chosen = [find(name)]
        known = {chosen[0].name: name} if is_path(name) else known
    else:
        chosen = [find(each) for each in known]
    if as_json:
        print_json(SCHEMA, architectures=[_told(a, known[a.name]) for a in chosen])
    elif name is None and file is None:
        rows = [(a.name, a.title, ", ".join(a.component_names), _origin(known[a.name])) for a in chosen]
        echo("\n".join(table(rows, indent="")))
        echo(f"\nyour own: NAME.toml in {user_places()[0]}")
    else:
        echo("\n".join(_shown(chosen[0], known[chosen[0].name])))


def _told(a: Architecture, origin: str) -> dict[str, object]:
    return {
        "name": a.name,
        "title": a.title,
        "from": origin,
        "components": {n: list(globs) for n, globs in a.components.items()},
        "groups": {n: list(members) for n, members in a.groups.items()},
        "blocks": list(a.layout.order),
        "buffers": list(a.buffers),
    }


def _origin(origin: str) -> str:
    return "" if origin == OURS else f"from {origin}"


def _shown(a: Architecture, origin: str) -> Iterator[str]:
    yield f"{a.name}: {a.title}"
    if origin != OURS:
        yield _origin(origin)
    yield from ("", "components")
    yield from table((n, ", ".join(globs)) for n, globs in a.components.items())
    if a.groups:
        yield from ("", "groups", *table((n, ", ".join(members)) for n, members in a.groups.items()))
    if a.layout.order:
        yield from ("", "blocks", f"  {', '.join(a.layout.order)}")
    yield from ("", "buffers, never averaged", *(f"  {buffer}" for buffer in a.buffers))
