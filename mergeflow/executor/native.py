"""The CPU without torch: programs as one compiled call a unit (_sums.c). The same bytes as cpu.py.

Importing torch takes longer than merging three models of 2 GB, so a build of sums does without it where the extension
is there. Where it could not be compiled, cpu.py does the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from mergeflow.events import Reporter, silent
from mergeflow.executor import _sums
from mergeflow.executor.device import Buffers, Bytes, Device, Room, Worker, buffers
from mergeflow.executor.packing import pack_program
from mergeflow.plan.place import Placement
from mergeflow.plan.program import Program


@final
class NativeWorker(Worker):
    def __init__(self, room: Room, own: Buffers | None = None) -> None:
        self._slots, self.out = own or buffers(room)
        self._packed: dict[Program, bytes] = {}

    def slot(self, i: int) -> Bytes:
        return self._slots[i]

    def run(self, program: Program, slots: Sequence[int], elements: int) -> None:
        _sums.run(self._pack(program), tuple([self._slots[i] for i in slots]), self.out, elements)

    def lost_before_rounding(self, program: Program, slots: Sequence[int], elements: int) -> int:
        return _sums.lost(self._pack(program), tuple([self._slots[i] for i in slots]), elements)

    def _pack(self, program: Program) -> bytes:
        packed = self._packed.get(program)
        if packed is None:
            packed = self._packed[program] = pack_program(program)
        return packed


@final
class NativeDevice(Device):
    name = "cpu"

    def worker(self, placement: Placement, room: Room, report: Reporter = silent) -> Worker:
        del placement, report  # its tiles are torch's; here a tile is what the first-level cache holds
        return NativeWorker(room)
