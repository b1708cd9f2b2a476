"""What compiled kernels have to know of whole operands, found in passes that several of them share.

A search is a generator: it yields what it wants counted in the next pass over its operands, and goes on when the
counts have arrived; what it returns is what was found. So one pass over a tensor's inputs serves all kernels that are
at the same point. Bytes do not depend on how that went: a k-th magnitude is unique, and running sums are taken in the
order of the elements (`mergeflow.methods.selection`, `.gram`, `.sums`, which find the same with torch).
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from mergeflow.executor.device import Bytes
from mergeflow.executor.packing import COUNT, DOTS, FROM_FIRST, LENGTH, SUM, TALLY
from mergeflow.methods.compiled import Dots, Lengths, Rank, Statistic
from mergeflow.methods.gram import AT_ONCE
from mergeflow.methods.kernels import GRID
from mergeflow.methods.selection import COLLECT, SMALL, magnitudes_of, select
from mergeflow.tensors import DType

Array: TypeAlias = npt.NDArray[Any]
SAMPLES, STRETCH = 256, 256  # stretches of a tensor that are looked at to find a bracket, and their length
_SPREAD = 4  # standard errors of the sample's quantile, on either side
_BINS = 12  # bits that a histogram resolves
_REAL: dict[DType, Any] = {DType.F32: np.float32, DType.F64: np.float64}
_SIGNED: dict[DType, Any] = {DType.F32: np.int32, DType.F64: np.int64}
_NAN = {DType.F32: 0x7F80_0001, DType.F64: 0x7FF0_0000_0000_0001}


@dataclass(frozen=True, slots=True)
class Ask:
    """One operation of a pass (_kernels.c has them): over these of a kernel's operands, counting into `out`. `sample`:
    over the sampled stretches alone. Values are wanted in `out` by a SUM, one after the other."""

    kind: int
    operands: tuple[int, ...]
    compute: DType
    out: Array
    low: int = 0
    high: int = 0
    flags: int = 0
    sample: bool = False

    @property
    def what(self) -> tuple[object, ...]:
        """All of it but the buffer."""
        return self.kind, self.operands, self.compute, self.low, self.high, self.flags


Search: TypeAlias = Generator[list[Ask], None, Any]


def room(statistic: Statistic, operands: int, compute: DType) -> int:
    """Bytes that the search for a statistic of so many operands takes for its counts."""
    if isinstance(statistic, Rank):
        return max(COLLECT, SMALL) * compute.size
    pairs = min(AT_ONCE, operands * (operands + 1) // 2)
    return (pairs if isinstance(statistic, Dots) else operands) * GRID * 8


def search(statistic: Statistic, operands: int, elements: int, compute: DType, own: Bytes) -> Search:
    """The search for a statistic; running sums are taken in its `own` bytes."""
    if isinstance(statistic, Rank):
        return _rank(statistic.k, elements, compute)
    if isinstance(statistic, Dots):
        return _dots(operands, elements, statistic.from_first, own)
    assert isinstance(statistic, Lengths)
    return _lengths(operands, elements, own)


def stretches(elements: int) -> list[int]:
    """Where the sampled stretches of a tensor begin: evenly, from its first element to its last."""
    return [i * (elements - STRETCH) // (SAMPLES - 1) for i in range(SAMPLES)]


def _rank(k: int, n: int, compute: DType) -> Search:
    if n <= SMALL:
        values = np.empty(n, _REAL[compute])
        yield [Ask(SUM, (0,), compute, values)]
        return select(magnitudes_of(values, compute), k)
    low, high = yield from _bracket(k, n, compute)
    found = np.zeros(16 + COLLECT * compute.size, np.uint8)
    yield [Ask(COUNT, (0,), compute, found, low, high)]
    above, inside = map(int, found[:16].view(np.int64))
    bottom, top = 0, _NAN[compute]  # the value looked for is between, both included
    if above < k <= above + inside:
        bottom, top, k = low, high, k - above
        if inside <= COLLECT:
            return select(found[16 : 16 + inside * compute.size].view(_SIGNED[compute]), k)
    elif k <= above:
        bottom = high + 1
    else:
        top, k = low - 1, k - above - inside
    while bottom < top:
        shift = max(0, (top - bottom).bit_length() - _BINS)
        counts = np.zeros(((top - bottom) >> shift) + 1, np.int64)
        yield [Ask(TALLY, (0,), compute, counts, bottom, top, shift)]
        descending = np.cumsum(counts[::-1])
        index = int(np.searchsorted(descending, k))
        k -= int(descending[index - 1]) if index else 0
        number = counts.size - 1 - index
        bottom, top = bottom + (number << shift), min(top, bottom + ((number + 1) << shift) - 1)
    return bottom


def _bracket(k: int, n: int, compute: DType) -> Generator[list[Ask], None, tuple[int, int]]:
    """Two magnitudes with the one looked for between them, most likely: quantiles of a sample, further apart where its
    stretches differ, as the rows of a matrix do."""
    values = np.empty(SAMPLES * STRETCH, _REAL[compute])
    yield [Ask(SUM, (0,), compute, values, sample=True)]
    bits = magnitudes_of(values, compute)
    ordered = np.sort(bits)
    share = 1 - k / n
    pivot = ordered[min(bits.size - 1, round(share * bits.size))]
    parts = np.count_nonzero(bits.reshape(SAMPLES, STRETCH) > pivot, axis=1) / STRETCH
    error = _SPREAD * max((share * (1 - share) / bits.size) ** 0.5, float(parts.std()) / SAMPLES**0.5)
    low, high = (min(bits.size - 1, max(0, round(r * (bits.size - 1)))) for r in (share - error, share + error))
    return int(ordered[low]), int(ordered[high])


def _dots(count: int, n: int, from_first: bool, own: Bytes) -> Search:
    size = count - from_first
    pairs = [(i, j) for i in range(size) for j in range(i + 1)]
    table = [[0.0] * size for _ in range(size)]
    for begin in range(0, len(pairs), AT_ONCE):
        here = pairs[begin : begin + AT_ONCE]
        totals = _zeros(own, len(here), n)
        flags = FROM_FIRST if from_first else 0
        yield [Ask(DOTS, tuple(range(count)), DType.F64, totals, begin, begin + len(here), flags)]
        for (i, j), total in zip(here, totals, strict=True):
            table[i][j] = table[j][i] = _folded(total)
    return table


def _lengths(count: int, n: int, own: Bytes) -> Search:
    totals = _zeros(own, count, n)
    yield [Ask(LENGTH, (i,), DType.F64, totals[i]) for i in range(count)]
    return [_folded(total) for total in totals]


def _zeros(own: Bytes, count: int, n: int) -> Array:
    """Running sums over n elements: GRID of them, or the first power of two that has one for each. What is left out
    would stay zero, and adding zeros changes nothing."""
    length = 1 << max(0, min(n, GRID) - 1).bit_length()
    totals: Array = own[: count * length * 8].view(np.float64).reshape(count, length)
    totals.fill(0)
    return totals


def _folded(totals: Array) -> float:
    """The sum of running sums, as `methods.sums` takes it: one half added onto the other, and so on."""
    with np.errstate(all="ignore"):
        while totals.size > 1:
            half = totals.size // 2
            totals[:half] += totals[half:]
            totals = totals[:half]
    return float(totals[0])
