"""A formula that has to know the whole tensor before it computes a value of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergeflow.methods.kernels import GRID, Given, Passes, kernel
from mergeflow.methods.registry import Delta, method

if TYPE_CHECKING:
    import torch


def _ratio(given: Given, passes: Passes) -> float:
    """‖like‖ / ‖delta‖, 1 where that is no number. `Running` adds up in the same order on every processor."""
    import torch

    from mergeflow.methods.sums import Running, float64

    scratch, square = torch.empty(GRID, dtype=torch.float64), torch.empty(GRID, dtype=torch.float64)
    sums = Running(), Running()
    for tiles in passes.tiles():
        for total, tile in zip(sums, tiles, strict=True):
            x = float64(tile, scratch)
            total.add(torch.mul(x, x, out=square[: x.numel()]))
    own, other = (math.sqrt(total.value()) for total in sums)
    return other / own if own else 1.0


def _stretched(given: Given, found: float, tiles: Sequence[torch.Tensor], begin: int, out: torch.Tensor) -> None:
    import torch

    torch.mul(tiles[0], torch.tensor(found, dtype=out.dtype), out=out)


LENGTH = kernel(
    "same_length",
    version=1,
    operands=("delta", "delta"),
    result="delta",
    measure=_ratio,
    apply=_stretched,
    zeros=True,
)


@method(LENGTH)
def same_length(delta: Delta, like: Delta) -> Delta:
    """delta·‖like‖ / ‖delta‖, tensor by tensor

    The direction of one difference with the length of another.

    Example: `a + same_length(b - c, a - c)`
    """
    return LENGTH(delta, like)
