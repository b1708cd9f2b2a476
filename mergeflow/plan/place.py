"""Where and how a build runs, as a pure function of what it needs and what there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from mergeflow.digest import CHUNK
from mergeflow.errors import ResourceError
from mergeflow.plan.jobs import room
from mergeflow.plan.program import Program, Staged, TensorWork
from mergeflow.tensors import DType, human_bytes

UNIT = 2 * CHUNK  # of output; larger buffers leave the cache, smaller ones cost system calls
TILE, TILE_F64 = 128 * 1024, 32 * 1024  # elements: small enough for the cache, large enough to make calls rare
KEEP = 160_000_000  # bytes of operands that a worker keeps for kernels, at most: with more the cache does not gain
FLOOR = 180_000_000  # the interpreter with torch, before any buffer


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a worker needs per element of output: input bytes over all slots and result bytes. `registers` bytes per
    element of a tile (accumulator, scratch, inner results); `largest_wide` bytes of a wide tensor, whole."""

    inputs: int
    output: int
    smallest_output: int
    registers: int
    largest_wide: int
    bytes_written: int
    jobs: int = 0  # what tensors with kernels take, and what they could keep besides
    keepable: int = 0


@dataclass(frozen=True, slots=True)
class Budget:
    """What the machine lets us use: bytes of memory (all of the process), usable cores."""

    memory: int
    cores: int


@dataclass(frozen=True, slots=True)
class Placement:
    """`tile` and `tile_f64` count elements, `unit` bytes of output, `peak` is the predicted anonymous memory."""

    device: str
    strategy: str
    workers: int
    unit: int
    tile: int
    tile_f64: int
    peak: int
    reason: str
    keep: int = 0  # bytes of operands that a worker may keep between the passes of a job


def footprint(
    programs: Sequence[Program], outputs: Sequence[Sequence[TensorWork]], staged: Sequence[Staged] = ()
) -> Footprint:
    """What a worker needs for outputs that are made in one pass."""
    works = [work for output in outputs for work in output]
    used = {p for p in {work.program for work in works} if p >= 0}
    registers = _registers([programs[p] for p in sorted(used)])
    output = max((w.dtype.size for w in works), default=1)
    smallest = min((w.dtype.size for w in works if w.program >= 0), default=output)
    wide = max((w.nbytes * (len(w.reads) + 2) * 4 for w in works if w.wide is not None), default=0)
    inputs = min(sum(_columns(programs, output) for output in outputs), _by_source(programs, works))
    return Footprint(inputs, output, smallest, registers, wide, sum(w.nbytes for w in works), *room(staged, works))


def _columns(programs: Sequence[Program], works: Sequence[TensorWork]) -> int:
    """Bytes per element in the inputs' buffers of one output, a buffer serving all programs: its widest use counts."""
    used = [programs[p] for p in sorted({w.program for w in works}) if p >= 0]
    return sum(max(column) for column in zip_longest(*([d.size for d in p.inputs] for p in used), fillvalue=0))


def _by_source(programs: Sequence[Program], works: Sequence[TensorWork]) -> int:
    """The same when each source has one buffer, whatever outputs it is read for."""
    widths: dict[int, int] = {}
    for program, sources in {(w.program, tuple([s for s, _ in w.reads])) for w in works if w.program >= 0}:
        for source, dtype in zip(sources, programs[program].inputs, strict=False):
            widths[source] = max(widths.get(source, 0), dtype.size)
    return sum(widths.values())


def _registers(programs: Sequence[Program]) -> int:
    """What a worker keeps per element of a tile: accumulator and scratch in each compute dtype, inner results, and one
    float32 on the way into float64."""
    kept = {("middle", 0, DType.F32)}
    for program in programs:
        for i, op in enumerate(program.ops):
            kept |= {("total", 0, op.compute), ("scratch", 0, op.compute)}
            if i < len(program.ops) - 1:
                kept.add(("result", i, op.to))
    return sum(dtype.size for _, _, dtype in kept)


def place(need: Footprint, budget: Budget, *, device: str = "cpu", workers: int | None = None) -> Placement:
    """As many workers and as large units as the budget allows, and never more than cores or useful sizes.

    Raises:
        ResourceError: not even one worker with the smallest unit fits.
    """
    wanted = workers or budget.cores
    if workers is None and need.bytes_written < 16 * CHUNK:
        wanted = 1  # a second thread costs more than it does on so little
    for unit in (UNIT, CHUNK):
        for n in range(wanted, 0, -1):
            peak = FLOOR + n * _per_worker(need, unit)
            if peak <= budget.memory:
                keep = min(KEEP, need.keepable, (budget.memory - peak) // n)
                reason = f"{n} workers × {human_bytes(_per_worker(need, unit) + keep)}"
                return Placement(device, "tile", n, unit, TILE, TILE_F64, peak + n * keep, reason, keep)
            if unit == UNIT and n * 2 <= wanted:
                break  # half the units before less than half the workers
    least = FLOOR + _per_worker(need, CHUNK)
    raise ResourceError(
        f"this merge needs {human_bytes(least)} of memory, the budget is {human_bytes(budget.memory)}",
        hint=f"--memory {-(-least // 1_000_000)}MB would do",
    )


def _per_worker(need: Footprint, unit: int) -> int:
    elements = unit // need.smallest_output
    buffers = elements * (need.inputs + need.output) + TILE * need.registers
    return buffers + need.largest_wide + need.jobs


def tile_for(compute: DType, placement: Placement) -> int:
    return placement.tile_f64 if compute is DType.F64 else placement.tile
