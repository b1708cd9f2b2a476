"""`mergeflow import`: a recipe of ours out of what another tool, or a merged file, says."""

from __future__ import annotations

import os
from pathlib import Path

import click

from mergeflow.cli import options
from mergeflow.cli.text import echo, print_json
from mergeflow.errors import RecipeError

SCHEMA = "mergeflow/import/1"


@click.command(no_args_is_help=True)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-o", "--output", metavar="FILE", type=click.Path(path_type=Path), help="Write the recipe there.")
@click.option("--id", "row", type=int, metavar="N", help="Of mergehistory.csv, the merge with this ID. [default: all]")
@click.option("--faithful", is_flag=True, help="Repeat mergekit's roundings, where that can be done.")
@options.json_option
@options.debug_option
def command(file: Path, output: Path | None, row: int | None, faithful: bool, as_json: bool) -> None:
    """Print a recipe of what FILE says: a merged model (metadata of A1111's webui, supermerger, sd-mecha or mergeflow),
    mergehistory.csv, a text of sdweb-merge-board, a .mecha file, a configuration of mergekit, steps as `export` writes
    them. Which it is shows in its content.

    What the recipe has not, or has otherwise, is said on stderr and in its first lines.
    """
    from mergeflow.exchange.read import read
    from mergeflow.formats.parts import write_text_file
    from mergeflow.recipe import loads

    if output is not None and not options.is_recipe(output.name):
        raise RecipeError(f"{output} does not end in .yaml", hint=f"mergeflow import {file} -o {output}.yaml")
    if output is not None and output.exists():
        raise RecipeError(f"{output} exists already", hint="name another file")
    folder = output.parent if output is not None else Path()

    def locate(path: str) -> str:
        """A path that is there, seen from the folder of the recipe; any other is left as it was typed."""
        if folder == Path() or Path(path).is_absolute() or not Path(path).exists():
            return path
        return Path(os.path.relpath(path, folder)).as_posix()

    found = read(file, row=row, faithful=faithful, locate=locate)
    loads(found.text, str(output or "recipe.yaml"), folder)  # what is printed can be read
    if output is not None:
        write_text_file(output, found.text)
    if as_json:
        written = str(output) if output is not None else None
        print_json(SCHEMA, origin=found.origin, losses=list(found.losses), recipe=found.text, file=written)
        return
    for loss in found.losses:
        echo(f"not as there: {loss}", err=True)
    if output is None:
        echo(found.text, nl=False)
        return
    echo(f"wrote {output}, from {found.origin}")
