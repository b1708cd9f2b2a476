"""`mergeflow init`: a recipe to start from."""

from __future__ import annotations

from pathlib import Path

import click

from mergeflow.cli import options
from mergeflow.cli.text import echo
from mergeflow.errors import RecipeError

STARTER = """\
# A mergeflow recipe. `mergeflow plan` shows what it would do, `mergeflow build` does it.
mergeflow: 1

sources: # the models, by names of your own; paths are relative to this file
  a: models/a.safetensors
  b: models/b.safetensors
  base: models/base.safetensors

params: # numbers; --set m=0.5 changes one for a build
  m: 0.3

steps: # named expressions; any number of them costs no rounding and no file in between
  mix: a + (b - base) * m # what b has learned since base, added to a
  # average: a * 0.5 + b * 0.5
  # half: weighted_sum(a, b, 0.5) # `mergeflow methods` lists them

outputs: # files, relative to the folder that mergeflow is run in
  mix.safetensors: { from: mix, dtype: float16 }
"""


@click.command()
@click.argument("file", default="recipe.yaml", type=click.Path(path_type=Path))
@options.debug_option
def command(file: Path) -> None:
    """Write a short recipe with comments to FILE, recipe.yaml when none is named. Nothing is overwritten."""
    from mergeflow.formats.parts import write_text_file

    if not options.is_recipe(file.name):
        raise RecipeError(f"{file} does not end in .yaml", hint=f"mergeflow init {file.with_suffix('.yaml')}")
    if file.exists():
        raise RecipeError(f"{file} exists already", hint="name another file")
    write_text_file(file, STARTER)
    echo(f"wrote {file}: put your models' paths in it, then `mergeflow plan`")
