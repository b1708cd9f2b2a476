"""Dot products of all pairs of operands, and sums with the shares that are found from them.

What a mean on a sphere, a geometric median or Model Stock has to know of tensors are their lengths and the angles
between them; what it makes of them is a sum of the tensors. So one pass over the operands gives a small table, the
shares are computed from that alone, in additions, multiplications, divisions and roots that IEEE 754 defines (or in
decimals), and the result is a sum, value by value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergeflow.methods.compiled import Sum
from mergeflow.methods.kernels import GRID, Given, Passes

if TYPE_CHECKING:
    import torch

Table = list[list[float]]
AT_ONCE = 48  # sums taken in one pass: each has a tile of running sums, 25 MB in all


def dots(passes: Passes, count: int, *, from_first: bool = False) -> Table:
    """⟨xᵢ, xⱼ⟩ of the `count` operands in float64, symmetric; of xᵢ − x₁ for all but the first if `from_first`: close
    models differ by far less than their lengths, and their differences' dot products keep the digits."""
    import torch

    from mergeflow.methods.sums import Running, float64

    first = int(from_first)
    table = [[0.0] * (count - first) for _ in range(count - first)]
    pairs = [(i, j) for i in range(count - first) for j in range(i + 1)]
    scratch = [torch.empty(GRID, dtype=torch.float64) for _ in range(count)]
    product = torch.empty(GRID, dtype=torch.float64)
    for begin in range(0, len(pairs), AT_ONCE):
        totals = {pair: Running() for pair in pairs[begin : begin + AT_ONCE]}
        for tiles in passes.tiles():
            values = [float64(x, s) for x, s in zip(tiles, scratch, strict=True)]
            if from_first:
                n = values[0].numel()
                values = [torch.sub(x, values[0], out=s[:n]) for x, s in zip(values[1:], scratch[1:], strict=True)]
            for (i, j), total in totals.items():
                total.add(torch.mul(values[i], values[j], out=product[: values[i].numel()]))
        for (i, j), total in totals.items():
            table[i][j] = table[j][i] = total.value()
    return table


def finite(table: Table) -> bool:
    return all(math.isfinite(x) for row in table for x in row)


def quadratic(table: Table, c: Sequence[float]) -> float:
    """‖Σ cᵢxᵢ‖², not below 0, from the dot products of the xᵢ."""
    return max(0.0, sum(c[i] * c[j] * x for i, row in enumerate(table) for j, x in enumerate(row)))


def add_up(given: Given, found: Sequence[float], tiles: Sequence[torch.Tensor], begin: int, out: torch.Tensor) -> None:
    """Σ cᵢxᵢ with the shares found, in the order of the operands; one with the share 1 alone is copied."""
    import torch

    used = [(c, x) for c, x in zip(found, tiles, strict=True) if c]
    if not used:
        out.zero_()
        return
    if used[0][0] == 1:
        out.copy_(used[0][1])
    else:
        torch.mul(used[0][1], torch.tensor(used[0][0], dtype=out.dtype), out=out)
    for c, x in used[1:]:
        out.add_(torch.mul(x, torch.tensor(c, dtype=out.dtype)))


def as_sum(shares: Sequence[float]) -> Sum:
    """`add_up` where it is compiled."""
    return Sum(tuple([(i, c) for i, c in enumerate(shares) if c]))
