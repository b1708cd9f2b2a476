"""Programs with kernels by compiled calls (_kernels.c), one tensor at a time: the same bytes as stages.py, which does
it with torch, in a fraction of the time and without importing torch.

A tensor is gone through a span at a time: its inputs are read into buffers that stay in the cache, and one call
evaluates all operations over them. What kernels have to know of whole operands is found in passes that all kernels at
the same depth share (searches.py); operands are computed again in each pass rather than kept, which is cheaper than
writing them to memory. So nothing here grows with the tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy.typing as npt

from mergeflow.executor import _kernels
from mergeflow.executor.device import Bytes, allocate
from mergeflow.executor.layouts import Layouts
from mergeflow.executor.masks import Mask
from mergeflow.executor.packing import LOST, SUM
from mergeflow.executor.pieces import Making, Piece
from mergeflow.executor.searches import STRETCH, Ask, Search, room, search, stretches
from mergeflow.formats.many import ReadFiles
from mergeflow.methods.compiled import Drop, Operation, Statistic
from mergeflow.methods.kernels import GRID, Given, formula
from mergeflow.plan.jobs import PIECE, WORKING, Job
from mergeflow.plan.program import Call, Op, Staged

SPAN = 2 * GRID  # elements gone through at a time: the inputs' bytes stay in the second-level cache


class CompiledStages:
    """Runs jobs, in one thread."""

    def __init__(self, programs: Sequence[Staged]) -> None:
        self._programs = programs
        self._buffers = _Buffers()
        self._layouts = [Layouts(program) for program in programs]

    def can_run(self, job: Job) -> bool:
        """Whether all kernels of its program are compiled, and it is of the usual kind."""
        ops = self._programs[job.staged].ops
        return job.wide is None and all(isinstance(op, Op) or formula(op.kernel).compiled is not None for op in ops)

    def run(self, job: Job, files: Mapping[int, ReadFiles]) -> Making:
        """A job, ready to be gone through: what its kernels have to know is known."""
        sources = [(files[source], offset) for source, offset in job.reads]
        return _Tensor(self._layouts[job.staged], job, sources, self._buffers)


class _Tensor:
    """One tensor in the making. Operands are numbered as in its program."""

    def __init__(self, layouts: Layouts, job: Job, sources: Sequence[tuple[ReadFiles, int]], buffers: _Buffers) -> None:
        self._layouts, self._job, self._sources, self._buffers = layouts, job, sources, buffers
        self._program = program = layouts.program
        self._inputs = len(program.inputs)
        self._operations: dict[int, Operation] = {}  # of the calls, once what they depend on is known
        self._masks: dict[int, Mask] = {}
        self._find_operations()

    def pieces(self) -> Iterator[Piece]:
        """The result from its beginning to its end."""
        out, last = self._buffers.get("out", PIECE), self._inputs + len(self._program.ops) - 1
        runner = self._runner([last], [], result=SUM)
        width = self._program.out.size
        for begin, n, block in self._job.blocks():
            for at in range(begin, begin + n, SPAN):
                count = min(SPAN, begin + n - at)
                runner.run([(at, count)], (out[(at - begin) * width : (at - begin + count) * width],))
            yield Piece(out[: block.nbytes], block, begin, n)

    def lost_before_rounding(self, piece: Piece) -> int:
        """How many of a piece's values were not finite before the last rounding."""
        runner = self._runner([self._inputs + len(self._program.ops) - 1], [], result=LOST)
        end = piece.begin + piece.elements
        return sum(runner.run([(at, min(SPAN, end - at))], ()) for at in range(piece.begin, end, SPAN))

    # -- what kernels have to know -----------------------------------------------------------------------------------

    def _find_operations(self) -> None:
        """Inner kernels first; all that can be searched for at the same time in the same passes."""
        waiting = [i for i, op in enumerate(self._program.ops) if isinstance(op, Call)]
        while waiting:
            ready = [i for i in waiting if all(self._known(o) for o in self._call(i).operands)]
            wanted: dict[int, Statistic] = {}
            for i in ready:
                call = self._call(i)
                compiled = formula(call.kernel).compiled
                assert compiled is not None
                statistic = compiled.statistic(self._given(call))
                if statistic is None:
                    self._settle(i, None)
                else:
                    wanted[i] = statistic
            sizes = {i: room(one, len(self._call(i).operands), self._call(i).to) for i, one in wanted.items()}
            for group in _groups(sizes):
                self._search({i: self._begun(i, wanted[i], group, sizes) for i in group})
            waiting = [i for i in waiting if i not in self._operations]

    def _begun(self, index: int, statistic: Statistic, group: Sequence[int], sizes: Mapping[int, int]) -> Search:
        """A search with bytes of its own among those of its group."""
        call, begin = self._call(index), sum(sizes[i] for i in group if i < index)
        own = self._buffers.get("counts", sum(sizes[i] for i in group))[begin : begin + sizes[index]]
        return search(statistic, len(call.operands), self._job.elements, call.to, own)

    def _known(self, operand: int) -> bool:
        """Whether all kernels below an operand are ready to be computed."""
        return all(
            isinstance(self._program.ops[i], Op) or i in self._operations for i in self._program.needed([operand])
        )

    def _search(self, searches: dict[int, Search]) -> None:
        """Go through the operands as often as it takes to end all searches."""
        while searches:
            asked: list[tuple[Call, Ask]] = []
            for i, one in list(searches.items()):
                try:
                    asked += [(self._call(i), ask) for ask in next(one)]
                except StopIteration as stop:
                    self._settle(i, stop.value)
                    del searches[i]
            sampled = [(call, ask) for call, ask in asked if ask.sample]
            if sampled:
                self._through(sampled, [[(at, STRETCH) for at in stretches(self._job.elements)]])
            if len(sampled) < len(asked):
                end = self._job.elements
                spans = [[(at, min(SPAN, end - at))] for at in range(0, end, SPAN)]
                self._through([(call, ask) for call, ask in asked if not ask.sample], spans)

    def _through(self, asked: Sequence[tuple[Call, Ask]], spans: Sequence[Sequence[tuple[int, int]]]) -> None:
        """One pass. Values that are asked for follow each other in their buffers; counts add up."""
        operands = [call.operands[k] for call, ask in asked for k in ask.operands]
        runner = self._runner(operands, asked)
        outs, done = [ask.out for _, ask in asked], 0
        for parts in spans:
            n = sum(count for _, count in parts)
            here = [out[done : done + n] if ask.kind == SUM else out for out, (_, ask) in zip(outs, asked, strict=True)]
            runner.run(parts, tuple(here))
            done += n

    def _settle(self, index: int, found: object) -> None:
        call = self._call(index)
        compiled = formula(call.kernel).compiled
        assert compiled is not None
        operation = self._operations[index] = compiled.operation(self._given(call), found)
        if isinstance(operation, Drop) and operation.density < 1:
            self._masks[index] = Mask(operation)

    def _call(self, index: int) -> Call:
        op = self._program.ops[index]
        assert isinstance(op, Call)
        return op

    def _given(self, call: Call) -> Given:
        job = self._job
        return Given(
            dict(call.arguments), call.weights, dict(call.options), call.to, job.elements, call.seed, job.name,
            job.shape,
        )  # fmt: skip

    def _runner(self, operands: Sequence[int], asked: Sequence[tuple[Call, Ask]], result: int | None = None) -> _Runner:
        layout = self._layouts.layout(operands, asked, self._operations, self._masks, result)
        reads = [(*self._sources[slot], size) for slot, size in layout.slots]
        return _Runner(layout.program, reads, [self._masks[i] for i in layout.masks], self._buffers)


class _Runner:
    """A packed program with what it reads: files, where the tensor begins in them, bytes of an element."""

    def __init__(
        self, program: bytes, reads: Sequence[tuple[ReadFiles, int, int]], masks: Sequence[Mask], buffers: _Buffers
    ) -> None:
        self._program, self._reads, self._masks = program, reads, masks
        self._slots = [buffers.get(("slot", i), SPAN * size) for i, (_, _, size) in enumerate(reads)]
        self._kept = [buffers.get(("mask", i), SPAN) for i in range(len(masks))]

    def run(self, parts: Sequence[tuple[int, int]], outs: tuple[npt.NDArray[Any], ...]) -> int:
        """Evaluate it over parts of the tensor (first element, how many), at most SPAN elements in all, as one: how
        many results were not finite, where the program counts that."""
        done = 0
        for at, n in parts:
            for (file, offset, size), slot in zip(self._reads, self._slots, strict=True):
                file.read_into(slot[done * size : (done + n) * size].data, offset + at * size)
            for mask, kept in zip(self._masks, self._kept, strict=True):
                mask.write(at, kept[done : done + n])
            done += n
        return _kernels.run(self._program, (*self._slots, *self._kept), outs, done)


class _Buffers:
    """Bytes by name, made when first asked for and used again by every job of a thread."""

    def __init__(self) -> None:
        self._bytes: dict[object, Bytes] = {}

    def get(self, name: object, nbytes: int) -> Bytes:
        found = self._bytes.get(name)
        if found is None or found.size < nbytes:
            found = self._bytes[name] = allocate(nbytes)
        return found[:nbytes]


def _groups(sizes: Mapping[int, int]) -> list[list[int]]:
    """Searches that are made together: as many as their counts, of these sizes, have room for."""
    groups: list[list[int]] = []
    taken = WORKING
    for i, nbytes in sizes.items():
        if taken + nbytes > WORKING:
            groups.append([])
            taken = 0
        groups[-1].append(i)
        taken += nbytes
    return groups
