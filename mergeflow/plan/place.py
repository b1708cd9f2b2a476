"""Where and how a build runs, as a pure function of what it needs and what there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mergeflow.digest import CHUNK
from mergeflow.errors import ResourceError
from mergeflow.plan.needs import Needs, needs, together
from mergeflow.plan.outlook import Outlook
from mergeflow.plan.program import Program, Staged, TensorWork
from mergeflow.plan.whole import Largest
from mergeflow.tensors import DType, human_bytes

UNIT = 2 * CHUNK  # of output; larger buffers leave the cache, smaller ones cost system calls
TILE, TILE_F64 = 128 * 1024, 32 * 1024  # elements: small enough for the cache, large enough to make calls rare
KEEP = 160_000_000  # bytes of operands that a worker keeps for kernels, at most: with more the cache does not gain
TILES, TWO_PHASE, TENSOR, RESIDENT, STREAMED = "tile", "two-phase", "tensor", "resident", "streamed"
FLOOR, PLAIN = 190_000_000, 85_000_000  # the interpreter with torch and without, before any buffer
KNOWN = 1_600  # bytes of the plan itself: of a tensor, and of each that it is made of


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
    whole: Largest = Largest()  # noqa: RUF009  # immutable
    measured: bool = False  # whether kernels have to know whole tensors first
    outputs: int = 1  # that are made of the same slots
    base: int = FLOOR  # of the process, before any buffer
    there: int = 0  # of an accelerator's memory for tensors with kernels, where any can be computed there


@dataclass(frozen=True, slots=True)
class Budget:
    """What the machine lets us use: bytes of memory (all of the process), usable cores, and bytes of each accelerator's
    memory where that was asked for (else a share of what is free there). `limit`: what `memory` is all of, where asking
    for more would not help."""

    memory: int
    cores: int
    vram: int | None = None
    limit: str = ""


@dataclass(frozen=True, slots=True)
class Placement:
    """`tile` and `tile_f64` count elements, `unit` bytes of output, `peak` is the predicted anonymous memory.

    Strategies: `tile` by tile; `two-phase`, where kernels first go through whole tensors; `tensor`, where some are held
    whole; on accelerators `streamed` through their memory, or `resident`, where several outputs are made of inputs that
    are copied there once."""

    device: str
    strategy: str
    workers: int
    unit: int
    tile: int
    tile_f64: int
    peak: int
    reason: str
    keep: int = 0  # bytes of operands that a worker may keep between the passes of a job
    whole: int = 0  # bytes for tensors that are computed whole, of all workers together
    devices: int = 1  # accelerators that the workers take turns at
    vram: int = 0  # predicted bytes on each of them
    kernels: bool = False  # whether kernels that can be are computed there, too
    outlook: Outlook | None = None  # how long it takes, where that was asked


def footprint(
    programs: Sequence[Program], outputs: Sequence[Sequence[TensorWork]], staged: Sequence[Staged] = (), *,
    compiled: bool = True,
) -> Footprint:  # fmt: skip
    """What a worker needs for outputs that are made in one pass. `compiled`: whether compiled code is there for sums
    and for those kernels that have some; else torch does their work."""
    return footprint_of(
        programs, together(needs(programs, works, staged, compiled=compiled) for works in outputs), compiled=compiled
    )


def footprint_of(programs: Sequence[Program], need: Needs, *, compiled: bool = True) -> Footprint:
    """The same, the needs of the outputs being known."""
    output = need.output or 1
    torch = need.rooms.torch or (bool(need.programs) and not compiled)
    base = (FLOOR if torch else PLAIN) + KNOWN * (need.tensors + need.reads)
    return Footprint(
        min(need.columns, sum(need.widths.values())), output, need.smallest or output,
        _registers([programs[p] for p in sorted(need.programs)]), need.wide, need.written, need.rooms.buffers,
        need.rooms.keepable, need.whole, need.measured, need.outputs, base, need.rooms.there,
    )  # fmt: skip


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
            peak = need.base + n * _per_worker(need, unit) + need.whole.nbytes
            if peak <= budget.memory:
                keep = min(KEEP, need.keepable, (budget.memory - peak) // n)
                reason = f"{n} workers × {human_bytes(_per_worker(need, unit) + keep)}"
                more = min((n - 1) * need.whole.nbytes, budget.memory - peak - n * keep)
                peak, whole = peak + n * keep + more, need.whole.nbytes + more
                return Placement(device, _strategy(need), n, unit, TILE, TILE_F64, peak, reason, keep, whole)
            if unit == UNIT and n * 2 <= wanted:
                break  # half the units before less than half the workers
    least = need.base + _per_worker(need, CHUNK) + need.whole.nbytes
    most = need.whole
    part = f" ({human_bytes(most.nbytes)} of it for {most.kernel} of {most.tensor})" if most.nbytes else ""
    raise ResourceError(
        f"this merge needs {human_bytes(least)} of memory{part}, the budget is {human_bytes(max(0, budget.memory))}",
        hint=f"--memory {-(-least // 1_000_000)}MB would do"
        if not budget.limit
        else f"it is what {budget.limit} leaves: {human_bytes(least - budget.memory)} more would do",
    )


def peak_of(need: Footprint, placement: Placement) -> int:
    """Bytes of memory that a part of a pass takes on the CPU, placed as the pass is: never more than the pass."""
    each = _per_worker(need, placement.unit) + min(placement.keep, need.keepable)
    whole = min(placement.whole, placement.workers * need.whole.nbytes)
    return need.base + placement.workers * each + whole


def _strategy(need: Footprint) -> str:
    if need.whole.nbytes:
        return TENSOR
    return TWO_PHASE if need.measured else TILES


def _per_worker(need: Footprint, unit: int) -> int:
    elements = unit // need.smallest_output
    buffers = elements * (need.inputs + need.output) + TILE * need.registers
    return buffers + need.largest_wide + need.jobs


def tile_for(compute: DType, placement: Placement) -> int:
    return placement.tile_f64 if compute is DType.F64 else placement.tile
