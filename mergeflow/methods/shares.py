"""Weights of lists of models, as shares of a whole."""

from __future__ import annotations

from collections.abc import Sequence

from mergeflow.errors import RecipeError
from mergeflow.ir.numbers import ONE, ZERO, Number
from mergeflow.methods.registry import Weighted


def weights_of(items: Sequence[Weighted]) -> list[Number]:
    """As written; 1 where none is."""
    return [ONE if item.weight is None else item.weight for item in items]


def shares_of(items: Sequence[Weighted]) -> list[Number]:
    """The weights over their sum.

    Raises:
        RecipeError: they add up to 0.
    """
    weights = weights_of(items)
    total = total_of(weights, "give weights that do not")
    return [w / total for w in weights]


def total_of(weights: Sequence[Number], way_out: str) -> Number:
    """What weights are divided by.

    Raises:
        RecipeError: they add up to 0; `way_out` is the hint.
    """
    total: Number = ZERO
    for w in weights:
        total = total + w
    if total == 0:
        raise RecipeError("the weights add up to 0, so they cannot be normalised", hint=way_out)
    return total


def unweighted(items: Sequence[Weighted], method: str, why: str) -> None:
    """Refuse weights where a formula has none."""
    if any(item.weight is not None for item in items):
        raise RecipeError(f"{method} takes no weights: {why}", hint="leave out the @")
