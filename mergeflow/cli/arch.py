"""`mergeflow arch`: the architectures that are known, or one of them."""

from __future__ import annotations

import click

from mergeflow.cli import options
from mergeflow.cli.text import print_json, table

SCHEMA = "mergeflow/arch/1"


@click.command()
@click.argument("name", required=False)
@options.json_option
@options.debug_option
def command(name: str | None, as_json: bool) -> None:
    """List the architectures whose parts are known, or show NAME: its components and groups, which a recipe may name in
    replace: and in profiles, and its buffers, which are never averaged.
    """
    from mergeflow.arch import get, names

    chosen = [get(known) for known in ([name] if name else names())]
    if as_json:
        entries = [
            {
                "name": a.name,
                "title": a.title,
                "components": {n: list(globs) for n, globs in a.components.items()},
                "groups": {n: list(members) for n, members in a.groups.items()},
                "buffers": list(a.buffers),
            }
            for a in chosen
        ]
        print_json(SCHEMA, architectures=entries)
    elif not name:
        click.echo("\n".join(table([(a.name, a.title, ", ".join(a.component_names)) for a in chosen], indent="")))
    else:
        (a,) = chosen
        lines = [f"{a.name}: {a.title}", "", "components"]
        lines += table((n, ", ".join(globs)) for n, globs in a.components.items())
        if a.groups:
            lines += ["", "groups", *table((n, ", ".join(members)) for n, members in a.groups.items())]
        lines += ["", "buffers, never averaged", *(f"  {buffer}" for buffer in a.buffers)]
        click.echo("\n".join(lines))
