"""`mergeflow schema`: the JSON Schema of recipes."""

from __future__ import annotations

import json

import click

from mergeflow.cli import options
from mergeflow.cli.text import echo


@click.command()
@options.debug_option
def command() -> None:
    """Print the JSON Schema of recipes. Editors complete and check recipes with it; in VS Code, for example:

    \b
    mergeflow schema > recipe.schema.json
    # then, as the first line of a recipe:
    # yaml-language-server: $schema=recipe.schema.json
    """
    from mergeflow.recipe import schema

    echo(json.dumps(schema(), indent=2))
