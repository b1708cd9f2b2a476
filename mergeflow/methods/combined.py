"""The well-known methods over task vectors, each defined by its parts in a line or two."""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

from mergeflow.ir.nodes import combine
from mergeflow.ir.numbers import ONE, Number
from mergeflow.methods.consensus import SIGN, elected
from mergeflow.methods.registry import Model, Models, Part, Seed, Share, Weighted, method
from mergeflow.methods.shares import weights_of
from mergeflow.methods.sparse import DROP, MATCH, TRIM, dropped


@method(TRIM, SIGN)
def ties(
    base: Model,
    models: Models,
    density: Share = Fraction(1, 5),
    scale: Number = ONE,
    elect: Literal["sum", "count"] = "sum",
    normalize: bool = True,
) -> Model:
    """base + scale·sum_sign([ties_trim(x1 − base, density), …])

    Trim, elect sign and merge: Yadav et al. 2023, "TIES-Merging", arXiv:2306.01708. `density` is the share of values
    kept (the paper's top-k %, which is 20), `scale` its λ. Weights are written `x @ w`; they take part in the election
    and in the mean. The parts say what they do: `ties_trim`, `sum_sign`.

    As mergekit's `ties` (normalize=true there, too; its density is 1 unless given) but for values that are as large as
    the smallest kept one, of which mergekit keeps only some. sd-mecha's elects by count unless told otherwise:
    elect=count.

    Example: `ties(base, [a, b @ 0.5], density=0.3)`
    """
    trimmed = [Weighted(TRIM(item.model - base, density=density), item.weight) for item in models]
    return combine([base, elected(trimmed, elect, normalize) * scale])


@method(DROP, MATCH)
def dare(
    base: Model,
    models: Models,
    density: Part,
    scale: Number = ONE,
    rescale: Literal["expected", "l1", "none"] = "expected",
    seed: Seed | None = None,
) -> Model:
    """base + scale·(w1·dare_drop(x1 − base, density) + w2·dare_drop(x2 − base, density) + …)

    Drop and rescale, then task arithmetic: Yu et al. 2023, "Language Models are Super Mario", arXiv:2311.03099.
    `density` is the share of values kept, 1 − p in the paper. The models' masks are independent: the first has stream
    0, the second 1, and so on. `dare_drop` says what a mask depends on, and what `rescale` does.

    mergekit's `dare_linear` is rescale=l1, in float32 or the tensors' dtype; its masks follow from the order in which
    it works and cannot be had again.

    Example: `dare(base, [a @ 0.5, b @ 0.5], density=0.3, seed=1)`
    """
    kept = [dropped(item.model - base, density, rescale, seed, Fraction(i)) for i, item in enumerate(models)]
    return combine([base, *(delta * (w * scale) for delta, w in zip(kept, weights_of(models), strict=True))])
