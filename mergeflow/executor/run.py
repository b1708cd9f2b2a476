"""The loop: units of outputs that share their sources, read, computed, hashed and written by several workers.

Workers share a queue and nothing else. Memory is workers × buffers, whatever the model's size.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np

from mergeflow.errors import IntegrityError
from mergeflow.events import Progressed, Reporter
from mergeflow.executor.device import Bytes, Device, Room, Worker
from mergeflow.executor.making import Makers
from mergeflow.executor.nonfinite import make_canonical
from mergeflow.executor.whole import Gate
from mergeflow.executor.wide import run_wide
from mergeflow.formats.blocks import Block
from mergeflow.formats.files import Fingerprint
from mergeflow.formats.many import ReadFiles
from mergeflow.formats.output import OutputFiles
from mergeflow.formats.scan import Scan
from mergeflow.formats.workers import Queue, drain
from mergeflow.methods.plugins import answerable
from mergeflow.plan.jobs import Job
from mergeflow.plan.plans import OutputPlan, Plan
from mergeflow.plan.program import CONSTANT, COPY, ZERO, Program, TensorWork
from mergeflow.plan.stored import ObjectPlan
from mergeflow.plan.units import Part, Unit, largest_part, slot_sizes
from mergeflow.plan.whole import whole_bytes
from mergeflow.store.objects import Writing


@dataclass(slots=True)
class Sink:
    """An output or an object on its way: where its bytes go, and what is seen of them as they pass."""

    part: OutputFiles | Writing
    scan: Scan
    done: Callable[[int, bytes], None] | None = None  # told of chunks that are written: the first's number, the digests
    lost: int = 0
    overflowed: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, data: Bytes, block: Block) -> None:
        """Write a block that the scan has seen."""
        self.part.write(data.data, block.offset)
        self.part.write_back(block.offset, block.nbytes)
        if self.done is not None:
            self.done(block.first_chunk, self.scan.chunks(block))

    def count(self, lost: int, early: int) -> None:
        """Results that are not finite, and how many of them were not before the last rounding either."""
        with self.lock:
            self.lost += lost
            self.overflowed += max(0, lost - early)


def make(
    plan: Plan,
    outputs: Sequence[OutputPlan | ObjectPlan],
    only: Sequence[Collection[str]] | None,
    device: Device,
    report: Reporter,
    files: Mapping[int, ReadFiles],
    sinks: Sequence[Sink],
) -> None:
    """Do all the work of these outputs, or of some of their tensors."""
    placement = outputs[0].placement
    assert placement is not None
    jobs, units = plan.work(outputs, only)
    room = Room(tuple(slot_sizes(units)), max(largest_part(units), 1))

    workers: list[Worker] = []
    gate = Gate(placement.whole)

    def start() -> Callable[[Unit | Job], None]:
        worker = device.worker(placement, room, report)
        workers.append(worker)
        makers: list[Makers] = []  # made when there is a job

        def do(unit: Unit | Job) -> None:
            if isinstance(unit, Job):
                makers[:] = makers or [Makers(plan.staged, placement.keep, worker.kernels(plan.staged))]
                admitted = gate.admitted(whole_bytes(plan.staged[unit.staged], unit.shape))
                with admitted, answerable(f"at {unit.name}"):
                    run_job(unit, makers[0], files, sinks[unit.output], report)
                return
            run_unit(unit, worker, plan.programs, files, sinks)
            report(Progressed(sum(part.block.nbytes for part in unit.parts)))

        return do

    work: list[Unit | Job] = [*jobs, *units]
    try:
        drain(Queue(work), start, placement.workers)
    finally:
        for worker in workers:
            worker.close()


def run_unit(
    unit: Unit, worker: Worker, programs: Sequence[Program], files: Mapping[int, ReadFiles], sinks: Sequence[Sink]
) -> None:
    """Read, then compute, hash and write each part: a plain function of a tuple of numbers, for whatever runs it."""
    if unit.parts[0].wide is not None:
        _wide_unit(unit, worker, programs, files, sinks)
        return
    for slot, source, offset, nbytes, at in unit.reads:
        files[source].read_into(worker.slot(slot)[at : at + nbytes].data, offset)
    worker.filled()
    for part in unit.parts:
        sink = sinks[part.output]
        data = _made(part, worker, programs, unit.elements)
        lost = sink.scan.add(data, part.block)
        if lost and part.program >= 0:
            sink.count(lost, worker.lost_before_rounding(programs[part.program], part.slots, unit.elements))
            if make_canonical(data, programs[part.program].out):
                sink.scan.add(data, part.block)
        sink.put(data, part.block)


def run_job(job: Job, makers: Makers, files: Mapping[int, ReadFiles], sink: Sink, report: Reporter) -> None:
    """A tensor with kernels in its program, from its first pass to its last piece."""
    tensor = makers.run(job, files)
    for piece in tensor.pieces():
        lost = sink.scan.add(piece.data, piece.block)
        if lost:
            sink.count(lost, tensor.lost_before_rounding(piece))
            if make_canonical(piece.data, job.dtype):
                sink.scan.add(piece.data, piece.block)
        sink.put(piece.data, piece.block)
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
    unit: Unit, worker: Worker, programs: Sequence[Program], files: Mapping[int, ReadFiles], sinks: Sequence[Sink]
) -> None:
    raw = {}
    for slot, source, offset, nbytes, _ in unit.reads:
        raw[slot] = np.empty(nbytes, np.uint8)
        files[source].read_into(raw[slot].data, offset)
    for part in unit.parts:
        sink = sinks[part.output]

        def settle(lost: int, program: Program, slots: tuple[int, ...], elements: int, sink: Sink = sink) -> None:
            sink.count(lost, worker.lost_before_rounding(program, slots, elements))

        data = run_wide(part, worker, programs[part.program], raw, settle)
        sink.scan.add(data, part.block)
        sink.put(data, part.block)


def open_sources(
    stack: ExitStack, plan: Plan, works: Iterable[TensorWork], expected: Mapping[int, tuple[Fingerprint, ...]]
) -> dict[int, ReadFiles]:
    """The sources that these works read."""
    files = {}
    for i in sorted({source for work in works for source, _ in work.reads if source < plan.first_kept}):
        file = stack.enter_context(ReadFiles(plan.facts[i].files))
        if file.opened != expected[i]:
            raise IntegrityError(f"{plan.facts[i].name}: its file changed after it was hashed", hint="build again")
        files[i] = file
    return files
