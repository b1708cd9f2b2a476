"""`mergeflow methods`: the merge methods that there are, or one of them."""

from __future__ import annotations

import click

from mergeflow.cli import options
from mergeflow.cli.text import print_json

SCHEMA = "mergeflow/methods/1"


@click.command()
@click.argument("name", required=False)
@options.json_option
@options.debug_option
def command(name: str | None, as_json: bool) -> None:
    """List the merge methods, or show NAME, which may be of an installed plugin."""
    from mergeflow.methods.registry import Method, built_in, find

    methods = [find(name)] if name else list(built_in().values())

    def entry(method: Method) -> dict[str, object]:
        parameters = [{"name": p.name, "kind": p.kind, "required": p.required} for p in method.parameters]
        return {
            "name": method.name,
            "signature": method.signature,
            "formula": method.formula,
            "tier": method.tier,
            "parameters": parameters,
            "doc": method.doc,
        }

    if as_json:
        print_json(SCHEMA, methods=[entry(method) for method in methods])
    elif name:
        method = methods[0]
        click.echo(f"{method.signature}\n\n{method.doc}\n\nreproducible: {method.tier}")
    else:
        for method in methods:
            click.echo(f"{method.signature}\n    {method.formula}")
