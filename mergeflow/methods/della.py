"""DELLA: differences thinned out at random, where larger values are kept more often than smaller ones."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from mergeflow.errors import RecipeError
from mergeflow.ir.kernels import Range
from mergeflow.ir.nodes import combine
from mergeflow.ir.numbers import ONE, Number, decimal
from mergeflow.methods.breadcrumbs import only
from mergeflow.methods.consensus import SIGN, elected
from mergeflow.methods.kernels import Given, Passes, kernel
from mergeflow.methods.registry import Delta, Model, Models, Part, Seed, Share, Weighted, method
from mergeflow.methods.shares import weights_of
from mergeflow.methods.sparse import MATCH
from mergeflow.tensors import DType

if TYPE_CHECKING:
    import torch

_PART = Range(Fraction(0), Fraction(1), above=True)
_SEED = Range(Fraction(0), Fraction((1 << 63) - 1), whole=True)
_BITS = 8  # of a magnitude, after the leading one: what is ranked
_SHIFT = {DType.F32: 23 - _BITS, DType.F64: 52 - _BITS}


class Chances(NamedTuple):
    """By rounded magnitude: the chance to be kept as float64, and as the 32-bit number that is the first too large."""

    chance: npt.NDArray[Any]
    limit: npt.NDArray[Any]


def _chances(given: Given, passes: Passes) -> Chances:
    """Counted in one pass. Ranks over exact magnitudes would take a sort of the tensor, in memory."""
    from mergeflow.methods.selection import magnitudes

    shift, n = _SHIFT[given.compute], passes.elements
    counts = np.zeros(0, np.int64)
    for bits in magnitudes(passes, given.compute):
        here = np.bincount(bits >> shift)
        if here.size > counts.size:
            counts, here = here, counts
        counts[: here.size] += here
    below = np.cumsum(counts) - counts
    # (mean rank − ½) / n − ½ of those that count as equal, ranks from 1: (2·below + count − n) / 2n
    place = (2 * below + counts - n).astype(np.float64) / float(2 * n)
    least, most = given.arguments["least"], given.arguments["most"]
    chance = place * float(most - least) + float((least + most) / 2)
    return Chances(chance, np.rint(chance * 2.0**32).astype(np.uint64))


def _drop(given: Given, found: Chances, tiles: Sequence[torch.Tensor], begin: int, out: torch.Tensor) -> None:
    import torch

    from mergeflow.methods.selection import magnitude_bits

    index = magnitude_bits(tiles[0], given.compute) >> _SHIFT[given.compute]
    keep = _words(given, begin, out.numel()) < found.limit[index]
    values = tiles[0]
    if given.options["divide"]:
        values = torch.div(values, torch.from_numpy(found.chance.astype(out.numpy().dtype)[index]))
    only(given.compute, values, keep, out)


def _words(given: Given, begin: int, n: int) -> npt.NDArray[Any]:
    """32 random bits for each of the elements from `begin` on."""
    from blake3 import blake3

    text = f"mergeflow mask 1\ndella_drop\n{given.seed}\n{int(given.arguments['stream'])}\n{given.tensor}"
    key = np.frombuffer(blake3(text.encode()).digest()[:16], "<u8")
    first = begin // 8  # a block of Philox is 4 words of 64 bits: 8 elements
    generator = np.random.Philox(key=key, counter=first)
    words = generator.random_raw(4 * (-(-(begin + n) // 8) - first)).astype("<u8", copy=False).view("<u4")
    return words[begin - 8 * first :][:n]


DROP = kernel(
    "della_drop",
    cost=25.0,
    version=1,
    operands=("delta",),
    result="delta",
    measure=_chances,
    apply=_drop,
    ranges={"least": _PART, "most": _PART, "seed": _SEED},
    random=True,
    zeros=True,
)


@method(DROP, MATCH)
def della_drop(
    delta: Delta,
    density: Part,
    epsilon: Share,
    rescale: Literal["expected", "l1", "none"] = "expected",
    seed: Seed | None = None,
    stream: Seed = Fraction(0),
) -> Delta:
    """delta·m / p, with m = 1 at random with chance p, else 0; p rises by `epsilon` with the rank of |delta|

    MAGPRUNE: Deep et al. 2024, "DELLA-Merging", arXiv:2406.11617, section 3.1. Of n values the one of rank r (1 for
    the smallest magnitude) is kept with the chance p = density + epsilon·((r − ½)/n − ½), so that `density` is the mean
    and p goes from density − epsilon/2 to density + epsilon/2, which have to be above 0 and at most 1. Magnitudes are
    ranked by their leading nine binary digits, one more than a bfloat16 has; equal ones share their mean rank, so that
    a tensor of equals is thinned out as by `dare_drop`, which says what a mask depends on.

    rescale=expected divides each value by its chance, as the paper does; rescale=l1 multiplies each tensor so that its
    L1 norm is what it was (mergekit); rescale=none does neither.

    The paper ranks the values of a row, mergekit those along the second axis (and fails where there is none); this
    ranks those of the tensor. mergekit's epsilon is half of this one: its chances are density ± epsilon.

    Example: `base + della_drop(a - base, 0.4, epsilon=0.2)`
    """
    return dropped(delta, density, epsilon, rescale, seed, stream)


def dropped(delta: Delta, density: Number, epsilon: Number, rescale: str, seed: Number | None, stream: Number) -> Delta:
    """The body of `della_drop`, for the methods that are made of it."""
    least, most = density - epsilon / 2, density + epsilon / 2
    if isinstance(least, Fraction) and isinstance(most, Fraction) and not (_PART.holds(least) and _PART.holds(most)):
        raise RecipeError(
            f"the chances of DELLA, density ± epsilon/2, must be above 0 and at most 1, and they go from "
            f"{decimal(least)} to {decimal(most)}",
            hint="make epsilon smaller",
        )
    kept = DROP(delta, least=least, most=most, stream=stream, seed=seed, divide=rescale == "expected")
    return MATCH(kept, delta) if rescale == "l1" else kept


@method(DROP, MATCH, SIGN)
def della(
    base: Model,
    models: Models,
    density: Part,
    epsilon: Share,
    scale: Number = ONE,
    rescale: Literal["expected", "l1", "none"] = "expected",
    elect: Literal["sum", "count"] = "sum",
    normalize: bool = True,
    seed: Seed | None = None,
) -> Model:
    """base + scale·sum_sign([della_drop(x1 − base, density, epsilon), …])

    Drop, elect and fuse: Deep et al. 2024, "DELLA-Merging", arXiv:2406.11617, section 3. `scale` is its λ; weights are
    written `x @ w` and take part in the election and in the mean. The models' masks are independent: the first has
    stream 0, the second 1, and so on. The parts say what they do: `della_drop`, `sum_sign`.

    mergekit's `della` is rescale=l1 with half of this epsilon, in float32 or the tensors' dtype; its masks follow from
    the order in which it works and cannot be had again.

    Example: `della(base, [a, b], density=0.4, epsilon=0.2)`
    """
    return combine([base, elected(_kept(base, models, density, epsilon, rescale, seed), elect, normalize) * scale])


@method(DROP, MATCH)
def della_linear(
    base: Model,
    models: Models,
    density: Part,
    epsilon: Share,
    scale: Number = ONE,
    rescale: Literal["expected", "l1", "none"] = "expected",
    seed: Seed | None = None,
) -> Model:
    """base + scale·(w1·della_drop(x1 − base, density, epsilon) + w2·della_drop(x2 − base, …) + …)

    The dropping of DELLA (arXiv:2406.11617), then task arithmetic, without an election: mergekit's `della_linear`,
    with the differences that `della` has from its namesake there.

    Example: `della_linear(base, [a @ 0.5, b @ 0.5], density=0.4, epsilon=0.2)`
    """
    kept = _kept(base, models, density, epsilon, rescale, seed)
    return combine([base, *(item.model * (w * scale) for item, w in zip(kept, weights_of(kept), strict=True))])


def _kept(
    base: Model, models: Models, density: Number, epsilon: Number, rescale: str, seed: Number | None
) -> list[Weighted]:
    return [
        Weighted(dropped(item.model - base, density, epsilon, rescale, seed, Fraction(i)), item.weight)
        for i, item in enumerate(models)
    ]
