"""What works need of memory, in numbers that can be put together: those of a pass follow from those of its outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from mergeflow.plan.jobs import Rooms, measured, room
from mergeflow.plan.program import STAGED, Program, Staged, TensorWork
from mergeflow.plan.whole import Largest, largest


@dataclass(frozen=True, slots=True)
class Needs:
    """Of `outputs` outputs with so many `tensors`, made of so many `reads`. `programs` are those without kernels that
    make them; `output` and `smallest` bytes of an element of the widest result, and of the narrowest that such a
    program makes (0: none does); `columns` and `widths` (by source) bytes of an element of what they read; `wide` bytes
    of a wide tensor, whole; `measured`: whether kernels have to know whole tensors."""

    outputs: int = 0
    tensors: int = 0
    reads: int = 0
    written: int = 0
    programs: frozenset[int] = frozenset()
    output: int = 0
    smallest: int = 0
    columns: int = 0
    widths: Mapping[int, int] = field(default_factory=dict)
    wide: int = 0
    rooms: Rooms = Rooms()  # noqa: RUF009  # immutable
    whole: Largest = Largest()  # noqa: RUF009  # immutable
    measured: bool = False

    def __add__(self, other: Needs) -> Needs:
        """Of both, made in one pass."""
        one, two = self.rooms, other.rooms
        return Needs(
            self.outputs + other.outputs,
            self.tensors + other.tensors,
            self.reads + other.reads,
            self.written + other.written,
            self.programs | other.programs,
            max(self.output, other.output),
            min(filter(None, (self.smallest, other.smallest)), default=0),
            self.columns + other.columns,
            {i: max(self.widths.get(i, 0), other.widths.get(i, 0)) for i in {**self.widths, **other.widths}},
            max(self.wide, other.wide),
            Rooms(
                max(one.buffers, two.buffers), max(one.keepable, two.keepable), one.torch or two.torch,
                max(one.there, two.there),
            ),
            other.whole if other.whole.nbytes > self.whole.nbytes else self.whole,
            self.measured or other.measured,
        )  # fmt: skip


def needs(
    programs: Sequence[Program], works: Sequence[TensorWork], staged: Sequence[Staged] = (), *, compiled: bool = True
) -> Needs:
    """Of one output. `compiled`: whether compiled code is there for those kernels that have some."""
    kinds = {(w.program, w.staged, w.dtype) for w in works}
    used = frozenset(p for p, _, _ in kinds if p >= 0)
    return Needs(
        1,
        len(works),
        sum([len(w.reads) for w in works]),
        sum([w.nbytes for w in works]),
        used,
        max((dtype.size for _, _, dtype in kinds), default=0),
        min((dtype.size for p, _, dtype in kinds if p >= 0), default=0),
        _columns([programs[p] for p in sorted(used)]),
        _widths(programs, works),
        max((w.nbytes * (len(w.reads) + 2) * 4 for w in works if w.wide is not None), default=0),
        room(staged, works, compiled=compiled),
        largest(staged, works),
        any(measured(staged[n]) for p, n, _ in kinds if p == STAGED),
    )


def together(found: Iterable[Needs]) -> Needs:
    """Of all of them, made in one pass."""
    return sum(found, Needs())


def _columns(used: Sequence[Program]) -> int:
    """Bytes per element in the inputs' buffers of one output, a buffer serving all programs: its widest use counts."""
    return sum(max(column) for column in zip_longest(*([d.size for d in p.inputs] for p in used), fillvalue=0))


def _widths(programs: Sequence[Program], works: Sequence[TensorWork]) -> dict[int, int]:
    """The same when each source has one buffer, whatever outputs it is read for."""
    widths: dict[int, int] = {}
    for program, sources in {(w.program, tuple([s for s, _ in w.reads])) for w in works if w.program >= 0}:
        for source, dtype in zip(sources, programs[program].inputs, strict=False):
            widths[source] = max(widths.get(source, 0), dtype.size)
    return widths
