"""Cutting outputs into units of work: what one worker reads, computes and writes at a time.

A unit is a stretch of one or several outputs, about 2 MB long in each. What several outputs read of one source, a unit
reads once for all of them: that is how a sweep costs one pass. Small neighbouring tensors share a unit; large ones are
cut along the chunks of their digest, so that each piece can be hashed where it is made. Units know nothing of files or
devices: they are tuples of numbers, and any worker can run any of them in any order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from mergeflow.digest import CHUNK, chunk_count
from mergeflow.formats.blocks import Block
from mergeflow.plan.program import CONSTANT, COPY, STAGED, Program, TensorWork, Wide
from mergeflow.tensors import DType, TensorSpec

LONGEST = 4096  # tensors in one unit


class Read(NamedTuple):
    """`nbytes` of a source at `offset`, to be put at `at` in the buffer of a slot."""

    slot: int
    source: int
    offset: int
    nbytes: int
    at: int


class Part(NamedTuple):
    """What one output gets of a unit: the program that makes it from the slots of its inputs (`slots[i]` holds its
    input i), and where it goes. `block` says where in the output and how it is hashed."""

    output: int
    program: int
    slots: tuple[int, ...]
    block: Block
    wide: Wide | None = None
    wide_inputs: tuple[bool, ...] = ()
    wide_dtype: DType | None = None
    data: bytes = b""


class Unit(NamedTuple):
    """`elements` is the length of each part; `reads` fill the slots that the parts share."""

    elements: int
    reads: tuple[Read, ...]
    parts: tuple[Part, ...]


class _Share(NamedTuple):
    """One output's tensor on its way into a unit; `chunk` numbers its first chunk among all of that output."""

    output: int
    work: TensorWork
    spec: TensorSpec
    chunk: int


def cut(
    outputs: Sequence[tuple[Sequence[TensorWork], Sequence[TensorSpec]]], programs: Sequence[Program], unit_bytes: int,
    only: Sequence[Collection[str]] | None = None,
) -> Iterator[Unit]:  # fmt: skip
    """The units of outputs that are made in one pass, in the order of the first one's file.

    Each output is its works and its tensors (the layout), in the same order; `unit_bytes` is a multiple of the
    digest's chunk, counted in bytes of one output. `only` names the tensors of each output that are to be made.
    """
    assert unit_bytes % CHUNK == 0
    open_unit: _Open | None = None
    for row in _rows(outputs, only):
        alone = [share for share in row if _stands_alone(share.work)]
        shared = [share for share in row if not _stands_alone(share.work)] if alone else row
        small = not alone and max(share.spec.nbytes for share in row) <= unit_bytes
        slots = _slots(shared)
        if open_unit is not None and not (small and open_unit.takes(row, slots, unit_bytes)):
            yield open_unit.close()
            open_unit = None
        if small:
            if open_unit is None:
                open_unit = _Open(row, slots)
            open_unit.add(row, slots, programs)
            continue
        yield from _whole([share for share in alone if share.work.wide is not None], programs)
        yield from (_constant(share) for share in alone if share.work.program == CONSTANT)
        yield from _pieces(shared, slots, programs, unit_bytes)
    if open_unit is not None:
        yield open_unit.close()


def slot_sizes(units: Iterable[Unit]) -> list[int]:
    """Bytes that each slot needs to hold whatever any of these units reads into it."""
    sizes: list[int] = []
    for unit in units:
        wide = unit.parts[0].wide is not None  # read into buffers of its own, and taken through the slots in pieces
        for slot, _, _, nbytes, at in unit.reads:
            while slot >= len(sizes):
                sizes.append(0)
            sizes[slot] = max(sizes[slot], min(nbytes, CHUNK) if wide else at + nbytes)
    return sizes


def largest_part(units: Iterable[Unit]) -> int:
    """Bytes of the largest piece of one output that is made at a time."""
    return max((part.block.nbytes for unit in units for part in unit.parts), default=0)


def _rows(
    outputs: Sequence[tuple[Sequence[TensorWork], Sequence[TensorSpec]]], only: Sequence[Collection[str]] | None
) -> Iterator[list[_Share]]:
    """The tensors that are made together: those of one name and length in all outputs; empty ones are nobody's work."""
    later = [
        {(s.spec.name, s.spec.elements): s for s in _shares(number, outputs[number], only)}
        for number in range(1, len(outputs))
    ]
    if outputs:
        for share in _shares(0, outputs[0], only):
            key = (share.spec.name, share.spec.elements)
            yield [share, *(found for rest in later if (found := rest.pop(key, None)) is not None)]
    while later:
        rest = later.pop(0)
        for key, share in rest.items():
            yield [share, *(found for others in later if (found := others.pop(key, None)) is not None)]


def _shares(
    number: int, output: tuple[Sequence[TensorWork], Sequence[TensorSpec]], only: Sequence[Collection[str]] | None
) -> Iterator[_Share]:
    chunk = 0
    for work, spec in zip(*output, strict=True):
        if nbytes := spec.nbytes:
            if work.program != STAGED and (only is None or work.name in only[number]):  # STAGED: see plan/jobs.py
                yield _Share(number, work, spec, chunk)
            chunk += chunk_count(nbytes)


def _stands_alone(work: TensorWork) -> bool:
    return work.wide is not None or work.program == CONSTANT


def _slots(row: Sequence[_Share]) -> list[tuple[int, int]]:
    """What a row reads, each once: (source, offset) by slot."""
    return list(dict.fromkeys(read for share in row for read in share.work.reads))


class _Open:
    """A unit that small tensors are still being added to."""

    def __init__(self, row: Sequence[_Share], slots: Sequence[tuple[int, int]]) -> None:
        self.row, self.pattern = row, _pattern(row, slots)
        self.elements = 0
        self.bounds: list[list[int]] = [[0] for _ in row]
        self.reads: list[Read] = []
        self.last: dict[int, int] = {}  # slot -> index in reads of its latest read

    def takes(self, row: Sequence[_Share], slots: Sequence[tuple[int, int]], unit_bytes: int) -> bool:
        """Whether the same programs make this row from the same sources, and it comes right after in every output."""
        return (
            len(row) == len(self.row)
            and all(
                bounds[-1] + share.spec.nbytes <= unit_bytes
                and share.spec.start == first.spec.start + bounds[-1]
                and len(bounds) < LONGEST
                for share, first, bounds in zip(row, self.row, self.bounds, strict=True)
            )
            and _pattern(row, slots) == self.pattern
        )

    def add(self, row: Sequence[_Share], slots: Sequence[tuple[int, int]], programs: Sequence[Program]) -> None:
        elements = row[0].spec.elements
        for slot, ((source, offset), width) in enumerate(zip(slots, _widths(row, slots, programs), strict=True)):
            at, length = self.elements * width, elements * width
            previous = self.last.get(slot)
            if previous is not None:
                r = self.reads[previous]
                if r.offset + r.nbytes == offset and r.at + r.nbytes == at:
                    self.reads[previous] = Read(slot, source, r.offset, r.nbytes + length, r.at)
                    continue
            self.last[slot] = len(self.reads)
            self.reads.append(Read(slot, source, offset, length, at))
        for share, bounds in zip(row, self.bounds, strict=True):
            before, nbytes = bounds[-1], share.spec.nbytes
            bounds += [before + end for end in (*range(CHUNK, nbytes, CHUNK), nbytes)]
        self.elements += elements

    def close(self) -> Unit:
        parts = []
        for (output, work, spec, chunk), (*_, slots), bounds in zip(self.row, self.pattern, self.bounds, strict=True):
            block = Block(spec.start, bounds[-1], spec.dtype, chunk, tuple(bounds))
            parts.append(Part(output, work.program, slots, block))
        return Unit(self.elements, tuple(self.reads), tuple(parts))


def _pattern(
    row: Sequence[_Share], slots: Sequence[tuple[int, int]]
) -> list[tuple[int, int, DType, tuple[int, ...], tuple[int, ...]]]:
    """What must be the same for two rows to be one unit: outputs, programs, dtypes, sources and slots of the inputs."""
    number = {read: slot for slot, read in enumerate(slots)}
    return [
        (
            output,
            work.program,
            spec.dtype,
            tuple([source for source, _ in work.reads]),
            tuple([number[read] for read in work.reads]),
        )
        for output, work, spec, _ in row
    ]


def _widths(row: Sequence[_Share], slots: Sequence[tuple[int, int]], programs: Sequence[Program]) -> list[int]:
    """Bytes per element in each slot."""
    width: dict[tuple[int, int], int] = {}
    for share in row:
        sizes = _input_sizes(share.work, programs)
        width.update(zip(share.work.reads, sizes, strict=True))
    return [width[read] for read in slots]


def _pieces(
    row: Sequence[_Share], slots: Sequence[tuple[int, int]], programs: Sequence[Program], unit_bytes: int
) -> Iterator[Unit]:
    """A large tensor, cut where a chunk of its digest ends in every output."""
    if not row:
        return
    sizes = [share.spec.dtype.size for share in row]
    total = row[0].spec.elements
    grain = CHUNK // min(sizes)
    step = max(1, unit_bytes // max(sizes) // grain) * grain
    number = {read: slot for slot, read in enumerate(slots)}
    widths = _widths(row, slots, programs)
    for begin in range(0, total, step):
        n = min(step, total - begin)
        reads = tuple(
            Read(slot, source, offset + begin * width, n * width, 0)
            for slot, ((source, offset), width) in enumerate(zip(slots, widths, strict=True))
        )
        parts = []
        for (output, work, spec, chunk), size in zip(row, sizes, strict=True):
            bounds = (*range(0, n * size, CHUNK), n * size)
            block = Block(spec.start + begin * size, n * size, spec.dtype, chunk + begin * size // CHUNK, bounds)
            parts.append(Part(output, work.program, tuple([number[read] for read in work.reads]), block))
        yield Unit(n, reads, tuple(parts))


def _constant(share: _Share) -> Unit:
    return Unit(share.spec.elements, (), (Part(share.output, CONSTANT, (), _block(share), data=share.work.data),))


def _whole(row: Sequence[_Share], programs: Sequence[Program]) -> Iterator[Unit]:
    """Wide first convolutions, all at once: they are small, and their channels are not contiguous."""
    if not row:
        return
    reads: dict[tuple[int, int], Read] = {}
    parts = []
    for share in row:
        work, wide = share.work, share.work.wide
        assert wide is not None
        assert work.wide_dtype is not None
        rows = wide.outer * wide.inner
        channels = [wide.channels if is_wide else wide.narrow for is_wide in work.wide_inputs] + [wide.channels]
        widths = (*_input_sizes(work, programs), work.wide_dtype.size)
        for (source, offset), c, width in zip(work.reads, channels, widths, strict=True):
            reads.setdefault((source, offset), Read(len(reads), source, offset, rows * c * width, 0))
        slots = tuple([reads[read].slot for read in work.reads])
        parts.append(Part(share.output, work.program, slots, _block(share), wide, work.wide_inputs, work.wide_dtype))
    yield Unit(row[0].spec.elements, tuple(reads.values()), tuple(parts))


def _block(share: _Share) -> Block:
    nbytes = share.spec.nbytes
    bounds = (*range(0, nbytes, CHUNK), nbytes)
    return Block(share.spec.start, nbytes, share.spec.dtype, share.chunk, bounds)


def _input_sizes(work: TensorWork, programs: Sequence[Program]) -> tuple[int, ...]:
    if work.program >= 0:
        return tuple(d.size for d in programs[work.program].inputs)
    return (work.dtype.size,) if work.program == COPY else ()
