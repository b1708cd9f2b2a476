"""Keeping a merge between the models it was made of, value by value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergeflow.errors import RecipeError
from mergeflow.ir.nodes import combine
from mergeflow.ir.numbers import ONE, Number
from mergeflow.methods.kernels import Given, kernel
from mergeflow.methods.registry import Model, Models, method
from mergeflow.methods.shares import unweighted

if TYPE_CHECKING:
    import torch


def _clip(given: Given, found: None, tiles: Sequence[torch.Tensor], begin: int, out: torch.Tensor) -> None:
    import torch

    low, high = tiles[1].clone(), tiles[1].clone()
    for bound in tiles[2:]:
        torch.minimum(low, bound, out=low)
        torch.maximum(high, bound, out=high)
    torch.minimum(torch.maximum(tiles[0], low, out=out), high, out=out)
    out.add_(0.0)  # which of −0 and +0 is the smaller depends on the processor


CLIP = kernel(
    "clip",
    cost=1.5,
    version=1,
    operands=("model", "model"),
    many=True,
    result="model",
    apply=_clip,
    same=True,
)


@method(CLIP)
def clip(x: Model, bounds: Models) -> Model:
    """min(max(x, smallest bound), largest bound), value by value

    Keeps each value of x within what the bounds, two models or more, have there: `clip(merged, a, b)`. The clamp of
    sd-mecha (with its stiffness 0) and, with a and b as bounds, the `weights_clip` of meh; it has no paper. NaN in
    x or in a bound gives NaN. Where a bound lacks the tensor, x is left as it is.

    Example: `clip(a + (b - base) * 0.7, [a, b])`
    """
    unweighted(bounds, "clip", "its bounds are taken as they are")
    if len(bounds) < 2:
        raise RecipeError("clip needs two bounds or more", hint="clip(x, a, b) keeps x between a and b")
    return CLIP(x, *(item.model for item in bounds))


@method(CLIP)
def add_difference_clamped(a: Model, b: Model, c: Model, m: Number = ONE) -> Model:
    """clip(a + (b − c)·m, a, b)

    The add difference (arXiv:2212.04089, section 2) that leaves no value outside what a and b have there: sd-mecha's
    add_difference with clamp_to_ab=True.

    Example: `add_difference_clamped(a, b, base, 0.8)`
    """
    return CLIP(combine([a, (b - c) * m]), a, b)
