"""`mergeflow export`: a recipe for another tool, or for people."""

from __future__ import annotations

from pathlib import Path

import click

from mergeflow.cli import complete, options
from mergeflow.cli.text import echo, print_json
from mergeflow.errors import RecipeError

SCHEMA = "mergeflow/export/1"
FORMS = ("mergekit", "a1111-steps", "text")


@click.command()
@click.argument("names", nargs=-1, metavar="[RECIPE] [OUTPUT]", shell_complete=complete.outputs)
@click.option("--to", type=click.Choice(FORMS), required=True, help="What to write.")
@click.option("-o", "--output", metavar="FILE", type=click.Path(path_type=Path), help="Write it there.")
@options.recipe_options
@options.json_option
@options.debug_option
def command(
    names: tuple[str, ...],
    to: str,
    output: Path | None,
    params: options.Pairs,
    sources: options.Pairs,
    as_json: bool,
) -> None:
    """Print how RECIPE's OUTPUT is made: as a configuration of mergekit, as the runs of A1111's checkpoint merger, or
    as a numbered list for people (text). The models' files are not needed.

    What cannot be said there is an error; what is lost is said on stderr.
    """
    from mergeflow.exchange.write import write
    from mergeflow.formats.parts import write_text_file
    from mergeflow.recipe import load

    recipe, wanted = options.find(names)
    if len(wanted) > 1:
        raise RecipeError("one output is exported at a time", hint=f"mergeflow export {recipe} {wanted[0]} --to {to}")
    if output is not None and output.exists():
        raise RecipeError(f"{output} exists already", hint="name another file")
    found = write(load(recipe, dict(params), dict(sources)), to, wanted[0] if wanted else None)
    if output is not None:
        write_text_file(output, found.text)
    if as_json:
        file = str(output) if output is not None else None
        print_json(SCHEMA, to=to, losses=list(found.losses), text=found.text, file=file)
        return
    for loss in found.losses:
        echo(f"not as here: {loss}", err=True)
    if output is None:
        echo(found.text, nl=False)
    else:
        echo(f"wrote {output}")
