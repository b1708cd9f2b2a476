"""The loop: units of one output, read, computed, hashed and written by several workers, then published.

Workers share a queue and nothing else. Memory is workers × buffers, whatever the model's size.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from mergeflow.digest import printable
from mergeflow.errors import IntegrityError, MergeflowError
from mergeflow.events import PhaseEnded, PhaseStarted, Progressed, Reporter, Warned
from mergeflow.executor.device import Bytes, Device, Worker
from mergeflow.formats.files import Fingerprint, PartFile, clear_dead_parts
from mergeflow.formats.many import ReadFiles
from mergeflow.formats.scan import Content, Scan, count_nonfinite
from mergeflow.formats.workers import Queue, drain
from mergeflow.plan.embed import DIGEST
from mergeflow.plan.planner import OutputPlan, Plan
from mergeflow.plan.program import CONSTANT, COPY, ZERO, Program
from mergeflow.plan.units import Unit
from mergeflow.tensors import DType

_NAN = {  # one bit pattern each: vectorised and scalar casts write different ones
    DType.F64: 0x7FF8_0000_0000_0000,
    DType.F32: 0x7FC0_0000,
    DType.F16: 0x7E00,
    DType.BF16: 0x7FC0,
    DType.F8_E4M3: 0x7F,
    DType.F8_E5M2: 0x7E,
}
_UNSIGNED = {8: np.uint64, 4: np.uint32, 2: np.uint16, 1: np.uint8}
_INFINITY = {
    DType.F64: 0x7FF0_0000_0000_0000,
    DType.F32: 0x7F80_0000,
    DType.F16: 0x7C00,
    DType.BF16: 0x7F80,
    DType.F8_E4M3: 0x7E,  # it has none: everything above the largest number is NaN
    DType.F8_E5M2: 0x7C,
}


@dataclass(frozen=True, slots=True)
class Written:
    """A published output: its content and the fingerprint of the file after the rename. `lost`: results that are not
    finite; `overflowed`: those of them that only the output's dtype could not hold."""

    content: Content
    at: Fingerprint
    lost: int
    overflowed: int
    bytes_read: int


@dataclass(slots=True)
class _Counts:
    lock: threading.Lock
    lost: int = 0
    overflowed: int = 0


def write_output(
    plan: Plan,
    output: OutputPlan,
    device: Device,
    report: Reporter,
    expected: Mapping[int, tuple[Fingerprint, ...]],
    check: Callable[[str], None] = lambda digest: None,
) -> Written:
    """Make one output. `expected` is what each source's files looked like when it was identified; `check` is given the
    result's digest before it is published, and may raise.

    Raises:
        IntegrityError: a source is not the file that was planned with.
        ResourceError: disk or memory.
        MergeflowError: the result is not finite and the recipe says `nonfinite: error`.
    """
    assert output.placement is not None
    placement = output.placement
    clear_dead_parts(output.target.parent)
    counts = _Counts(threading.Lock())
    with ExitStack() as stack:
        part = stack.enter_context(PartFile(output.target, output.layout.file_size))
        files = _open(stack, plan, output, expected)
        scan = Scan(output.layout.tensors, samples=False)
        report(PhaseStarted("merging", output.path, output.layout.file_size))

        def start() -> Callable[[Unit], None]:
            worker = device.worker(plan.programs, placement)

            def work(unit: Unit) -> None:
                run_unit(unit, worker, plan.programs, files, part, scan, counts)
                report(Progressed(unit.block.nbytes))

            return work

        drain(Queue(plan.units(output)), start, placement.workers)
        for file in files.values():
            file.check_unchanged()
        _judge(plan, output, counts, report)
        content = scan.finish()
        header = output.layout.header_with({**output.layout.metadata, DIGEST: printable(content.model)})
        part.write(memoryview(header), 0)
        check(printable(content.model))
        at = part.commit()
        report(PhaseEnded("merging", output.path))
        return Written(content, at, counts.lost, counts.overflowed, sum(f.bytes_read for f in files.values()))


def run_unit(
    unit: Unit, worker: Worker, programs: Sequence[Program], files: Mapping[int, ReadFiles], part: PartFile,
    scan: Scan, counts: _Counts,
) -> None:  # fmt: skip
    """Read, compute, hash, write: a plain function of a tuple of numbers, for whatever runs it."""
    if unit.wide is not None:
        data = _run_wide(unit, worker, programs[unit.program], files, counts)
    elif unit.program == COPY:
        for read in unit.reads:
            files[read.source].read_into(worker.out[read.at : read.at + read.nbytes].data, read.offset)
        data = worker.out[: unit.block.nbytes]
    elif unit.program == CONSTANT:
        data = np.frombuffer(bytearray(unit.data), np.uint8)
    elif unit.program == ZERO:
        data = worker.out[: unit.block.nbytes]
        data[:] = 0
    else:
        for read in unit.reads:
            files[read.source].read_into(worker.slot(read.slot)[read.at : read.at + read.nbytes].data, read.offset)
        worker.run(programs[unit.program], unit.elements)
        data = worker.out[: unit.block.nbytes]
    lost = scan.add(data, unit.block)
    computed = unit.program >= 0 and unit.wide is None
    if lost and computed and _settle(data, lost, worker, programs[unit.program], unit.elements, counts):
        scan.add(data, unit.block)
    part.write(data.data, unit.block.offset)
    part.write_back(unit.block.offset, unit.block.nbytes)


def _open(
    stack: ExitStack, plan: Plan, output: OutputPlan, expected: Mapping[int, tuple[Fingerprint, ...]]
) -> Mapping[int, ReadFiles]:
    files = {}
    for i in sorted({source for w in output.works for source, _ in w.reads}):
        file = stack.enter_context(ReadFiles(plan.facts[i].files))
        if file.opened != expected[i]:
            raise IntegrityError(f"{plan.facts[i].name}: its file changed after it was hashed", hint="build again")
        files[i] = file
    return files


def _settle(data: Bytes, lost: int, worker: Worker, program: Program, elements: int, counts: _Counts) -> bool:
    """Count results that are not finite, and give each NaN the one bit pattern; True when there was one."""
    early = worker.lost_before_rounding(program, elements)
    with counts.lock:
        counts.lost += lost
        counts.overflowed += max(0, lost - early)
    return _canonical_nan(data, program.out)


def _run_wide(unit: Unit, worker: Worker, program: Program, files: Mapping[int, ReadFiles], counts: _Counts) -> Bytes:
    """The first convolution of an inpainting model: the program on the channels that all models have, the rest the
    primary's. Small enough to hold whole, a piece of the narrow part at a time through the worker's buffers."""
    wide = unit.wide
    assert wide is not None
    assert unit.wide_dtype is not None
    raw = {}
    for read in unit.reads:
        raw[read.slot] = np.empty(read.nbytes, np.uint8)
        files[read.source].read_into(raw[read.slot].data, read.offset)
    narrow = [
        _channels(raw[i], wide.outer, dtype.size * wide.inner, wide.narrow, is_wide=is_wide, channels=wide.channels)
        for i, (dtype, is_wide) in enumerate(zip(program.inputs, unit.wide_inputs, strict=True))
    ]
    total = wide.outer * wide.narrow * wide.inner
    merged = np.empty(total * program.out.size, np.uint8)
    step = min(
        [worker.out.size // program.out.size, *(worker.slot(i).size // d.size for i, d in enumerate(program.inputs))]
    )
    for begin in range(0, total, step):
        n = min(step, total - begin)
        for i, dtype in enumerate(program.inputs):
            worker.slot(i)[: n * dtype.size] = narrow[i][begin * dtype.size : (begin + n) * dtype.size]
        worker.run(program, n)
        piece = merged[begin * program.out.size : (begin + n) * program.out.size]
        piece[:] = worker.out[: n * program.out.size]
        if lost := count_nonfinite(piece, program.out):
            _settle(piece, lost, worker, program, n, counts)
    own = _recast(raw[len(program.inputs)], unit.wide_dtype, program.out)
    result = own.reshape(wide.outer, wide.channels, wide.inner * program.out.size)
    result[:, : wide.narrow] = merged.reshape(wide.outer, wide.narrow, wide.inner * program.out.size)
    return result.reshape(-1)


def _channels(raw: Bytes, outer: int, row: int, narrow: int, *, is_wide: bool, channels: int) -> Bytes:
    if not is_wide:
        return raw
    return np.ascontiguousarray(raw.reshape(outer, channels, row)[:, :narrow]).reshape(-1)


def _recast(raw: Bytes, source: DType, target: DType) -> Bytes:
    """The primary's own values in the output's dtype, by the same arithmetic as any other cast."""
    if source is target:
        return raw.copy()
    import torch

    from mergeflow.executor.cpu import TORCH, store

    wide = torch.from_numpy(raw).view(TORCH[source]).to(torch.float64)
    result = torch.empty(wide.numel(), dtype=TORCH[target])
    store(DType.F64, target)(result, wide)
    recast: Bytes = result.view(torch.uint8).numpy()
    _canonical_nan(recast, target)
    return recast


def _canonical_nan(data: Bytes, dtype: DType) -> bool:
    """Give every NaN the one pattern; True when there was one."""
    unsigned = _UNSIGNED[dtype.size]
    values = data.view(unsigned)
    magnitude = values & unsigned((1 << (8 * dtype.size - 1)) - 1)
    nan = magnitude > unsigned(_INFINITY[dtype])
    values[nan] = unsigned(_NAN[dtype])
    return bool(nan.any())


def _judge(plan: Plan, output: OutputPlan, counts: _Counts, report: Reporter) -> None:
    """What to say, or do, about results that are not finite."""
    policy = plan.bound.recipe.options.nonfinite
    if not counts.lost or policy == "allow":
        return
    message = f"{output.path}: {counts.lost:,} values are NaN or infinite"
    if counts.overflowed:
        message += f"; {counts.overflowed:,} of them are too large for the output's dtype"
    if policy == "error":
        raise MergeflowError(
            message, hint="a wider dtype may hold them; options: { nonfinite: warn } writes them all the same"
        )
    report(Warned(message))
