"""A method that is made of others: no kernel of its own, so the parts are what is computed, and kept."""

from __future__ import annotations

from fractions import Fraction

from mergeflow.ir.nodes import combine
from mergeflow.ir.numbers import ONE, Number
from mergeflow.methods.consensus import SIGN, elected
from mergeflow.methods.registry import Model, Models, Weighted, method
from mergeflow_example.limits import SOFT


@method(SOFT, SIGN)
def gentle_ties(base: Model, models: Models, most: Number = Fraction(1, 20), scale: Number = ONE) -> Model:
    """base + scale·sum_sign([soft_limit(x1 − base, most), …])

    The election and the mean of TIES (arXiv:2306.01708) over differences whose large values are softened, in the place
    of trimming the small ones. Weights are written `x @ w`.

    Example: `gentle_ties(a, [b @ 0.7, c], most=0.1)`
    """
    softened = [Weighted(SOFT(item.model - base, most=most), item.weight) for item in models]
    return combine([base, elected(softened, "sum", True) * scale])
