"""A device that computes nothing: every result is zero. For testing the loop around it, and for measuring what reading
and writing alone cost. It never imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from mergeflow.executor.device import Bytes, Device, Worker, allocate, buffer_sizes
from mergeflow.plan.place import Placement
from mergeflow.plan.program import Program


@final
class NullWorker(Worker):
    def __init__(self, programs: Sequence[Program], placement: Placement) -> None:
        self._slots = [allocate(n) for n in buffer_sizes(programs, placement)]
        self.out = allocate(placement.unit)

    def slot(self, i: int) -> Bytes:
        return self._slots[i]

    def run(self, program: Program, elements: int) -> None:
        self.out[: elements * program.out.size] = 0

    def lost_before_rounding(self, program: Program, elements: int) -> int:
        return 0


@final
class NullDevice(Device):
    name = "null"

    def worker(self, programs: Sequence[Program], placement: Placement) -> Worker:
        return NullWorker(programs, placement)
