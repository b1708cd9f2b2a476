"""supermerger's recipes: block weights, modes and calculation modes as steps of ours. Its metadata and its history
(`history.py`) hold the same fields."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from mergeflow.arch import get, names, presets
from mergeflow.errors import RecipeError
from mergeflow.exchange.draft import Draft, Value, one_line, spelled
from mergeflow.exchange.loose import number, true, word
from mergeflow.recipe.expression import spell

TYPE = "sd-webui-supermerger"
_SD1_LISTS = (25, 26)
_CALCULATIONS = {"normal", "traindifference", "tensor", "cosinea", "cosineb", "smoothadd", "smoothadd mt", "extract"}
_COSINES = "cosineA and cosineB stretch the cosines of all tensors to 0 to 1 there; here each tensor is for itself"
_ARITHMETIC = "supermerger sums in float32 and casts; sums here are exact and rounded once"


def expression(draft: Draft, recipe: Mapping[str, Any], models: Mapping[str, str], architecture: str) -> str:
    """The formula of one merge; of block weights under which A's share may be 0, a step that says that A comes first.
    `recipe` has the fields of its metadata, `models` the names of A, B and C as they are
    spelled in expressions.

    Raises:
        RecipeError: a mode that nothing here answers to, or a model that is not named.
    """
    mode = word(recipe.get("mode")).lower().replace("_", " ")
    calculation = word(recipe.get("calcmode")).lower() or "normal"
    _refuse(calculation)
    _say_what_is_lost(draft, recipe)
    alpha = _weights(draft, recipe, "alpha", architecture)
    a, b = _model(models, "a"), _model(models, "b")
    c = models.get("c", a)  # an empty C is A there
    if calculation == "traindifference":
        return f"train_difference({a}, {b}, {c}, {alpha})"
    if calculation in ("cosinea", "cosineb"):
        draft.lose(_COSINES)
        return f"add_cosine_{calculation[-1]}({a}, {b}, {alpha})"
    if calculation.startswith("smoothadd"):
        return f"smooth_add({a}, {b}, {c}, {alpha})"
    if calculation == "extract":
        draft.lose("extract: its third option, gamma, is written down nowhere, and is 1 here")
        return f"extract({a}, {b}, {c}, {alpha}, {_weights(draft, recipe, 'beta', architecture)})"
    if calculation == "tensor":
        return f"tensor_sum({a}, {b}, {alpha}, {_weights(draft, recipe, 'beta', architecture)})"
    if mode.startswith("weight"):
        return f"weighted_sum({a}, {b}, {alpha})"
    if mode.startswith("add"):
        return f"{a} + ({b} - {c}) * {alpha}"
    if mode.startswith(("triple", "sum twice")):
        beta = _weights(draft, recipe, "beta", architecture)
        if mode.startswith("sum"):
            return f"sum_twice({a}, {b}, {c}, {alpha}, {beta})"
        expr = f"triple_sum({a}, {b}, {c}, {alpha}, {beta})"
        return spell(draft.step("mixed", {"expr": expr, "like": a})) if {alpha, beta} & set(draft.params) else expr
    raise RecipeError(
        f"supermerger's mode {one_line(word(recipe.get('mode'))) or '(none)'} is not known",
        hint="Weight sum, Add difference, Triple sum and sum Twice are",
    )


def _model(models: Mapping[str, str], which: str) -> str:
    if which not in models:
        raise RecipeError(f"the merge does not say what model {which.upper()} is")
    return models[which]


def _refuse(calculation: str) -> None:
    if calculation not in _CALCULATIONS:
        raise RecipeError(
            f"supermerger's calculation mode {calculation} has no counterpart here",
            hint="self and plus random are none of `mergeflow methods`",
        )


def _say_what_is_lost(draft: Draft, recipe: Mapping[str, Any]) -> None:
    draft.lose(_ARITHMETIC)
    draft.lose("a baked VAE, adjust, and the precision of the file are not in what supermerger writes down")
    if elemental := word(recipe.get("elemental_merge")):
        draft.lose(f"the elemental merge {one_line(elemental)} is not imported: add its lines to the profile")
    for key in recipe:
        if ("include" in key.lower() or "exclude" in key.lower()) and recipe[key] and recipe[key] != [""]:
            which = f"{one_line(key)} {one_line(str(recipe[key]))}"
            draft.lose(f"{which} is not imported: parts that are left out keep the first model's values there")


def _weights(draft: Draft, recipe: Mapping[str, Any], which: str, architecture: str) -> str:
    """A number, or the name of a param with block weights."""
    base = number(recipe.get(f"base_{which}"))
    listed = word(recipe.get(f"weights_{which}"))
    if not true(recipe.get("mbw")):
        if base is None:
            raise RecipeError(f"the merge does not say what its {which} is")
        return spelled(base)
    if not listed:
        raise RecipeError(f"the merge is by blocks and does not say their {which}")
    value: dict[str, Value] = {}
    if listed in presets():
        value["preset"], count = listed, 25
    else:
        numbers = [number(part) for part in listed.split(",") if part.strip()]
        if None in numbers:
            raise RecipeError(f"the block weights {one_line(listed)[:60]} are not numbers")
        count = len(numbers)
        if count not in _lengths():
            raise RecipeError(f"{count} block weights are for no architecture that is known", hint="SD 1 has 25 or 26")
        value["mbw"] = ",".join(part.strip() for part in listed.split(",") if part.strip())
    if count in (12, 19, 25, 59, 60):  # without BASE
        value["BASE"] = spelled(base if base is not None else Fraction(0))
    if count in _SD1_LISTS and architecture == "sdxl":
        value["blocks"] = "sd1"
    return draft.param(which, value)


def _lengths() -> frozenset[int]:
    """How many numbers a list of block weights can have."""
    return frozenset(len(form.names) for name in names() for form in get(name).layout.lists)
