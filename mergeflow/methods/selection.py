"""The k-th largest magnitude of a tensor, exactly, in bounded memory.

The bits of a magnitude order like the magnitude itself, and numpy selects integers five times faster than floats, so
all this works on integers. Small tensors are selected from at once. Of large ones a sample says between which two
values the wanted one lies; one pass counts what is above and collects what is between, a few per cent. Where that
fails (values that cluster, more equal ones than are worth collecting), a histogram over the bits narrows the range,
2**12 times with each pass, until it is one value. The k-th value is unique, so how it is found does not show.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mergeflow.methods.kernels import GRID, Passes
from mergeflow.tensors import DType

if TYPE_CHECKING:
    import torch

Bits = npt.NDArray[Any]
SMALL = 1 << 18  # elements that are selected from at once
COLLECT = 1 << 20  # magnitudes collected at most
SAMPLE = 1 << 18  # elements looked at to find the bracket, or an eighth where that is less
_SPREAD = 5  # standard errors of a sample's quantile, on either side
_BINS = 12  # bits that a histogram resolves

_SIGNED: dict[DType, Any] = {DType.F32: np.int32, DType.F64: np.int64}
_UNSIGNED: dict[DType, Any] = {DType.F32: np.uint32, DType.F64: np.uint64}
_MAGNITUDE = {DType.F32: 0x7FFF_FFFF, DType.F64: 0x7FFF_FFFF_FFFF_FFFF}
_NAN = {DType.F32: 0x7F80_0001, DType.F64: 0x7FF0_0000_0000_0001}  # what every NaN counts as


def kth_magnitude(passes: Passes, k: int, compute: DType) -> int:
    """The bits of the k-th largest magnitude (k from 1) of the only operand. NaN counts as larger than any number, and
    all NaNs as one."""
    if passes.elements <= SMALL:
        return select(np.concatenate(list(magnitudes(passes, compute))), k)
    bottom, top = 0, _NAN[compute]  # the value looked for is between, both included
    guess = _bracket(passes, k, compute)
    above, inside, found = _count(passes, *guess, compute)
    if above < k <= above + inside:
        bottom, top, k = *guess, k - above
        if found is not None:
            return select(found, k)
    elif k <= above:
        bottom = guess[1] + 1
    else:
        top, k = guess[0] - 1, k - above - inside
    return _refine(passes, k, bottom, top, compute)


def magnitudes(passes: Passes, compute: DType, every: int = 1) -> Iterator[Bits]:
    """The operand's magnitudes as integers, tile by tile."""
    for (tile,) in passes.tiles(every):
        yield magnitude_bits(tile, compute)


def magnitude_bits(tile: torch.Tensor, compute: DType) -> Bits:
    return magnitudes_of(tile.numpy(), compute)


def magnitudes_of(values: Bits, compute: DType) -> Bits:
    """The magnitudes of values in the compute dtype as integers, all NaNs as one."""
    bits: Bits = values.view(_SIGNED[compute]) & _SIGNED[compute](_MAGNITUDE[compute])
    if bits.size and bits.max() > _NAN[compute]:
        np.minimum(bits, _SIGNED[compute](_NAN[compute]), out=bits)
    return bits


def value_of(bits: int, compute: DType) -> float:
    """The magnitude that has these bits."""
    integer, real = (np.int32, np.float32) if compute is DType.F32 else (np.int64, np.float64)
    return float(np.array([bits], integer).view(real)[0])


def select(bits: Bits, k: int) -> int:
    """The k-th largest of them."""
    at = bits.size - k
    return int(np.partition(bits, at)[at])


def _bracket(passes: Passes, k: int, compute: DType) -> tuple[int, int]:
    """Two values with the one looked for between them, most likely."""
    tiles = -(-passes.elements // GRID)
    every = max(1, tiles // 16)
    looked_at = -(-tiles // every) * GRID
    stride = max(8, looked_at // SAMPLE)
    sample = np.concatenate([bits[::stride] for bits in magnitudes(passes, compute, every)])
    share = 1 - k / passes.elements
    error = _SPREAD * (share * (1 - share) / sample.size) ** 0.5
    ranks = [share - error, share + error]
    low, high = (min(sample.size - 1, max(0, round(r * (sample.size - 1)))) for r in ranks)
    ordered = np.partition(sample, [low, high])
    return int(ordered[low]), int(ordered[high])


def _count(passes: Passes, low: int, high: int, compute: DType) -> tuple[int, int, Bits | None]:
    """How many magnitudes are above `high`, how many from `low` to `high`, and those, unless they are too many."""
    above, inside = 0, 0
    found: list[Bits] | None = []
    first, width = _UNSIGNED[compute](low), _UNSIGNED[compute](high - low)
    for bits in magnitudes(passes, compute):
        above += int(np.count_nonzero(bits > high))
        offset = bits.view(_UNSIGNED[compute])
        np.subtract(offset, first, out=offset)  # what is below wraps round to large numbers
        here = offset <= width
        inside += int(np.count_nonzero(here))
        if inside > COLLECT:
            found = None
        if found is not None:
            found.append(offset[here] + first)
    return above, inside, None if found is None else np.concatenate(found).view(_SIGNED[compute])


def _refine(passes: Passes, k: int, bottom: int, top: int, compute: DType) -> int:
    """The k-th largest of the magnitudes from `bottom` to `top`, by histograms."""
    while bottom < top:
        shift = max(0, (top - bottom).bit_length() - _BINS)
        counts = np.zeros(((top - bottom) >> shift) + 1, np.int64)
        for bits in magnitudes(passes, compute):
            inside = bits[(bits >= bottom) & (bits <= top)]
            counts += np.bincount((inside - bottom) >> shift, minlength=counts.size)
        ascending = np.cumsum(counts[::-1])
        index = int(np.searchsorted(ascending, k))
        k -= int(ascending[index - 1]) if index else 0
        bin_number = counts.size - 1 - index
        bottom, top = bottom + (bin_number << shift), min(top, bottom + ((bin_number + 1) << shift) - 1)
    return bottom
