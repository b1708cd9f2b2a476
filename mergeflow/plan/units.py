"""Cutting an output into units of work: what one worker reads, computes and writes at a time.

A unit is a stretch of the output in one program, about 2 MB long. Small neighbouring tensors share one; large ones
are cut along the chunks of their digest, so that each unit can be hashed where it is made. Units know nothing of files
or devices: they are tuples of numbers, and any worker can run any of them in any order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mergeflow.digest import CHUNK
from mergeflow.formats.blocks import Block
from mergeflow.plan.program import CONSTANT, COPY, Program, TensorWork, Wide
from mergeflow.tensors import DType, TensorSpec

LONGEST = 4096  # tensors in one unit


class Read(NamedTuple):
    """`nbytes` of a source at `offset`, to be put at `at` in the buffer of an input."""

    slot: int
    source: int
    offset: int
    nbytes: int
    at: int


class Unit(NamedTuple):
    """`block` says where the result goes in the output and how it is hashed; `elements` is its length."""

    program: int
    elements: int
    block: Block
    reads: tuple[Read, ...]
    wide: Wide | None = None
    wide_inputs: tuple[bool, ...] = ()
    wide_dtype: DType | None = None
    data: bytes = b""


def cut(
    works: Sequence[TensorWork], tensors: Sequence[TensorSpec], programs: Sequence[Program], unit_bytes: int
) -> Iterator[Unit]:
    """The units of one output in file order. `works` and `tensors` (the layout) are in the same order; `unit_bytes`
    is a multiple of the digest's chunk, counted in output bytes."""
    assert unit_bytes % CHUNK == 0
    open_unit: _Open | None = None
    chunk = 0
    for work, spec in zip(works, tensors, strict=True):
        nbytes = spec.nbytes
        if not nbytes:
            continue
        sizes = _input_sizes(work, programs)
        if work.wide is not None or nbytes > unit_bytes or work.program == CONSTANT:
            if open_unit is not None:
                yield open_unit.close()
                open_unit = None
            if work.program == CONSTANT:
                block = Block(spec.start, nbytes, spec.dtype, chunk, (*range(0, nbytes, CHUNK), nbytes))
                yield Unit(CONSTANT, spec.elements, block, (), data=work.data)
            elif work.wide is not None:
                yield _whole(work, spec, chunk, sizes)
            else:
                yield from _pieces(work, spec, chunk, sizes, unit_bytes)
        else:
            if open_unit is not None and not open_unit.takes(work, spec, unit_bytes):
                yield open_unit.close()
                open_unit = None
            if open_unit is None:
                open_unit = _Open(work, spec, chunk)
            open_unit.add(work, spec, sizes)
        chunk += -(-nbytes // CHUNK)
    if open_unit is not None:
        yield open_unit.close()


class _Open:
    """A unit that small tensors are still being added to."""

    def __init__(self, work: TensorWork, spec: TensorSpec, chunk: int) -> None:
        self.program, self.dtype, self.start, self.chunk = work.program, spec.dtype, spec.start, chunk
        self.bounds = [0]
        self.reads: list[Read] = []
        self.last: dict[int, int] = {}  # slot -> index in reads of its latest read

    def takes(self, work: TensorWork, spec: TensorSpec, unit_bytes: int) -> bool:
        return (
            work.program == self.program
            and spec.dtype is self.dtype
            and self.bounds[-1] + spec.nbytes <= unit_bytes
            and len(self.bounds) < LONGEST
        )

    def add(self, work: TensorWork, spec: TensorSpec, sizes: tuple[int, ...]) -> None:
        before, size = self.bounds[-1], spec.dtype.size
        nbytes = spec.nbytes
        elements = nbytes // size
        for slot, ((source, offset), width) in enumerate(zip(work.reads, sizes, strict=True)):
            at, length = before // size * width, elements * width
            previous = self.last.get(slot)
            if previous is not None:
                r = self.reads[previous]
                if r.source == source and r.offset + r.nbytes == offset and r.at + r.nbytes == at:
                    self.reads[previous] = Read(slot, source, r.offset, r.nbytes + length, r.at)
                    continue
            self.last[slot] = len(self.reads)
            self.reads.append(Read(slot, source, offset, length, at))
        self.bounds += [before + end for end in (*range(CHUNK, nbytes, CHUNK), nbytes)]

    def close(self) -> Unit:
        nbytes = self.bounds[-1]
        block = Block(self.start, nbytes, self.dtype, self.chunk, tuple(self.bounds))
        return Unit(self.program, nbytes // self.dtype.size, block, tuple(self.reads))


def _pieces(work: TensorWork, spec: TensorSpec, chunk: int, sizes: tuple[int, ...], unit_bytes: int) -> Iterator[Unit]:
    nbytes, size = spec.nbytes, spec.dtype.size
    for begin in range(0, nbytes, unit_bytes):
        length = min(unit_bytes, nbytes - begin)
        bounds = (*range(0, length, CHUNK), length)
        reads = tuple(
            Read(slot, source, offset + begin // size * width, length // size * width, 0)
            for slot, ((source, offset), width) in enumerate(zip(work.reads, sizes, strict=True))
        )
        block = Block(spec.start + begin, length, spec.dtype, chunk + begin // CHUNK, bounds)
        yield Unit(work.program, length // size, block, reads)


def _whole(work: TensorWork, spec: TensorSpec, chunk: int, sizes: tuple[int, ...]) -> Unit:
    """A wide first convolution, all at once: it is small, and its channels are not contiguous."""
    wide = work.wide
    assert wide is not None
    assert work.wide_dtype is not None
    rows = wide.outer * wide.inner
    channels = [wide.channels if is_wide else wide.narrow for is_wide in work.wide_inputs] + [wide.channels]
    widths = (*sizes, work.wide_dtype.size)
    reads = tuple(
        Read(slot, source, offset, rows * c * width, 0)
        for slot, ((source, offset), c, width) in enumerate(zip(work.reads, channels, widths, strict=True))
    )
    bounds = (*range(0, spec.nbytes, CHUNK), spec.nbytes)
    block = Block(spec.start, spec.nbytes, spec.dtype, chunk, bounds)
    return Unit(work.program, spec.elements, block, reads, wide, work.wide_inputs, work.wide_dtype)


def _input_sizes(work: TensorWork, programs: Sequence[Program]) -> tuple[int, ...]:
    if work.program >= 0:
        return tuple(d.size for d in programs[work.program].inputs)
    return (work.dtype.size,) if work.program == COPY else ()
