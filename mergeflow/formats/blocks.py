"""Cutting a file into stretches that are read, hashed and written at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mergeflow.digest import CHUNK
from mergeflow.tensors import DType, TensorSpec

BLOCK = 2 * CHUNK  # small enough to stay in the cache from reading to hashing


class Block(NamedTuple):
    """A stretch of a file in one dtype. `bounds` are the byte offsets in the block where its chunks begin, and its
    end; `first_chunk` numbers the first of them among all chunks of the file."""

    offset: int
    nbytes: int
    dtype: DType
    first_chunk: int
    bounds: tuple[int, ...]


def blocks(tensors: Sequence[TensorSpec], limit: int = BLOCK) -> Iterator[Block]:
    """Cut a file's tensors, given in file order, into blocks of at most `limit` bytes along chunk boundaries."""
    offset, dtype, bounds, first, chunk = 0, DType.U8, [0], 0, 0
    for t in tensors:
        nbytes = t.nbytes
        for begin in range(0, nbytes, CHUNK):
            size = min(CHUNK, nbytes - begin)
            apart = t.dtype is not dtype or t.start + begin != offset + bounds[-1]  # torch aligns what it stores
            if bounds[-1] and (apart or bounds[-1] + size > limit or len(bounds) > 4096):
                yield Block(offset, bounds[-1], dtype, first, tuple(bounds))
                bounds = [0]
            if not bounds[-1]:
                offset, dtype, first = t.start + begin, t.dtype, chunk
            bounds.append(bounds[-1] + size)
            chunk += 1
    if bounds[-1]:
        yield Block(offset, bounds[-1], dtype, first, tuple(bounds))
