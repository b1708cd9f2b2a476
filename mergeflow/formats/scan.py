"""Digests and facts of a file's content, taken block by block as the bytes pass by, in any order, by any thread.

Facts are read off the bits: floats of one sign order like the integers that share their bits, so two integer
maxima per block give minimum, maximum and whether anything is not finite, at a twentieth of the cost of isfinite.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mergeflow.digest import CHUNK, DIGEST_SIZE, chunk_count, hash_bytes, model_digest, tensor_digest
from mergeflow.formats.blocks import Block
from mergeflow.tensors import DType, TensorSpec

SAMPLE = 16  # evenly spaced values kept of each tensor: enough to tell related models from strangers
Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]

# dtype -> (signed view, unsigned view, bits of the first magnitude that is not finite)
_VIEWS: dict[DType, tuple[Any, Any, int]] = {
    DType.F64: (np.int64, np.uint64, 0x7FF0_0000_0000_0000),
    DType.F32: (np.int32, np.uint32, 0x7F80_0000),
    DType.F16: (np.int16, np.uint16, 0x7C00),
    DType.BF16: (np.int16, np.uint16, 0x7F80),
    DType.F8_E4M3: (np.int8, np.uint8, 0x7F),
    DType.F8_E5M2: (np.int8, np.uint8, 0x7C),
}


@dataclass(frozen=True, slots=True)
class Content:
    """What a file holds, tensor by tensor in file order: digests, count of non-finite values, least and greatest
    finite value (NaN where there is none), and SAMPLE evenly spaced values as float32 (or None, not sampled)."""

    model: bytes
    digests: tuple[bytes, ...]
    nonfinite: tuple[int, ...]
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]
    samples: npt.NDArray[np.float32] | None


class Scan:
    """Collects what blocks say and puts the whole together; `add` may be called from several threads at once."""

    def __init__(self, tensors: Sequence[TensorSpec], *, samples: bool) -> None:
        self.tensors = tensors
        counts = [chunk_count(t.nbytes) for t in tensors]
        self._first = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
        total = int(self._first[-1])
        self._digests = bytearray(total * DIGEST_SIZE)
        self._low = np.full(total, np.iinfo(np.int64).max)
        self._high = np.full(total, np.iinfo(np.int64).min)
        self._nonfinite = np.zeros(total, np.int64)
        self._samples = np.zeros((len(tensors), SAMPLE), np.float32) if samples else None
        self._owner = np.repeat(np.arange(len(tensors)), counts)

    def add(self, data: Bytes, block: Block) -> int:
        """Take in one block (`data` is exactly its bytes). Returns how many values in it are not finite."""
        view, at = data.data, block.first_chunk * DIGEST_SIZE
        self._digests[at : at + (len(block.bounds) - 1) * DIGEST_SIZE] = b"".join(
            [hash_bytes(view[a:b]) for a, b in zip(block.bounds, block.bounds[1:], strict=False)]
        )
        if block.dtype not in _VIEWS:
            return 0
        low, high, bad = _ranges(data, block)
        chunks = slice(block.first_chunk, block.first_chunk + len(block.bounds) - 1)
        self._low[chunks], self._high[chunks], self._nonfinite[chunks] = low, high, bad
        if self._samples is not None:
            self._sample(data, block)
        return int(bad.sum()) if bad.any() else 0

    def _sample(self, data: Bytes, block: Block) -> None:
        """Values k·n//SAMPLE of each tensor, where they lie in this block."""
        assert self._samples is not None
        values = data.view(_VIEWS[block.dtype][1])
        size = block.dtype.size
        for i, begin in enumerate(block.bounds[:-1]):
            chunk = block.first_chunk + i
            owner = int(self._owner[chunk])
            n = self.tensors[owner].elements
            start = (chunk - int(self._first[owner])) * (CHUNK // size)  # of this chunk in its tensor, in elements
            stop = start + (block.bounds[i + 1] - begin) // size
            k = np.arange(-(-start * SAMPLE // n), min(SAMPLE, -(-stop * SAMPLE // n)))
            if k.size:
                picked = values[begin // size + k * n // SAMPLE - start]
                self._samples[owner, k] = as_float(picked, block.dtype)

    def finish(self) -> Content:
        digests = []
        for i, t in enumerate(self.tensors):
            at, end = int(self._first[i]) * DIGEST_SIZE, int(self._first[i + 1]) * DIGEST_SIZE
            digests.append(tensor_digest(t.dtype, t.shape, bytes(self._digests[at:end])))
        low, high, bad = (np.full(len(digests), np.nan), np.full(len(digests), np.nan), [0] * len(digests))
        for i, t in enumerate(self.tensors):
            chunks = slice(int(self._first[i]), int(self._first[i + 1]))
            if t.dtype in _VIEWS and chunks.stop > chunks.start:
                least, greatest = int(self._low[chunks].min()), int(self._high[chunks].max())
                bad[i] = int(self._nonfinite[chunks].sum())
                if least <= greatest:
                    low[i], high[i] = _unordered(least, t.dtype), _unordered(greatest, t.dtype)
        names = (t.name for t in self.tensors)
        model = model_digest(zip(names, digests, strict=True))
        return Content(model, tuple(digests), tuple(bad), low, high, self._samples)


def count_nonfinite(data: Bytes, dtype: DType) -> int:
    """How many values of `data` (raw bytes of this dtype) are infinite or not a number."""
    _, unsigned, limit = _VIEWS[dtype]
    magnitude = data.view(unsigned) & unsigned((1 << (8 * dtype.size - 1)) - 1)
    return int(np.count_nonzero(magnitude >= unsigned(limit)))


def as_float(bits: npt.NDArray[Any], dtype: DType) -> npt.NDArray[np.float32]:
    """Unsigned bit patterns as float32 values, for a handful of values (numpy has no bfloat16 and no float8)."""
    with np.errstate(all="ignore"):
        if dtype is DType.F16:
            return bits.view(np.float16).astype(np.float32)
        if dtype is DType.BF16:
            return (bits.astype(np.uint32) << 16).view(np.float32)
        if dtype is DType.F32:
            return bits.view(np.float32)
        if dtype is DType.F64:
            return bits.view(np.float64).astype(np.float32)
        if dtype is DType.F8_E5M2:
            return (bits.astype(np.uint16) << 8).view(np.float16).astype(np.float32)
        return np.take(e4m3_table(), bits)


def e4m3_table() -> npt.NDArray[np.float32]:
    """float8_e4m3fn to float32 for all 256 bit patterns: bias 7, no infinities, 0x7F and 0xFF are NaN."""
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    magnitude = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7))
    magnitude = np.where((code & 0x7F) == 0x7F, np.nan, magnitude)
    return np.where(code < 128, magnitude, -magnitude).astype(np.float32)


def _ranges(data: Bytes, block: Block) -> tuple[Ints, Ints, Ints]:
    """Per chunk: least and greatest finite value in the order of `_ordered`, and the count of non-finite ones."""
    signed_type, unsigned_type, limit = _VIEWS[block.dtype]
    signed, unsigned = data.view(signed_type), data.view(unsigned_type)
    starts = np.array(block.bounds[:-1], np.int64) // block.dtype.size
    top = 1 << (8 * block.dtype.size - 1)
    magnitude = unsigned_type(top - 1)
    most_signed = np.maximum.reduceat(signed, starts).astype(np.int64)  # the greatest, if any has no sign bit
    most = np.maximum.reduceat(unsigned, starts)  # the least, if any has one
    high, low = most_signed, -(most & magnitude).astype(np.int64)
    if (most_signed < 0).any():  # no value without a sign bit: the greatest has the smallest magnitude
        least = -(np.minimum.reduceat(unsigned, starts) & magnitude).astype(np.int64)
        high = np.where(most_signed < 0, least, high)
    if (most < top).any():  # no value with a sign bit
        low = np.where(most < top, np.minimum.reduceat(signed, starts).astype(np.int64), low)
    bad = np.zeros(len(starts), np.int64)
    for i in np.flatnonzero((high >= limit) | (low <= -limit)):
        piece = slice(block.bounds[i] // block.dtype.size, block.bounds[i + 1] // block.dtype.size)
        low[i], high[i], bad[i] = _exact_range(signed[piece], unsigned[piece], limit, top)
    return low, high, bad


def _exact_range(signed: npt.NDArray[Any], unsigned: npt.NDArray[Any], limit: int, top: int) -> tuple[int, int, int]:
    """The same for one chunk that holds values which are not finite."""
    magnitude = unsigned & unsigned.dtype.type(top - 1)
    finite = magnitude < unsigned.dtype.type(limit)
    ordered = np.where(signed < 0, -magnitude.astype(np.int64), magnitude.astype(np.int64))[finite]
    bad = int(signed.size - ordered.size)
    if not ordered.size:
        return np.iinfo(np.int64).max, np.iinfo(np.int64).min, bad
    return int(ordered.min()), int(ordered.max()), bad


def _unordered(value: int, dtype: DType) -> float:
    """A value from its ordered integer: the magnitude's bits, negated for negative numbers."""
    bits = np.array([abs(value)], _VIEWS[dtype][1])
    magnitude = float(bits.view(np.float64)[0]) if dtype is DType.F64 else float(as_float(bits, dtype)[0])
    return -magnitude if value < 0 else magnitude
