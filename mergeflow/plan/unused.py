"""Params that no output and no assertion uses: nothing says which model they are for, so they are read against all that
is known. A misspelt `default:` or preset is found on the day it is written, not on the day the param is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from mergeflow.arch import Architecture, find, get, mbw, names, preset, select, user_names
from mergeflow.errors import MergeflowError, RecipeError, UnknownName, nearest
from mergeflow.recipe import BlockList, Param, ProfileEntry, Recipe
from mergeflow.recipe.tokens import clip

_CUSTOMARY = "sd1"  # whose refusal is shown where no architecture takes a list


def check_unused(recipe: Recipe, unused: Iterable[str]) -> None:
    """That the profiles among these params could be right for some model.

    A selector that looks like no part of any model is let through, as it may be a tensor's name.

    Raises:
        RecipeError: a selector that is all but a known word, a preset or a list that fits no architecture, a regular
            expression or a range that cannot be read.
    """
    given = [(name, value) for name in unused for value in (recipe.params[name], *recipe.params[name].sweep)]
    profiles = [(name, value) for name, value in given if value.profile or value.listed]
    if not profiles:
        return
    own = [find(recipe.arch)] if recipe.arch is not None else []
    known = [*own, *map(get, sorted({*names(), *user_names()}, key=lambda name: (name != _CUSTOMARY, name)))]
    for name, value in profiles:
        _check_selectors(name, value, known)
        if value.listed is not None:
            _check_list(value.listed, known, base=any(entry.selector == "BASE" for entry in value.profile))


def _check_selectors(name: str, param: Param, known: Sequence[Architecture]) -> None:
    words = [word for a in known for word in (*a.blocks, *a.layout.groups, *a.component_names)]
    for entry in param.profile:
        try:
            _fits_one(known, partial(_selected, entry))
        except UnknownName as error:
            close = nearest(error.name, ["default", *dict.fromkeys(words)])
            if close and "." not in error.name:  # layers.7 and names of tensors are of models that nobody has shown
                raise RecipeError(
                    f"{clip(name)}, which nothing uses yet: no part of a model is called {clip(error.name)}",
                    place=entry.place,
                    hint=f"did you mean {' or '.join(close)}?",
                ) from None


def _selected(entry: ProfileEntry, architecture: Architecture) -> object:
    return select(architecture, entry.selector, (), place=entry.place)


def _check_list(listed: BlockList, known: Sequence[Architecture], *, base: bool) -> None:
    def read(architecture: Architecture) -> object:
        layout = get(listed.blocks) if listed.blocks else None
        if listed.mbw is not None:
            return mbw(listed.mbw, architecture, base=base, layout=layout)
        return preset(str(listed.preset), architecture, base=base)

    try:
        _fits_one(known, read)
    except RecipeError as error:
        error.place = error.place or listed.place
        raise


def _fits_one(known: Sequence[Architecture], read: Callable[[Architecture], object]) -> None:
    """Read with the first architecture that takes it; what the first of all says where none does."""
    said: MergeflowError | None = None
    for architecture in known:
        try:
            read(architecture)
        except RecipeError as error:
            said = said or error
        else:
            return
    if said is not None:
        raise said
