"""The recipe's text beside the file it made: `mix.safetensors.recipe.yaml`."""

from __future__ import annotations

from pathlib import Path

from mergeflow.formats.parts import write_text_file
from mergeflow.provenance.beside import plain_name
from mergeflow.recipe import Recipe
from mergeflow.recipe.shared import text_with_overrides

MARK = "# made by mergeflow: the recipe of "


def sidecar_path(target: Path) -> Path:
    return target.with_name(plain_name(target) + ".recipe.yaml")


def recipe_of(recipe: Recipe, name: str) -> str:
    """The recipe as it was built: overrides from the command line are said in comments above it."""
    return f"{MARK}{name}\n{text_with_overrides(recipe)}"


def is_ours(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.readline().startswith(MARK)
    except OSError:
        return False


def write_sidecar(recipe: Recipe, target: Path) -> bool:
    """Write it; a file of that name that somebody else wrote is left alone, and False returned."""
    path = sidecar_path(target)
    if path.exists() and not is_ours(path):
        return False
    write_text_file(path, recipe_of(recipe, plain_name(target)))
    return True
