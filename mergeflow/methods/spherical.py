"""Interpolation along an arc: from one model to another without passing closer to zero than either."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

from mergeflow.ir.kernels import Range
from mergeflow.ir.numbers import ONE, Number
from mergeflow.methods.compiled import Compiled, Dots, Sum
from mergeflow.methods.gram import Table
from mergeflow.methods.kernels import GRID, Given, Passes, kernel
from mergeflow.methods.registry import Model, Share, method

if TYPE_CHECKING:
    import torch

Shares = tuple[float, float]  # of a and of b
STRAIGHT = 1 - Fraction(1, 1 << 46)  # a cosine above that, or its negative: there is no angle, but for rounding


def _shares(given: Given, passes: Passes) -> Shares:
    import torch

    from mergeflow.methods.sums import Running, float64

    left, right, product = (torch.empty(GRID, dtype=torch.float64) for _ in range(3))
    dots = Running(), Running(), Running()
    for x, y in passes.tiles():
        a, b, p = float64(x, left), float64(y, right), product[: x.numel()]
        for total, one, other in zip(dots, (a, b, a), (a, b, b), strict=True):
            total.add(torch.mul(one, other, out=p))
    aa, bb, ab = (total.value() for total in dots)
    return _shares_of(given, aa, bb, ab)


def _shares_of(given: Given, aa: float, bb: float, ab: float) -> Shares:
    above = min(given.arguments["lerp_above"], STRAIGHT)
    return shares(aa, bb, ab, given.arguments["t"], above, given.options["norm"] == "lerp")


def _as_sum(given: Given, table: Table) -> Sum:
    one, other = _shares_of(given, table[0][0], table[1][1], table[0][1])
    return Sum(((0, one), (1, other)))


def shares(aa: float, bb: float, ab: float, t: Fraction, lerp_above: Fraction, mix_lengths: bool) -> Shares:
    """What to multiply a and b with, given their dot products. Linear where there is no angle between them."""
    from mergeflow.methods.angles import mixed_length, quotient, slerp_shares

    line = float(1 - t), float(t)
    if not all(map(math.isfinite, (aa, bb, ab))) or not aa or not bb:
        return line
    cosine = quotient(ab, aa, bb)
    if abs(cosine) >= 1 or abs(Fraction(cosine)) > lerp_above:
        return line
    one, other = slerp_shares(cosine, t)
    if not mix_lengths:
        return float(one), float(other)
    first, second = mixed_length(aa, bb, t)
    return float(one * first), float(other * second)


def _mix(given: Given, found: Shares, tiles: Sequence[torch.Tensor], begin: int, out: torch.Tensor) -> None:
    import torch

    torch.mul(tiles[0], torch.tensor(found[0], dtype=out.dtype), out=out)
    out.add_(torch.mul(tiles[1], torch.tensor(found[1], dtype=out.dtype)))


SLERP = kernel(
    "slerp",
    cost=2.0,
    version=2,
    operands=("model", "model"),
    result="model",
    measure=_shares,
    apply=_mix,
    compiled=Compiled(_as_sum, lambda given: Dots()),
    ranges={"lerp_above": Range(Fraction(0), Fraction(1))},
    same=True,
)


@method(SLERP)
def slerp(a: Model, b: Model, t: Number, norm: Literal["own", "lerp"] = "own", lerp_above: Share = ONE) -> Model:
    """(sin((1 − t)Ω)·a + sin(tΩ)·b) / sin Ω, with Ω the angle between a and b, tensor by tensor

    Shoemake 1985, "Animating rotation with quaternion curves". t is the share of b. Where there is no angle (a tensor
    of zeros; equal or opposite directions, |cos Ω| above 1 − 2⁻⁴⁶) the result is a·(1 − t) + b·t.

    norm=own takes the tensors as they are (mergekit); norm=lerp takes their directions, and the length
    (1 − t)‖a‖ + t‖b‖ (sd-mecha). lerp_above=0.9995 is linear, too, where |cos Ω| is above that, which it is for most
    pairs of fine-tunes (mergekit).

    Example: `slerp(a, b, 0.3)`
    """
    return SLERP(a, b, t=t, norm=norm, lerp_above=lerp_above)
