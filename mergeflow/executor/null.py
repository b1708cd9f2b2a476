"""A device that computes nothing: every result is zero. For testing the loop around it, and for measuring what reading
and writing alone cost. It never imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from mergeflow.events import Reporter, silent
from mergeflow.executor.device import Bytes, Device, Room, Worker, buffers
from mergeflow.plan.place import Placement
from mergeflow.plan.program import Program


@final
class NullWorker(Worker):
    def __init__(self, room: Room) -> None:
        self._slots, self.out = buffers(room)

    def slot(self, i: int) -> Bytes:
        return self._slots[i]

    def run(self, program: Program, slots: Sequence[int], elements: int) -> None:
        self.out[: elements * program.out.size] = 0

    def lost_before_rounding(self, program: Program, slots: Sequence[int], elements: int) -> int:
        return 0


@final
class NullDevice(Device):
    name = "null"

    def worker(self, placement: Placement, room: Room, report: Reporter = silent) -> Worker:
        return NullWorker(room)
