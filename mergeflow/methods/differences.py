"""What two models learned since a third, put together value by value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from mergeflow.ir.kernels import Range
from mergeflow.ir.nodes import combine
from mergeflow.ir.numbers import ONE, Number
from mergeflow.methods.kernels import GRID, Given, Passes, kernel
from mergeflow.methods.registry import Model, Share, method

if TYPE_CHECKING:
    import torch

_SHARE = Range(Fraction(0), Fraction(1))
_STRENGTH = Fraction(9, 5)  # supermerger's number, and so everybody's


def _untrained(given: Given, found: None, tiles: Sequence[torch.Tensor], begin: int, out: torch.Tensor) -> None:
    import torch

    learned, gap = tiles
    torch.abs(gap, out=out)
    total = learned.abs().add_(out)
    out.div_(total.masked_fill_(total == 0, 1.0)).mul_(learned).add_(0.0)


TRAIN = kernel(
    "train_difference",
    cost=4.0,
    version=1,
    operands=("delta", "delta"),
    result="delta",
    apply=_untrained,
    zeros=True,
)


@method(TRAIN)
def train_difference(a: Model, b: Model, c: Model, m: Number = ONE) -> Model:
    """a + 1.8·m·(b − c)·|b − a| / (|b − a| + |b − c|), value by value

    An add difference (arXiv:2212.04089) that adds less of what a has learned already: supermerger's calculation mode
    trainDifference, and sd-mecha's train_difference_mask as the share of an add difference. It has no paper; the 1.8 is
    supermerger's. Where b is both a and c, nothing is added.

    supermerger rounds b − c to b's dtype first, as its other modes do, and sd-mecha rounds the mask to float32; nothing
    is rounded here.

    Example: `train_difference(a, b, base)`
    """
    return combine([a, TRAIN(b - c, b - a) * (m * _STRENGTH)])


def _similar(given: Given, found: None, tiles: Sequence[torch.Tensor], begin: int, out: torch.Tensor) -> None:
    """As sgn(a·b)·min/max of the magnitudes, which neither overflows nor vanishes where a·b would."""
    import torch

    delta, a, b = tiles
    sizes = a.abs(), b.abs()
    large = torch.maximum(*sizes)
    empty = large == 0
    torch.div(torch.minimum(*sizes), large, out=out)
    out.mul_(torch.sign(a)).mul_(torch.sign(b)).masked_fill_(empty, 1.0)
    out.add_(1.0).mul_(torch.tensor(float(given.arguments["n"] / 2), dtype=out.dtype)).mul_(delta).add_(0.0)


SIMILAR = kernel(
    "similar_part",
    cost=4.0,
    version=1,
    operands=("delta", "model", "model"),
    result="delta",
    apply=_similar,
    ranges={"n": _SHARE},
    zeros=True,
)


@method(SIMILAR)
def similarity_add_difference(a: Model, b: Model, c: Model, m: Number = ONE, n: Share = ONE) -> Model:
    """(1 − s)·(a + (b − c)·m) + s·(a·(1 − m/2) + b·m/2), with s = n·(a·b / max(|a|, |b|)² + 1) / 2, value by value

    An add difference (arXiv:2212.04089) that turns into a weighted sum where a and b are alike: meh's
    similarity_add_difference, with its alpha as m and its beta as n; it has no paper. Where a and b are both 0 they are
    alike, s = n.

    Computed as a + m·((b − c) − s·((a + b)/2 − c)), which is the same.

    Example: `similarity_add_difference(a, b, base, 0.5)`
    """
    half = Fraction(1, 2)
    alike = SIMILAR(combine([a * half, b * half, -c]), a, b, n=n)
    return combine([a, (b - c) * m, alike * -m])


class Lengths(NamedTuple):
    """1/‖p‖ and 1/‖q‖ (0 of nothing), and what the mixed direction is multiplied with."""

    p: float
    q: float
    to: float


def _lengths(given: Given, passes: Passes) -> Lengths | None:
    """None where a value is not finite.

    ‖d‖² is (1 − m)·[p is not 0] + m·[q is not 0], and ‖s‖² follows from dot products: nothing else has to be added
    up."""
    import torch

    from mergeflow.methods.sums import Running, float64

    m = float(given.arguments["m"])
    buffers = [torch.empty(GRID, dtype=torch.float64) for _ in range(4)]
    dots = Running(), Running(), Running()
    for x, y in passes.tiles():
        p, q = float64(x, buffers[0]), float64(y, buffers[1])
        s, product = (buffer[: x.numel()] for buffer in buffers[2:])
        torch.mul(p, 1 - m, out=s)
        s.add_(torch.mul(q, m, out=product))
        for total, values in zip(dots, (p, q, s), strict=True):
            total.add(torch.mul(values, values, out=product))
    pp, qq, ss = (total.value() for total in dots)
    if not all(map(math.isfinite, (pp, qq, ss))):
        return None
    left = (1 - m if pp else 0.0) + (m if qq else 0.0)
    to = math.sqrt(ss) / math.sqrt(left) if left else 0.0
    return Lengths(1 / math.sqrt(pp) if pp else 0.0, 1 / math.sqrt(qq) if qq else 0.0, to)


def _euclidean(
    given: Given, found: Lengths | None, tiles: Sequence[torch.Tensor], begin: int, out: torch.Tensor
) -> None:
    import torch

    def number(value: float) -> torch.Tensor:
        return torch.tensor(value, dtype=out.dtype)

    m = given.arguments["m"]
    shares = number(float(1 - m)), number(float(m))
    if found is None:
        torch.mul(tiles[0], shares[0], out=out).add_(torch.mul(tiles[1], shares[1])).add_(0.0)
        return
    torch.mul(tiles[0], number(found.p), out=out)
    out.mul_(out).mul_(shares[0])
    other = torch.mul(tiles[1], number(found.q))
    out.add_(other.mul_(other).mul_(shares[1])).sqrt_().mul_(number(found.to))
    torch.mul(tiles[0], shares[0], out=other)
    other.add_(torch.mul(tiles[1], shares[1])).sign_()
    out.mul_(other).add_(0.0)


EUCLIDEAN = kernel(
    "euclidean_mix",
    cost=7.0,
    version=2,
    operands=("delta", "delta"),
    result="delta",
    measure=_lengths,
    apply=_euclidean,
    ranges={"m": _SHARE},
    same=True,
)


@method(EUCLIDEAN)
def euclidean_add_difference(a: Model, b: Model, c: Model, m: Share) -> Model:
    """c + d·‖s‖/‖d‖, d = sgn(s)·√((1 − m)·(p/‖p‖)² + m·(q/‖q‖)²), s = (1 − m)·p + m·q, p = a − c, q = b − c

    Directions of two task vectors (arXiv:2212.04089) mixed by their squares, with the signs and the length of their
    weighted sum, tensor by tensor: meh's euclidean_add_difference; it has no paper. A difference that is zero
    everywhere has no direction and adds nothing to d. Where s is 0 the result is c's value. A tensor with a value that
    is not finite is c + s.

    The result's tensors and dtypes are those of c.

    Example: `euclidean_add_difference(a, b, base, 0.5)`
    """
    return combine([c, EUCLIDEAN(a - c, b - c, m=m)])


def _multiplied(given: Given, found: None, tiles: Sequence[torch.Tensor], begin: int, out: torch.Tensor) -> None:
    import numpy as np
    import torch

    from mergeflow.methods.powers import power

    m, n = given.arguments["m"], given.arguments["n"]
    p, q = (np.abs(tile.numpy().astype(np.float64)) for tile in tiles)
    with np.errstate(invalid="ignore"):  # 0·∞ is no number
        size = power(p, float(1 - m)) * power(q, float(m))
    sign = torch.mul(tiles[0], torch.tensor(float(1 - n), dtype=out.dtype))
    sign.add_(torch.mul(tiles[1], torch.tensor(float(n), dtype=out.dtype))).sign_()
    out.copy_(torch.from_numpy(size)).mul_(sign).add_(0.0)


MULTIPLIED = kernel(
    "multiply_mix",
    cost=70.0,
    version=1,
    operands=("delta", "delta"),
    result="delta",
    apply=_multiplied,
    ranges={"m": _SHARE, "n": _SHARE},
    same=True,
)


@method(MULTIPLIED)
def multiply_difference(a: Model, b: Model, c: Model, m: Share, n: Share = Fraction(1, 2)) -> Model:
    """c + sgn((1 − n)·p + n·q)·|p|^(1 − m)·|q|^m, with p = a − c and q = b − c, value by value

    The weighted geometric mean of two task vectors (arXiv:2212.04089), with the signs of their weighted sum: meh's
    multiply_difference, with its alpha as m and its beta as n; it has no paper. What one of the two has not changed
    stays as it is in c, unless m is 0 or 1. Powers are computed so that they have the same bits everywhere.

    The result's tensors and dtypes are those of c.

    Example: `multiply_difference(a, b, base, 0.5)`
    """
    return combine([c, MULTIPLIED(a - c, b - c, m=m, n=n)])
