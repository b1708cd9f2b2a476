"""Making a difference sparse: keeping the largest values of a tensor, or a random part of them."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import floor, isfinite
from typing import TYPE_CHECKING, Literal

import numpy as np

from mergeflow.ir.kernels import Range
from mergeflow.ir.numbers import Number
from mergeflow.methods.compiled import Compiled, Drop, Lengths, Rank, Sum, Trim
from mergeflow.methods.kernels import Given, Passes, kernel
from mergeflow.methods.masks import mask
from mergeflow.methods.registry import Delta, Part, Seed, Share, method
from mergeflow.tensors import DType

if TYPE_CHECKING:
    import torch

_SHARE = Range(Fraction(0), Fraction(1))
_SEED = Range(Fraction(0), Fraction((1 << 63) - 1), whole=True)


def _wanted(given: Given) -> Rank | None:
    """The magnitude that is the least to be kept, where there is a question."""
    density, n = given.arguments["density"], given.elements
    k = max(1, floor(density * n))
    return Rank(k) if density and k < n else None


def _above(given: Given, least: int | None) -> float | None:
    """The largest number that is too small to be kept; None: nothing is kept; -1: everything is."""
    from mergeflow.methods.selection import value_of

    if not given.arguments["density"]:
        return None
    return value_of(least - 1, given.compute) if least else -1.0


def _threshold(given: Given, passes: Passes) -> float | None:
    from mergeflow.methods.selection import kth_magnitude

    wanted = _wanted(given)
    return _above(given, None if wanted is None else kth_magnitude(passes, wanted.k, given.compute))


def _keep(given: Given, found: float | None, tiles: Sequence[torch.Tensor], begin: int, out: torch.Tensor) -> None:
    import torch

    if found is None:
        out.zero_()
    elif found < 0:
        out.copy_(tiles[0])
    else:
        torch.hardshrink(tiles[0], found, out=out)  # zero where the magnitude is at most `found`; NaN stays


TRIM = kernel(
    "ties_trim",
    cost=8.0,
    version=1,
    operands=("delta",),
    result="delta",
    measure=_threshold,
    apply=_keep,
    compiled=Compiled(lambda given, least: Trim(_above(given, least)), _wanted),
    ranges={"density": _SHARE},
    zeros=True,
)


@method(TRIM)
def ties_trim(delta: Delta, density: Share) -> Delta:
    """delta where |delta| is among the `density` share of largest ones of its tensor, else 0

    The trimming of TIES: Yadav et al. 2023, arXiv:2306.01708, section 4. Of a tensor of n values those
    max(1, ⌊density·n⌋) of largest magnitude are kept, none when the density is 0. All values as large as the last of
    them are kept too, so that nothing depends on an order among equals. NaN counts as larger than any number.

    The paper ranks all values of a model together; this, as other merge tools do, those of each tensor. mergekit keeps
    one of several equal values, by the order its sort happens to give. sd-mecha keeps one more, n − ⌊(1 − k)·n⌋ + 1.

    Example: `base + ties_trim(a - base, 0.2)`
    """
    return TRIM(delta, density=density)


def _name(given: Given) -> bytes:
    from blake3 import blake3

    text = f"mergeflow mask 2\ndare_drop\n{given.seed}\n{int(given.arguments['stream'])}\n{given.tensor}"
    return blake3(text.encode()).digest()


def _drop(given: Given, found: None, tiles: Sequence[torch.Tensor], begin: int, out: torch.Tensor) -> None:
    keep = mask(_name(given), given.arguments["density"], begin, out.numel())
    bits = np.int32 if given.compute is DType.F32 else np.int64
    every = np.negative(keep.view(np.int8), dtype=np.int8)  # all bits where kept, none where not
    np.bitwise_and(tiles[0].numpy().view(bits), every, out=out.numpy().view(bits))


DROP = kernel(
    "dare_drop",
    cost=4.0,
    version=2,
    operands=("delta",),
    result="delta",
    apply=_drop,
    compiled=Compiled(lambda given, found: Drop(_name(given), given.arguments["density"])),
    ranges={"density": Range(Fraction(0), Fraction(1), above=True), "seed": _SEED},
    random=True,
    zeros=True,
)


def _norms(given: Given, passes: Passes) -> float:
    """‖delta‖₁ / ‖kept‖₁; 1 where that is no number."""
    import torch

    from mergeflow.methods.kernels import GRID
    from mergeflow.methods.sums import Running, float64

    scratch = torch.empty(GRID, dtype=torch.float64)
    kept, whole = Running(), Running()
    for sparse, dense in passes.tiles():
        kept.add(float64(sparse, scratch).abs())
        whole.add(float64(dense, scratch).abs())
    return _ratio(kept.value(), whole.value())


def _ratio(kept: float, whole: float) -> float:
    ratio = whole / kept if kept else 1.0
    return ratio if isfinite(ratio) else 1.0


def _scale(given: Given, found: float, tiles: Sequence[torch.Tensor], begin: int, out: torch.Tensor) -> None:
    import torch

    torch.mul(tiles[0], torch.tensor(found, dtype=out.dtype), out=out)


MATCH = kernel(
    "match_l1",
    version=2,
    operands=("delta", "delta"),
    result="delta",
    measure=_norms,
    apply=_scale,
    compiled=Compiled(lambda given, lengths: Sum(((0, _ratio(*lengths)),)), lambda given: Lengths()),
    zeros=True,
)


@method(MATCH)
def match_l1(kept: Delta, delta: Delta) -> Delta:
    """kept · ‖delta‖₁ / ‖kept‖₁, tensor by tensor

    Gives what was made sparse the mean magnitude of what it was made of: mergekit's `rescale` (there is no paper).
    Where nothing was kept the result is 0; where a value of the tensor is not finite, what was kept stays as it is.

    Example: `base + match_l1(ties_trim(a - base, 0.2), a - base)`
    """
    return MATCH(kept, delta)


@method(DROP, MATCH)
def dare_drop(
    delta: Delta,
    density: Part,
    rescale: Literal["expected", "l1", "none"] = "expected",
    seed: Seed | None = None,
    stream: Seed = Fraction(0),
) -> Delta:
    """delta·m / density, with m = 1 for a random `density` share of the values and 0 for the others

    Drop and rescale: Yu et al. 2023, "Language Models are Super Mario", arXiv:2311.03099, section 3.2, where the drop
    rate p is 1 − density. Whether a value is kept depends on the seed (the recipe's `options: { seed: … }` when none is
    given), the stream, the tensor's name and the position in the tensor, and on nothing else; differences that are to
    be thinned out independently are given streams of their own.

    rescale=expected divides by the density, as the paper does; rescale=l1 multiplies each tensor so that its L1 norm is
    what it was (mergekit); rescale=none does neither.

    Example: `base + dare_drop(a - base, 0.3) + dare_drop(b - base, 0.3, stream=1)`
    """
    return dropped(delta, density, rescale, seed, stream)


def dropped(delta: Delta, density: Number, rescale: str, seed: Number | None, stream: Number) -> Delta:
    """The body of `dare_drop`, for the methods that are made of it."""
    kept = DROP(delta, density=density, stream=stream, seed=seed)
    if rescale == "l1":
        return MATCH(kept, delta)
    return kept * (1 / density) if rescale == "expected" else kept
