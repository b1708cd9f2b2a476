"""Digests and facts of a file's content, taken block by block as the bytes pass by, in any order, by any thread.

Facts are read off the bits: floats of one sign order like the integers that share their bits, so two integer
maxima per block give minimum, maximum and whether anything is not finite, at a twentieth of the cost of isfinite.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from mergeflow.digest import CHUNK, DIGEST_SIZE, chunk_count, hash_bytes, model_digest, payload_digest, tensor_digest
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
    """What a file holds, tensor by tensor in file order: digests (of tensors, and of their bytes alone), count of
    non-finite values, least and greatest finite value (NaN where there is none), and SAMPLE evenly spaced values as
    float32 (or None, not sampled)."""

    model: bytes
    digests: tuple[bytes, ...]
    payloads: tuple[bytes, ...]
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
            [hash_bytes(view[a:b]) for a, b in pairwise(block.bounds)]
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
        values, size = data.view(_VIEWS[block.dtype][1]), block.dtype.size
        bounds = np.array(block.bounds, np.int64) // size
        chunks = np.arange(block.first_chunk, block.first_chunk + len(bounds) - 1)
        owners = self._owner[chunks]
        whole = np.flatnonzero(self._first[owners + 1] - self._first[owners] == 1)
        if whole.size:  # tensors of one chunk, however many, all at once
            n = (bounds[whole + 1] - bounds[whole])[:, None]
            at = bounds[whole][:, None] + np.arange(SAMPLE) * n // SAMPLE
            self._samples[owners[whole]] = as_float(values[at], block.dtype)
        for i in np.flatnonzero(self._first[owners + 1] - self._first[owners] > 1):
            owner = int(owners[i])
            n_all = self.tensors[owner].elements
            start = int(chunks[i] - self._first[owner]) * (CHUNK // size)  # of this chunk in its tensor, in elements
            stop = start + int(bounds[i + 1] - bounds[i])
            k = np.arange(-(-start * SAMPLE // n_all), min(SAMPLE, -(-stop * SAMPLE // n_all)))
            if k.size:
                picked = values[bounds[i] + k * n_all // SAMPLE - start]
                self._samples[owner, k] = as_float(picked, block.dtype)

    def chunks(self, block: Block) -> bytes:
        """The digests of a block's chunks, one after the other, once it was added."""
        at = block.first_chunk * DIGEST_SIZE
        return bytes(self._digests[at : at + (len(block.bounds) - 1) * DIGEST_SIZE])

    def payload(self, number: int) -> bytes:
        """The digest of the bytes of one tensor, once all of them were added."""
        begin, end = self._first[number : number + 2] * DIGEST_SIZE
        return payload_digest(memoryview(self._digests)[begin:end])

    def finish(self) -> Content:
        view, ends = memoryview(self._digests), (self._first * DIGEST_SIZE).tolist()
        payloads = tuple([payload_digest(view[a:b]) for a, b in pairwise(ends)])
        digests = tuple([tensor_digest(t.dtype, t.shape, p) for t, p in zip(self.tensors, payloads, strict=True)])
        low, high = np.full(len(digests), np.nan), np.full(len(digests), np.nan)
        bad = np.zeros(len(digests), np.int64)
        filled = np.flatnonzero(self._first[1:] > self._first[:-1])
        if filled.size:
            starts = self._first[:-1][filled]
            least, greatest = np.minimum.reduceat(self._low, starts), np.maximum.reduceat(self._high, starts)
            bad[filled] = np.add.reduceat(self._nonfinite, starts)
            number = {dtype: i for i, dtype in enumerate(DType)}
            dtypes = np.array([number[self.tensors[int(i)].dtype] for i in filled])
            for dtype in _VIEWS:
                mine = (dtypes == number[dtype]) & (least <= greatest)
                low[filled[mine]] = _unordered(least[mine], dtype)
                high[filled[mine]] = _unordered(greatest[mine], dtype)
        model = model_digest(zip((t.name for t in self.tensors), digests, strict=True))
        return Content(model, digests, payloads, tuple(bad.tolist()), low, high, self._samples)


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
    """Per chunk: least and greatest finite value, as the magnitude's bits negated for negative numbers (where there is
    none, the greatest and the least int64), and the count of non-finite ones."""
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


def _unordered(values: Ints, dtype: DType) -> npt.NDArray[np.float64]:
    """Values from their ordered integers: the magnitude's bits, negated for negative numbers."""
    bits = np.abs(values).astype(_VIEWS[dtype][1])
    magnitude = bits.view(np.float64) if dtype is DType.F64 else as_float(bits, dtype).astype(np.float64)
    return np.where(values < 0, -magnitude, magnitude)
