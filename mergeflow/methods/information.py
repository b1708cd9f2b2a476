"""Means that weigh each value by how much a model knows of it, told by files of statistics."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from mergeflow.errors import RecipeError
from mergeflow.ir.kernels import Range
from mergeflow.methods.kernels import Given, kernel
from mergeflow.methods.registry import Model, Models, method
from mergeflow.methods.shares import shares_of, unweighted

if TYPE_CHECKING:
    import torch


def _weigh(given: Given, found: None, tiles: Sequence[torch.Tensor], begin: int, out: torch.Tensor) -> None:
    """In float64: information is as small as the squares of gradients are."""
    import torch

    total, under, plain = (torch.zeros(out.numel(), dtype=torch.float64) for _ in range(3))
    for i in range(0, len(tiles), 2):
        x, information = (tile.to(torch.float64) for tile in tiles[i : i + 2])
        weight = torch.tensor(float(given.weights[i]), dtype=torch.float64)
        plain.add_(torch.mul(x, weight))
        information = torch.mul(information, weight)
        under.add_(information)
        total.add_(torch.mul(x, information))
    none = under <= 0
    out.copy_(torch.where(none, plain, total.div_(under.masked_fill_(none, 1.0))))


FISHER = kernel(
    "fisher",
    cost=6.0,
    version=1,
    operands=("model",),
    many=True,
    result="model",
    apply=_weigh,
    ranges={"weight": Range(Fraction(0))},
    paired=True,
)


@method(FISHER)
def fisher(models: Models, information: Models) -> Model:
    """Σ wᵢFᵢxᵢ / Σ wᵢFᵢ, value by value, with Fᵢ the i-th of `information`

    Matena and Raffel 2022, "Merging models with Fisher-weighted averaging", arXiv:2111.09832. Each Fᵢ is a file like a
    model: under each tensor's name the mean of the squares of the loss's gradients, 0 or more. It is given as a source,
    so that the merge itself needs no data. Weights are written `x @ w`, 0 or more. Where Σ wᵢFᵢ is not above 0 the
    result is Σ wᵢxᵢ / Σ wᵢ. A tensor that one of the files lacks is the first model's.

    mergekit, sd-mecha and supermerger have nothing of the kind.

    Example: `fisher([a, b @ 0.5], information=[fa, fb])`
    """
    unweighted(information, "fisher's information", "the models have them")
    if len(models) != len(information):
        raise RecipeError(
            f"fisher takes as many files of information as models: {len(information)} for {len(models)}",
            hint="fisher([a, b], information=[fa, fb])",
        )
    shares = shares_of(models)
    pairs = [x for m, f in zip(models, information, strict=True) for x in (m.model, f.model)]
    return FISHER(*pairs, weights=[w for w in shares for _ in range(2)])
