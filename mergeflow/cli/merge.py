"""`mergeflow merge`: one merge without a recipe file."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergeflow.cli import options
from mergeflow.cli.build import run
from mergeflow.cli.report import Screen
from mergeflow.errors import MergeflowError, RecipeError, UnknownName

if TYPE_CHECKING:
    from mergeflow.recipe import Recipe


_NOT_HERE = tuple(  # hints at what `merge` has not, and what it has in their place
    (re.compile(pattern, re.IGNORECASE), words)
    for pattern, words in (
        (r"[,;]? ?\bor point elsewhere with --source .*", ""),
        (r"outputs stay under the output root; .*", "it leads there by a link: give -o the path itself"),
        (r"another --output-root", "another folder for -o"),
        (r"a file gets a name first, as a source; .*", "a file gets a name first, as in a=model.safetensors"),
    )
)


@click.command(no_args_is_help=True)
@click.argument("expression")
@click.argument("names", nargs=-1, metavar="NAME=VALUE...", type=options.Pair())
@click.option("-o", "--output", required=True, metavar="FILE", help="The file to make: .safetensors, .ckpt, .pt …")
@click.option("--dtype", metavar="DTYPE", help="float16, bfloat16, float32 … [default: as the first model]")
@click.option("--save-recipe", metavar="FILE", type=click.Path(path_type=Path), help="Write the recipe of it as well.")
@options.dry_run_option
@options.force_option
@options.offline_option
@options.machine_options
@options.cache_option
@options.json_option
@options.debug_option
def command(
    expression: str,
    names: options.Pairs,
    output: str,
    dtype: str | None,
    save_recipe: Path | None,
    dry_run: bool,
    offline: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Merge by EXPRESSION. Each NAME=VALUE is a model's file, or a number.

    \b
    mergeflow merge "a + (b - c) * m" a=any.safetensors b=nai.safetensors c=sfw.safetensors m=0.3 -o mix.safetensors
    """
    began = time.monotonic()
    from mergeflow.build.project import Project
    from mergeflow.recipe import from_command

    texts = dict(names)
    if len(texts) != len(names):
        twice = next(name for name, _ in names if [n for n, _ in names].count(name) > 1)
        raise RecipeError(f"{twice} is given twice")
    root, path = _root(Path(output))
    with _in_its_words():
        recipe = from_command(expression, texts, path, dtype)
    saved = _to_save(save_recipe, expression, texts, path, dtype) if save_recipe else None
    if not given["cache"] and not os.environ.get("MERGEFLOW_CACHE"):
        given["cache"] = Path("cache")
    settings = options.settings(output_root=root, fetch=not (offline or dry_run), **given)
    with Screen() as screen, _in_its_words(), Project(recipe, settings, screen) as project:
        for name in _unused(recipe):
            screen.warn(f"the expression does not use {name}")
        run(project, (), screen, began, dry_run=dry_run, as_json=as_json)
        if save_recipe and saved and not dry_run and not save_recipe.exists():
            from mergeflow.formats.parts import write_text_file

            write_text_file(save_recipe, saved.text)


def _unused(recipe: Recipe) -> list[str]:
    """The names that were given and have no part in the merge: mostly a slip."""
    (output,) = recipe.outputs.values()
    used = output.expr.names
    return [name for name in (*recipe.sources, *recipe.params) if name not in used]


@contextlib.contextmanager
def _in_its_words() -> Iterator[None]:
    """Errors without places in a recipe that nobody wrote, and without hints at options that `merge` has not."""
    from mergeflow.recipe.command import FILE

    try:
        yield
    except MergeflowError as error:
        if error.place is not None and error.place.file == FILE:
            error.place = None
        for pattern, words in _NOT_HERE:
            error.hint = pattern.sub(words, error.hint)
        if isinstance(error, UnknownName) and error.message.startswith("no source"):
            error.hint = f"{error.hint.removesuffix('?')}; or give it as well: {error.name}=FILE, or a number"
        raise


def _root(output: Path) -> tuple[Path, str]:
    """The output root and the path under it: the current folder where the file lies in it, else the file's own."""
    target, here = Path(os.path.abspath(output)), Path.cwd()  # noqa: PTH100  # links are left as they are
    root = here if target.is_relative_to(here) else target.parent
    return root, target.relative_to(root).as_posix()


def _to_save(file: Path, expression: str, texts: dict[str, str], path: str, dtype: str | None) -> Recipe:
    """The recipe as it goes into its own file: sources relative to its folder. Refused before any work is done."""
    from mergeflow.recipe import from_command
    from mergeflow.recipe.origins import scheme_of
    from mergeflow.recipe.tokens import is_number

    def from_there(text: str) -> str:
        if is_number(text) or scheme_of(text) or Path(text).is_absolute():
            return text
        try:
            return Path(os.path.relpath(text, file.parent)).as_posix()
        except ValueError:  # on Windows, another drive
            return os.path.abspath(text)  # noqa: PTH100

    recipe = from_command(expression, {name: from_there(text) for name, text in texts.items()}, path, dtype)
    if file.exists() and file.read_bytes() != recipe.text.encode():
        raise RecipeError(f"{file} exists already, with something else in it", hint="choose another --save-recipe")
    return recipe
