"""The loop: units of outputs that share their sources, read, computed, hashed and written by several workers.

Workers share a queue and nothing else. Memory is workers × buffers, whatever the model's size. Each output is
published on its own, when all of it is written.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from mergeflow.digest import printable
from mergeflow.errors import IntegrityError, MergeflowError
from mergeflow.events import PhaseEnded, PhaseStarted, Progressed, Reporter, Warned
from mergeflow.executor.device import Bytes, Device, Room, Worker
from mergeflow.executor.kept import damaged_names, open_kept, without
from mergeflow.executor.nonfinite import make_canonical
from mergeflow.executor.wide import run_wide
from mergeflow.formats.files import Fingerprint, clear_dead_parts
from mergeflow.formats.many import ReadFiles
from mergeflow.formats.output import OutputFiles
from mergeflow.formats.scan import Content, Scan
from mergeflow.formats.workers import Queue, drain
from mergeflow.plan.jobs import Job
from mergeflow.plan.planner import OutputPlan, Plan
from mergeflow.plan.program import CONSTANT, COPY, ZERO, Program
from mergeflow.plan.units import Part, Unit, largest_part, slot_sizes

if TYPE_CHECKING:
    from mergeflow.executor.stages import Stages


@dataclass(frozen=True, slots=True)
class Written:
    """A published output: its content and the fingerprints of its files after the rename. `lost`: results that are not
    finite; `overflowed`: those of them that only the output's dtype could not hold."""

    content: Content
    at: tuple[Fingerprint, ...]
    lost: int
    overflowed: int


@dataclass(frozen=True, slots=True)
class Finished:
    """One pass: what came of each output, in their order, and the bytes that were read of sources and of what earlier
    builds have left."""

    results: tuple[Written | MergeflowError, ...]
    bytes_read: int
    bytes_kept: int


@dataclass(slots=True)
class _Sink:
    """An output on its way."""

    output: OutputPlan
    part: OutputFiles
    scan: Scan
    lost: int = 0
    overflowed: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, lost: int, early: int) -> None:
        """Results that are not finite, and how many of them were not before the last rounding either."""
        with self.lock:
            self.lost += lost
            self.overflowed += max(0, lost - early)


def write_outputs(
    plan: Plan,
    outputs: Sequence[OutputPlan],
    device: Device,
    report: Reporter,
    expected: Mapping[int, tuple[Fingerprint, ...]],
    check: Callable[[OutputPlan, str], None] = lambda output, digest: None,
) -> Finished:
    """Make outputs in one pass over their sources. `expected` is what each source's files looked like when it was
    identified; `check` is given each result's digest before it is published, and may raise.

    An output that cannot be published (a check, a full disk, `nonfinite: error`) is an error in the results; the
    others are not touched by it.

    Raises:
        IntegrityError: a source is not the file that was planned with; no output is published.
        ResourceError: disk or memory, before anything is made.
    """
    with ExitStack() as stack:
        sinks = []
        for output in outputs:
            part = stack.enter_context(OutputFiles(output.target, output.layout))
            sinks.append(_Sink(output, part, Scan(output.layout.tensors, samples=False)))
        sources = _open_sources(stack, plan, outputs, expected)
        with ExitStack() as kept_stack:  # closed before anything is published: it may take the place of these
            kept = open_kept(kept_stack, plan.kept_files, plan.first_kept)
            for folder in dict.fromkeys(output.target.parent for output in outputs):
                clear_dead_parts(folder)
            outputs = [without(output, kept, plan.first_kept) for output in outputs]
            name = outputs[0].path if len(outputs) == 1 else f"{len(outputs)} outputs"
            report(PhaseStarted("merging", name, sum(output.layout.file_size for output in outputs)))
            _make(plan, outputs, None, device, report, {**sources, **kept}, sinks)
            bytes_kept = sum(f.bytes_read for f in kept.values())
        damaged = [damaged_names(output, sink.scan) for output, sink in zip(outputs, sinks, strict=True)]
        if any(damaged):
            count = sum(map(len, damaged))
            what = "1 tensor of an earlier build is" if count == 1 else f"{count:,} tensors of earlier builds are"
            report(Warned(f"{what} damaged: computed again"))
            again = [replace(output, kept={}) for output in outputs]
            _make(plan, again, damaged, device, report, sources, sinks)
        for file in sources.values():
            file.check_unchanged()
        results = tuple(_publish(plan, sink, report, check) for sink in sinks)
        report(PhaseEnded("merging", name))
        return Finished(results, sum(f.bytes_read for f in sources.values()), bytes_kept)


def _make(
    plan: Plan,
    outputs: Sequence[OutputPlan],
    only: Sequence[Collection[str]] | None,
    device: Device,
    report: Reporter,
    files: Mapping[int, ReadFiles],
    sinks: Sequence[_Sink],
) -> None:
    """Do all the work of these outputs, or of some of their tensors."""
    placement = outputs[0].placement
    assert placement is not None
    jobs, units = plan.work(outputs, only)
    room = Room(tuple(slot_sizes(units)), max(largest_part(units), 1))

    def start() -> Callable[[Unit | Job], None]:
        worker = device.worker(placement, room)
        stages: list[Stages] = []  # made when there is a job

        def do(unit: Unit | Job) -> None:
            if isinstance(unit, Job):
                stages[:] = stages or [_stages(plan, placement.keep)]
                run_job(unit, stages[0], files, sinks[unit.output], report)
                return
            run_unit(unit, worker, plan.programs, files, sinks)
            report(Progressed(sum(part.block.nbytes for part in unit.parts)))

        return do

    work: list[Unit | Job] = [*jobs, *units]
    drain(Queue(work), start, placement.workers)


def run_unit(
    unit: Unit, worker: Worker, programs: Sequence[Program], files: Mapping[int, ReadFiles], sinks: Sequence[_Sink]
) -> None:
    """Read, then compute, hash and write each part: a plain function of a tuple of numbers, for whatever runs it."""
    if unit.parts[0].wide is not None:
        _wide_unit(unit, worker, programs, files, sinks)
        return
    for slot, source, offset, nbytes, at in unit.reads:
        files[source].read_into(worker.slot(slot)[at : at + nbytes].data, offset)
    for part in unit.parts:
        sink = sinks[part.output]
        data = _made(part, worker, programs, unit.elements)
        lost = sink.scan.add(data, part.block)
        if lost and part.program >= 0:
            sink.count(lost, worker.lost_before_rounding(programs[part.program], part.slots, unit.elements))
            if make_canonical(data, programs[part.program].out):
                sink.scan.add(data, part.block)
        _write(data, part, sink)


def _stages(plan: Plan, keep: int) -> Stages:
    from mergeflow.executor.stages import Stages  # imports torch, which sums do without

    return Stages(plan.staged, keep)


def run_job(job: Job, stages: Stages, files: Mapping[int, ReadFiles], sink: _Sink, report: Reporter) -> None:
    """A tensor with kernels in its program, from its first pass to its last piece."""
    tensor = stages.run(job, files)
    for piece in tensor.pieces():
        lost = sink.scan.add(piece.data, piece.block)
        if lost:
            sink.count(lost, tensor.lost_before_rounding(piece))
            if make_canonical(piece.data, job.dtype):
                sink.scan.add(piece.data, piece.block)
        sink.part.write(piece.data.data, piece.block.offset)
        sink.part.write_back(piece.block.offset, piece.block.nbytes)
        report(Progressed(piece.block.nbytes))


def _made(part: Part, worker: Worker, programs: Sequence[Program], elements: int) -> Bytes:
    """The bytes of one part."""
    nbytes = part.block.nbytes
    if part.program == COPY:
        return worker.slot(part.slots[0])[:nbytes]
    if part.program == CONSTANT:
        return np.frombuffer(part.data, np.uint8)
    if part.program == ZERO:
        worker.out[:nbytes] = 0
    else:
        worker.run(programs[part.program], part.slots, elements)
    return worker.out[:nbytes]


def _wide_unit(
    unit: Unit, worker: Worker, programs: Sequence[Program], files: Mapping[int, ReadFiles], sinks: Sequence[_Sink]
) -> None:
    raw = {}
    for slot, source, offset, nbytes, _ in unit.reads:
        raw[slot] = np.empty(nbytes, np.uint8)
        files[source].read_into(raw[slot].data, offset)
    for part in unit.parts:
        sink = sinks[part.output]

        def settle(lost: int, program: Program, slots: tuple[int, ...], elements: int, sink: _Sink = sink) -> None:
            sink.count(lost, worker.lost_before_rounding(program, slots, elements))

        data = run_wide(part, worker, programs[part.program], raw, settle)
        sink.scan.add(data, part.block)
        _write(data, part, sink)


def _write(data: Bytes, part: Part, sink: _Sink) -> None:
    sink.part.write(data.data, part.block.offset)
    sink.part.write_back(part.block.offset, part.block.nbytes)


def _open_sources(
    stack: ExitStack, plan: Plan, outputs: Sequence[OutputPlan], expected: Mapping[int, tuple[Fingerprint, ...]]
) -> dict[int, ReadFiles]:
    """All sources of these outputs, those too of which an earlier build has left all that is needed."""
    files = {}
    for i in sorted({source for output in outputs for w in output.works for source, _ in w.reads}):
        file = stack.enter_context(ReadFiles(plan.facts[i].files))
        if file.opened != expected[i]:
            raise IntegrityError(f"{plan.facts[i].name}: its file changed after it was hashed", hint="build again")
        files[i] = file
    return files


def _publish(
    plan: Plan, sink: _Sink, report: Reporter, check: Callable[[OutputPlan, str], None]
) -> Written | MergeflowError:
    """What is around the tensors, which needs the digest of what was written, and the final names."""
    try:
        _judge(plan, sink, report)
        content = sink.scan.finish()
        digest = printable(content.model)
        sink.part.finish(content.digests)
        check(sink.output, digest)
        return Written(content, sink.part.commit(), sink.lost, sink.overflowed)
    except MergeflowError as error:
        sink.part.discard()
        return error


def _judge(plan: Plan, sink: _Sink, report: Reporter) -> None:
    """What to say, or do, about results that are not finite."""
    policy = plan.bound.recipe.options.nonfinite
    if not sink.lost or policy == "allow":
        return
    message = f"{sink.output.path}: {sink.lost:,} values are NaN or infinite"
    if sink.overflowed:
        message += f"; {sink.overflowed:,} of them are too large for the output's dtype"
    if policy == "error":
        raise MergeflowError(
            message, hint="a wider dtype may hold them; options: { nonfinite: warn } writes them all the same"
        )
    report(Warned(message))
