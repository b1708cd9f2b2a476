"""Consensus of differences: where they disagree about the direction of a value, the majority decides."""

from __future__ import annotations

from collections.abc import Sequence
from math import lcm
from typing import TYPE_CHECKING, Literal

from mergeflow.methods.compiled import Compiled, Elect
from mergeflow.methods.kernels import Given, kernel
from mergeflow.methods.registry import Delta, Deltas, Weighted, method
from mergeflow.methods.shares import weights_of

if TYPE_CHECKING:
    import torch


def _elect(given: Given, found: None, tiles: Sequence[torch.Tensor], begin: int, out: torch.Tensor) -> None:
    """With integer weights over one denominator, which the mean does not need."""
    import torch

    over = lcm(*(w.denominator for w in given.weights))
    shares = [float(w * over) for w in given.weights]
    weighed = [x if n == 1 else x.mul(torch.tensor(n, dtype=x.dtype)) for x, n in zip(tiles, shares, strict=True)]
    by_count = given.options["elect"] == "count"
    sign = torch.sign(weighed[0]) if by_count else weighed[0].clone()
    for x in weighed[1:]:
        sign.add_(torch.sign(x) if by_count else x)
    sign.sign_()
    out.zero_()
    mean, count, agree = bool(given.options["normalize"]), torch.zeros_like(out), torch.empty_like(out)
    for x, n in zip(weighed, shares, strict=True):
        torch.mul(x, sign, out=agree).relu_()  # |x| where x has the elected sign, else 0
        out.add_(agree)
        if mean:
            agree.sign_()
            count.add_(agree if n == 1 else agree.mul_(torch.tensor(abs(n), dtype=agree.dtype)))
    if mean:
        out.div_(count.clamp_(min=min((abs(n) for n in shares if n), default=1.0)))  # nobody agrees: 0 / something
    elif over != 1:
        out.div_(torch.tensor(float(over), dtype=out.dtype))
    out.mul_(sign).add_(0.0)  # processors differ in the sign of a zero that relu gives; the sum has one


def _as_election(given: Given, found: None) -> Elect:
    over = lcm(*(w.denominator for w in given.weights))
    shares = tuple([float(w * over) for w in given.weights])
    return Elect(shares, float(over), given.options["elect"] == "count", bool(given.options["normalize"]))


SIGN = kernel(
    "sum_sign",
    cost=4.0,
    version=1,
    operands=("delta",),
    many=True,
    result="delta",
    apply=_elect,
    compiled=Compiled(_as_election),
    symmetric=True,
    zeros=True,
)


@method(SIGN)
def sum_sign(deltas: Deltas, elect: Literal["sum", "count"] = "sum", normalize: bool = True) -> Delta:
    """the mean of those deltas whose value has the elected sign: sgn(Σ wᵢδᵢ), value by value

    Sign election and disjoint mean of TIES: Yadav et al. 2023, arXiv:2306.01708, section 4. Weights are written
    `x @ w`, 1 where none is given: Σ wᵢδᵢ / Σ |wᵢ| over the wᵢδᵢ that agree (and are not 0); with normalize=false the
    sum alone. Where Σ wᵢδᵢ is 0, no sign is elected, and the result is 0.

    elect=sum: the sign of the sum, as in the paper (mergekit's default; sd-mecha's vote_sgn=True). elect=count: the
    sign that more of the deltas have (mergekit's `count`; what sd-mecha does unless told otherwise). Where no sign is
    elected here, mergekit takes the positive ones.

    Example: `base + sum_sign([(a - base), (b - base) @ 0.5])`
    """
    return elected(deltas, elect, normalize)


def elected(deltas: Sequence[Weighted], elect: str, normalize: bool) -> Delta:
    """The body of `sum_sign`, for the methods that are made of it."""
    return SIGN(*(item.model for item in deltas), weights=weights_of(deltas), elect=elect, normalize=normalize)
