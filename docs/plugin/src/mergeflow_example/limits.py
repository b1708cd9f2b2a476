"""A formula of each value by itself."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from mergeflow.ir.kernels import Range
from mergeflow.ir.numbers import Number
from mergeflow.methods.kernels import Given, kernel
from mergeflow.methods.registry import Delta, method

if TYPE_CHECKING:
    import torch


def _softened(given: Given, found: None, tiles: Sequence[torch.Tensor], begin: int, out: torch.Tensor) -> None:
    """Written into `out`, from `tiles`, which are to be read only; torch is imported here, since planning has none."""
    import torch

    most = torch.tensor(float(given.arguments["most"]), dtype=out.dtype)
    torch.abs(tiles[0], out=out)
    out.add_(most)
    torch.div(tiles[0], out, out=out)
    out.mul_(most)


SOFT = kernel(
    "soft_limit",
    version=1,  # to be raised when the same values would give other bytes
    operands=("delta",),
    result="delta",
    apply=_softened,
    ranges={"most": Range(Fraction(0), above=True)},
    zeros=True,  # of a difference of zeros it makes zeros
)


@method(SOFT)
def soft_limit(delta: Delta, most: Number) -> Delta:
    """delta·most / (|delta| + most), value by value

    No value of the result is as large as `most`; small ones stay nearly as they are. `limit` is the hard form.

    Example: `a + soft_limit(b - c, 0.05)`
    """
    return SOFT(delta, most=most)
