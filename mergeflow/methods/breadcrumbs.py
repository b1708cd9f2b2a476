"""Model Breadcrumbs: differences without their largest values, which are outliers, and without the smallest."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import floor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mergeflow.ir.kernels import Range
from mergeflow.ir.nodes import combine
from mergeflow.ir.numbers import ONE, Number
from mergeflow.methods.consensus import SIGN, elected
from mergeflow.methods.kernels import Given, Passes, kernel
from mergeflow.methods.registry import Delta, Model, Models, Share, Weighted, method
from mergeflow.methods.shares import weights_of
from mergeflow.methods.sparse import MATCH
from mergeflow.tensors import DType

if TYPE_CHECKING:
    import torch

_SHARE = Range(Fraction(0), Fraction(1))
_OUTLIERS = Fraction(1, 100)


class Band(NamedTuple):
    """The magnitudes that are kept, as bits, both included."""

    low: int
    high: int


def _band(given: Given, passes: Passes) -> Band | None:
    """None: nothing is kept."""
    from mergeflow.methods.selection import kth_magnitude

    density, n = given.arguments["density"], passes.elements
    dropped = floor(given.arguments["gamma"] * n)
    if not density or dropped >= n:
        return None
    last = min(n, dropped + max(1, floor(density * n)))
    low = 0 if last == n else kth_magnitude(passes, last, given.compute)
    return Band(low, kth_magnitude(passes, dropped + 1, given.compute))


def _keep(given: Given, found: Band | None, tiles: Sequence[torch.Tensor], begin: int, out: torch.Tensor) -> None:
    from mergeflow.methods.selection import magnitude_bits

    if found is None:
        out.zero_()
        return
    size = magnitude_bits(tiles[0], given.compute)
    only(given.compute, tiles[0], (size >= found.low) & (size <= found.high), out)


def only(compute: DType, values: torch.Tensor, keep: Any, out: torch.Tensor) -> None:
    """The values where `keep` (booleans of numpy, as many) is true, bit for bit, else +0."""
    bits = np.int32 if compute is DType.F32 else np.int64
    mask = np.negative(keep.view(np.int8), dtype=np.int8)  # all bits where kept, none where not
    np.bitwise_and(values.numpy().view(bits), mask, out=out.numpy().view(bits))


BAND = kernel(
    "breadcrumbs_trim",
    cost=12.0,
    version=1,
    operands=("delta",),
    result="delta",
    measure=_band,
    apply=_keep,
    ranges={"density": _SHARE, "gamma": _SHARE},
    zeros=True,
)


@method(BAND)
def breadcrumbs_trim(delta: Delta, density: Share, gamma: Share = _OUTLIERS) -> Delta:
    """delta where |delta| is among the `density` share that follows its `gamma` share of largest ones, else 0

    The mask of Model Breadcrumbs: Davari and Belilovsky 2023, arXiv:2312.06795, section 3, tensor by tensor. Of n
    values the ⌊gamma·n⌋ of largest magnitude are dropped as outliers, the max(1, ⌊density·n⌋) that follow are kept,
    and the small rest is dropped; nothing is kept when the density is 0 or gamma 1. Values as large as the first or
    the last one kept are kept too, so that nothing depends on an order among equals. NaN counts as larger than any
    number, so it is an outlier like others.

    As mergekit's but for those equal values, for a share of less than one value (mergekit keeps none), and where
    density + gamma is above 1: there mergekit keeps outliers to have its share, and this drops them.

    Example: `base + breadcrumbs_trim(a - base, 0.85, gamma=0.05)`
    """
    return BAND(delta, density=density, gamma=gamma)


@method(BAND, MATCH)
def breadcrumbs(
    base: Model,
    models: Models,
    density: Share,
    gamma: Share = _OUTLIERS,
    scale: Number = ONE,
    rescale: bool = False,
) -> Model:
    """base + scale·(w1·breadcrumbs_trim(x1 − base, density, gamma) + w2·breadcrumbs_trim(x2 − base, …) + …)

    Davari and Belilovsky 2023, "Model Breadcrumbs", arXiv:2312.06795. `density` is the share of values kept, `gamma`
    the share of largest ones dropped; weights are written `x @ w`. `breadcrumbs_trim` says which values are kept.

    rescale=true gives each trimmed difference the L1 norm it had (`match_l1`), as mergekit's `breadcrumbs` does when
    asked; its density is 1 unless given.

    Example: `breadcrumbs(base, [a @ 0.6, b @ 0.4], density=0.85, gamma=0.05)`
    """
    kept = _kept(base, models, density, gamma, rescale)
    return combine([base, *(item.model * (w * scale) for item, w in zip(kept, weights_of(kept), strict=True))])


@method(BAND, MATCH, SIGN)
def breadcrumbs_ties(
    base: Model,
    models: Models,
    density: Share,
    gamma: Share = _OUTLIERS,
    scale: Number = ONE,
    rescale: bool = False,
    normalize: bool = True,
) -> Model:
    """base + scale·sum_sign([breadcrumbs_trim(x1 − base, density, gamma), …])

    The mask of Model Breadcrumbs (arXiv:2312.06795) with the election and the mean of TIES (arXiv:2306.01708), as
    mergekit combines them; its normalize is false unless given.

    Example: `breadcrumbs_ties(base, [a, b], density=0.85)`
    """
    return combine([base, elected(_kept(base, models, density, gamma, rescale), "sum", normalize) * scale])


def _kept(base: Model, models: Models, density: Number, gamma: Number, rescale: bool) -> list[Weighted]:
    found = []
    for item in models:
        delta = item.model - base
        kept = BAND(delta, density=density, gamma=gamma)
        found.append(Weighted(MATCH(kept, delta) if rescale else kept, item.weight))
    return found
