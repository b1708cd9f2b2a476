"""Sums over a whole tensor that have the same bits on every processor.

A sum over a tile by torch or numpy is taken in as many lanes as the processor's vectors are wide, so its last bits
differ from machine to machine. Here tiles are added onto one tile of running sums, element by element, in float64, and
what is left is folded in halves: elementwise additions only, whose result IEEE 754 defines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergeflow.methods.kernels import GRID

if TYPE_CHECKING:
    import torch


class Running:
    """A sum of tiles of at most GRID float64 elements each, in the order they come."""

    def __init__(self) -> None:
        import torch

        self._total = torch.zeros(GRID, dtype=torch.float64)

    def add(self, tile: torch.Tensor) -> None:
        self._total[: tile.numel()].add_(tile)

    def value(self) -> float:
        """The sum of all; nothing can be added after."""
        left = self._total
        while left.numel() > 1:
            half = left.numel() // 2  # GRID is a power of two
            left = left[:half].add_(left[half:])
        return float(left[0])


def float64(tile: torch.Tensor, scratch: torch.Tensor) -> torch.Tensor:
    """The tile's values as float64, in `scratch` where they are not already."""
    import torch

    return tile if tile.dtype is torch.float64 else scratch[: tile.numel()].copy_(tile)
