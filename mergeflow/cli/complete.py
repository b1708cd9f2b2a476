"""What the shell offers when a word is half typed: outputs, params and sources of the recipe on the line, methods. The
recipe is read and not planned; one that cannot be read offers nothing, and no error is ever shown."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem, split_arg_string

from mergeflow.errors import MergeflowError

if TYPE_CHECKING:
    from mergeflow.recipe import Recipe


def _named() -> Path:
    """The recipe that the command is for: the first word that is one, else recipe.yaml. The words come from the shell:
    click knows no arguments of a line that ends in an option without its value."""
    typed = split_arg_string(os.environ.get("COMP_WORDS", ""))
    words = [word for word in typed if word.lower().endswith((".yaml", ".yml"))]
    return Path(words[0]) if words else Path("recipe.yaml")


def _recipe() -> Recipe | None:
    from mergeflow.recipe import load

    try:
        return load(_named())
    except MergeflowError:
        return None


def outputs(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """A recipe's file, or an output of the recipe. Those of a sweep go by the name that is in the recipe."""
    recipe = _recipe()
    found = [] if recipe is None else [CompletionItem(path) for path in recipe.outputs if path.startswith(begun)]
    return [CompletionItem(begun, type="file"), *found]  # in bash, files are offered where nothing else is


def params(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """NAME= for each param; of a profile NAME.SELECTOR= as well."""
    recipe = _recipe()
    if recipe is None or "=" in begun:
        return []
    words = [f"{name}=" for name in recipe.params]
    words += [f"{name}.{entry.selector}=" for name, param in recipe.params.items() for entry in param.profile]
    return [CompletionItem(word) for word in words if word.startswith(begun)]


def sources(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """NAME= for each source."""
    recipe = _recipe()
    if recipe is None or "=" in begun:
        return []
    return [CompletionItem(f"{name}=") for name in recipe.sources if name.startswith(begun)]


def methods(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """The methods that come with mergeflow, each with its formula."""
    from mergeflow.methods.registry import built_in

    return [CompletionItem(name, help=m.formula) for name, m in built_in().items() if name.startswith(begun)]


def architectures(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Ours, and the user's own."""
    from mergeflow.arch import names, user_files

    return [CompletionItem(name) for name in (*names(), *user_files()) if name.startswith(begun)]
