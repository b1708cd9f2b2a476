"""Parts of a tensor taken from another model as they are."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import floor
from typing import TYPE_CHECKING

from mergeflow.ir.kernels import Range
from mergeflow.methods.kernels import Given, kernel
from mergeflow.methods.registry import Model, Share, method

if TYPE_CHECKING:
    import torch

_SHARE = Range(Fraction(0), Fraction(1))


def _rows(given: Given) -> list[tuple[int, int]]:
    """The elements that are b's, as stretches from … to (without its end)."""
    m, n = given.arguments["m"], given.arguments["n"]
    rows = given.shape[0] if given.shape else 1
    each = given.elements // max(1, rows)
    first, last = floor(rows * n), floor(rows * (m + n))
    if m + n <= 1:
        return [(first * each, last * each)]
    return [(0, floor(rows * (m + n - 1)) * each), (first * each, rows * each)]


def _copy(given: Given, found: None, tiles: Sequence[torch.Tensor], begin: int, out: torch.Tensor) -> None:
    out.copy_(tiles[0])
    for first, last in _rows(given):
        here = slice(max(0, first - begin), max(0, last - begin))
        out[here] = tiles[1][here]


REGION = kernel(
    "tensor_sum",
    cost=1.0,
    version=1,
    operands=("model", "model"),
    result="model",
    apply=_copy,
    ranges={"m": _SHARE, "n": _SHARE},
    same=True,
)


@method(REGION)
def tensor_sum(a: Model, b: Model, m: Share, n: Share = Fraction(0)) -> Model:
    """a, with the rows from ⌊n·R⌋ to ⌊(n + m)·R⌋ of each tensor's R rows taken from b

    Rows are along the first axis; a single value is one row. m is b's share and n where it begins; where m + n is above
    1 the stretch goes on at the first row: rows from ⌊n·R⌋ on and those below ⌊(m + n − 1)·R⌋. supermerger's
    calculation mode tensor (with alpha as m, beta as n), meh's and sd-mecha's tensor_sum (its width and offset); it has
    no paper. Row numbers are exact here; there they are products of floating point, so that 0.7 + 0.5 − 1 of ten rows
    is one row and not two.

    Example: `tensor_sum(a, b, 0.25, n=0.5)`
    """
    return REGION(a, b, m=m, n=n)
