"""DARE under the names that mergekit gives its combinations."""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

from mergeflow.ir.nodes import combine
from mergeflow.ir.numbers import ONE, Number
from mergeflow.methods.combined import dare
from mergeflow.methods.consensus import SIGN, elected
from mergeflow.methods.registry import Model, Models, Part, Seed, Weighted, method
from mergeflow.methods.sparse import DROP, MATCH, dropped


@method(DROP, MATCH, SIGN)
def dare_ties(
    base: Model,
    models: Models,
    density: Part,
    scale: Number = ONE,
    rescale: Literal["expected", "l1", "none"] = "expected",
    elect: Literal["sum", "count"] = "sum",
    normalize: bool = True,
    seed: Seed | None = None,
) -> Model:
    """base + scale·sum_sign([dare_drop(x1 − base, density), …])

    The dropping of DARE (Yu et al. 2023, arXiv:2311.03099) in the place of the trimming of TIES (arXiv:2306.01708),
    then its election and mean. Weights are written `x @ w`. The models' masks are independent: the first has stream 0,
    the second 1, and so on. The parts say what they do: `dare_drop`, `sum_sign`.

    mergekit's `dare_ties` is rescale=l1, normalize=false, in float32 or the tensors' dtype; its masks cannot be had
    again. sd-mecha's add_ties_with_dare with k=1 and apply_stock=True, which leaves out what that says, is elect=count,
    in float32; its probability is 1 − density.

    Example: `dare_ties(base, [a, b @ 0.7], density=0.4)`
    """
    kept = [
        Weighted(dropped(item.model - base, density, rescale, seed, Fraction(i)), item.weight)
        for i, item in enumerate(models)
    ]
    return combine([base, elected(kept, elect, normalize) * scale])


@method(DROP, MATCH)
def dare_linear(
    base: Model,
    models: Models,
    density: Part,
    scale: Number = ONE,
    rescale: Literal["expected", "l1", "none"] = "expected",
    seed: Seed | None = None,
) -> Model:
    """base + scale·(w1·dare_drop(x1 − base, density) + w2·dare_drop(x2 − base, density) + …)

    Another name of `dare` (arXiv:2311.03099), the one that mergekit has: the same file. mergekit's own is rescale=l1,
    in float32 or the tensors' dtype.

    Example: `dare_linear(base, [a @ 0.5, b @ 0.5], density=0.3, rescale=l1)`
    """
    return dare(base, models, density, scale, rescale, seed)
