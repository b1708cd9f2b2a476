"""Model Stock: how far to go from a base towards the mean of its fine-tunes, told from the angles between them."""

from __future__ import annotations

import math
from fractions import Fraction

from mergeflow.errors import RecipeError
from mergeflow.ir.kernels import Range
from mergeflow.ir.nodes import combine
from mergeflow.methods.filters import STOCK_FILTERS
from mergeflow.methods.gram import add_up, dots, finite
from mergeflow.methods.kernels import Given, Passes, kernel
from mergeflow.methods.registry import Model, Models, method
from mergeflow.methods.shares import unweighted

_SINGULAR = 1e-6


def _ratio(given: Given, passes: Passes) -> list[float]:
    """t / n for each difference. n counts those, too, that are zero everywhere and not among the operands."""
    n, here = int(given.arguments["models"]), len(given.weights)
    table = dots(passes, here)
    t = 1.0
    if finite(table):
        cosines = 0.0
        for i in range(here):
            for j in range(i):
                lengths = math.sqrt(table[i][i]) * math.sqrt(table[j][j])
                cosines += table[i][j] / lengths if lengths else 0.0
        cosine = cosines / (n * (n - 1) / 2)
        under = 1 + (n - 1) * cosine
        t = n * cosine / under if under >= _SINGULAR else 0.0
    return [t / n] * here


STOCK = kernel(
    "model_stock",
    cost=5.0,
    version=1,
    operands=("delta",),
    many=True,
    result="delta",
    measure=_ratio,
    apply=add_up,
    ranges={"models": Range(Fraction(2), whole=True)},
    symmetric=True,
    zeros=True,
)


@method(STOCK, STOCK_FILTERS)
def model_stock(base: Model, models: Models, filter_wise: bool = False) -> Model:
    """base + t·mean(xᵢ − base), t = n·cos θ / (1 + (n − 1)·cos θ), tensor by tensor

    Jang et al. 2024, "Model Stock: all we need is just a few fine-tuned models", arXiv:2403.19522. cos θ is
    the mean over all pairs of the cosine between two differences, of whole tensors; a pair with a difference of zeros
    counts 0. Where 1 + (n − 1)·cos θ is below 1e-6, t is 0. It takes two models or more, without weights.

    filter_wise=true has an angle, and so a t, for each value of the first axis ([out, in·h·w] of a convolution; a
    vector is one filter), where the paper has one for a layer; what is not finite there is averaged.

    mergekit's `model_stock`, but in float64; its filter_wise takes rows along the last axis, and where the product of
    two lengths is below 1e-6 it divides by that. sd-mecha's takes cosines along the last dimension, of neighbours in
    the list alone.

    Example: `model_stock(base, [a, b, c])`
    """
    unweighted(models, "model_stock", "the angles say how much of the models is taken")
    if len(models) < 2:
        raise RecipeError("model_stock takes two models or more", hint="base + (a - base) * 0.5 is one way for one")
    deltas = [item.model - base for item in models]
    stock = STOCK_FILTERS if filter_wise else STOCK
    return combine([base, stock(*deltas, weights=[Fraction(1)] * len(deltas), models=Fraction(len(deltas)))])
