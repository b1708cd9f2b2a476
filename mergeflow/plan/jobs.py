"""Tensors that are made by programs with kernels: one job each, done by one worker from the first pass to the last.

Such a program needs to know things of a whole tensor before it can compute an element, so its tensors are not cut into
units like others. A job reads its operands as often as that takes; where they fit, it keeps them in memory instead.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from mergeflow.digest import CHUNK, chunk_count
from mergeflow.formats.blocks import Block
from mergeflow.methods.kernels import GRID, formula
from mergeflow.plan.program import STAGED, Call, Staged, TensorWork, Wide
from mergeflow.tensors import DType, TensorSpec

PIECE = 2 * CHUNK  # of output, made and written at a time
WORKING = 32_000_000  # what a kernel may take to know a tensor: samples, collected values
SPAN_THERE = 16 * GRID  # elements that are gone through at a time on an accelerator
_SPARE = 12  # tiles that kernels make for themselves


class Job(NamedTuple):
    """One tensor of an output. `start` is its place in the output, `chunk` numbers its first chunk there; the rest is
    as in its TensorWork."""

    output: int
    staged: int
    name: str
    dtype: DType
    shape: tuple[int, ...]
    elements: int
    start: int
    chunk: int
    reads: tuple[tuple[int, int], ...]
    wide: Wide | None
    wide_inputs: tuple[bool, ...]
    wide_dtype: DType | None

    def blocks(self) -> Iterator[tuple[int, int, Block]]:
        """The pieces of the result: the first element, how many, and where they go."""
        size = self.dtype.size
        step = PIECE // size
        for begin in range(0, self.elements, step):
            n = min(step, self.elements - begin)
            bounds = (*range(0, n * size, CHUNK), n * size)
            at = self.start + begin * size
            yield begin, n, Block(at, n * size, self.dtype, self.chunk + begin * size // CHUNK, bounds)


def jobs(
    outputs: Sequence[tuple[Sequence[TensorWork], Sequence[TensorSpec]]],
    only: Sequence[Collection[str]] | None = None,
) -> list[Job]:
    """The jobs of outputs that are made in one pass, the largest first: a large one at the end would be waited for.
    `only` names the tensors of each output that are to be made."""
    found = []
    for number, (works, tensors) in enumerate(outputs):
        chunk = 0
        for work, spec in zip(works, tensors, strict=True):
            if work.program == STAGED and spec.nbytes and (only is None or work.name in only[number]):
                found.append(
                    Job(
                        number, work.staged, work.name, work.dtype, work.shape, spec.elements, spec.start, chunk,
                        work.reads, work.wide, work.wide_inputs, work.wide_dtype,
                    )
                )  # fmt: skip
            chunk += chunk_count(spec.nbytes)
    return sorted(found, key=lambda job: -job.elements)


def measured(program: Staged) -> list[Call]:
    """The kernels of a program that have to know their operands whole."""
    return [op for op in program.ops if isinstance(op, Call) and formula(op.kernel).measure is not None]


def kept_operands(program: Staged) -> list[int]:
    """The operands that are worth keeping in memory between passes: what was computed for kernels that measure."""
    tiled = [call for call in measured(program) if formula(call.kernel).kernel.access != "tensor"]
    operands = [o for call in tiled for o in call.operands if o >= len(program.inputs)]
    return list(dict.fromkeys(operands))


class Rooms(NamedTuple):
    """Bytes that a worker needs for jobs, and that it can make use of besides, to keep operands; whether any of the
    jobs is done with torch. `there`: bytes of an accelerator's memory that a worker needs for those that can be done on
    one; 0 where none can."""

    buffers: int = 0
    keepable: int = 0
    torch: bool = False
    there: int = 0


def room(programs: Sequence[Staged], works: Sequence[TensorWork], *, compiled: bool = False) -> Rooms:
    """What the jobs among these works take. `compiled`: whether there is compiled code for those kernels that can have
    it; it goes through tensors as often as it takes, and keeps no operands."""
    found = Rooms()
    widest: dict[tuple[int, bool], int] = {}
    for work in works:
        if work.program == STAGED:
            key = work.staged, work.wide is not None
            widest[key] = max(widest.get(key, 0), work.nbytes // work.dtype.size)
    for (number, wide), elements in widest.items():
        program = programs[number]
        if not wide and is_compiled(program):
            spans = SPAN_THERE * (sum(d.size for d in program.inputs) + len(program.ops)) + PIECE
            found = found._replace(
                buffers=max(found.buffers, spans), there=max(found.there, _room_there(program, elements))
            )
        if compiled and not wide and is_compiled(program):
            found = found._replace(buffers=max(found.buffers, _compiled_room(program)))
            continue
        tiles = len(program.inputs) + 2 * len(program.ops) + _SPARE
        spans = sum(d.size for d in program.inputs) * (PIECE // program.out.size)
        buffers = tiles * GRID * 8 + spans + PIECE + (WORKING if measured(program) else 0)
        sizes = [_dtype(program, operand).size for operand in kept_operands(program)]
        found = Rooms(max(found.buffers, buffers), max(found.keepable, elements * sum(sizes)), True, found.there)
    return found


def is_compiled(program: Staged) -> bool:
    """Whether all its kernels say as data what they come to (`mergeflow.methods.compiled`)."""
    return all(formula(op.kernel).compiled is not None for op in program.ops if isinstance(op, Call))


def _compiled_room(program: Staged) -> int:
    """Of compiled code (executor/compiled.py): a span of each input, of the result and of each mask, a piece of the
    output, and what its searches may take."""
    span = 2 * GRID * (sum(d.size for d in program.inputs) + len(program.ops) * 8)
    return span + PIECE + (WORKING if measured(program) else 0)


def _room_there(program: Staged, elements: int) -> int:
    """Of an accelerator's memory (executor/devicekernels.py): a span of the inputs and of all that is made of them,
    running sums, and of ranks twice the operand's magnitudes."""
    n = min(elements, SPAN_THERE)
    values = sum(d.size for d in program.inputs) + 8 * (2 * len(program.ops) + len(program.inputs) + _SPARE)
    ranks = 2 * max((call.to.size for call in measured(program)), default=0)
    return n * values + elements * ranks + WORKING


def _dtype(program: Staged, operand: int) -> DType:
    count = len(program.inputs)
    return program.inputs[operand] if operand < count else program.ops[operand - count].to
