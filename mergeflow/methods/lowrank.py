"""Differences cut down to the few directions in which they are largest."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import isfinite, prod
from typing import TYPE_CHECKING

from mergeflow.ir.kernels import Range
from mergeflow.ir.numbers import Number
from mergeflow.methods.kernels import Given
from mergeflow.methods.registry import Delta, method
from mergeflow.methods.whole import whole_kernel

if TYPE_CHECKING:
    import torch

_RANK = Range(Fraction(0), whole=True)
_BLOCK = 1 << 20  # elements that are multiplied at a time


def _truncated(given: Given, operands: Sequence[torch.Tensor]) -> torch.Tensor:
    """U_k U_kᵀ A by the eigenvectors of the smaller of AᵀA and AAᵀ, which takes a fraction of the time and memory of a
    singular value decomposition. The blocks are copies of their own, so that they begin alike in memory."""
    import torch

    (delta,) = operands
    rank, shape = int(given.arguments["rank"]), delta.shape
    rows = shape[0] if shape else 1
    matrix = delta.reshape(rows, prod(shape[1:]))
    if not rank:
        return torch.zeros_like(delta)
    if rank >= min(matrix.shape):
        return delta
    ends = [float(x) for x in matrix.aminmax()]  # NaN where a value is none
    largest = max(map(abs, ends))
    if not largest or not all(map(isfinite, ends)):
        return delta
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    step = max(1, _BLOCK // tall.shape[1])
    blocks = range(0, tall.shape[0], step)
    gram = torch.zeros(tall.shape[1], tall.shape[1], dtype=torch.float64)
    for begin in blocks:
        block = _copy(tall[begin : begin + step], largest)
        gram.add_(block.T @ block)
    vectors = torch.linalg.eigh(gram).eigenvectors[:, -rank:].contiguous()
    back = vectors.T.contiguous()
    for begin in blocks:
        block = _copy(tall[begin : begin + step], largest)
        tall[begin : begin + step] = ((block @ vectors) @ back).mul_(largest)
    return delta


def _room(shape: Sequence[int]) -> int:
    """The Gram matrix, its eigenvectors and what finding them takes."""
    rows = shape[0] if shape else 1
    side = min(rows, prod(shape[1:]))
    return 40 * side * side


def _copy(block: torch.Tensor, largest: float) -> torch.Tensor:
    """In float64, over the largest magnitude, so that squares neither overflow nor vanish."""
    import torch

    return torch.empty(block.shape, dtype=torch.float64).copy_(block).div_(largest)


TRUNCATE = whole_kernel(
    "truncate_rank",
    cost=2000.0,
    version=1,
    operands=("delta",),
    result="delta",
    compute=_truncated,
    room=_room,
    ranges={"rank": _RANK},
    zeros=True,
    tier="stable",
)


@method(TRUNCATE)
def truncate_rank(delta: Delta, rank: Number) -> Delta:
    """the nearest tensor of rank `rank`: U_k S_k V_kᵀ of delta = U S Vᵀ, k = `rank`

    Eckart and Young 1936, "The approximation of one matrix by another of lower rank"; of fine-tunes, what LoRA
    (arXiv:2106.09685) trains and LoRA extraction keeps. A tensor is a matrix of its first axis by all others, so a
    convolution is [out, in·h·w]. A vector or a single value has rank 1 and is left as it is, as is a tensor whose
    smaller side is not above `rank` and one with a value that is not finite; rank 0 is zero. Where the k-th and the
    next singular value are equal, which of their directions is kept is not said.

    By the eigenvectors of the smaller Gram matrix in float64, blocks of 2²⁰ values at a time: a direction is right to
    about 2⁻⁵³·(largest singular value)² over the gap between the squares of the k-th and the next. The same bytes for
    any number of threads; stable, because matrix products are torch's. sd-mecha's truncate_rank takes random
    projections unless told not to, and 8 as its rank.

    Example: `a + truncate_rank(b - c, 16)`
    """
    return TRUNCATE(delta, rank=rank)
