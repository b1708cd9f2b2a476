"""The CPU without torch: programs as one compiled call a unit (_sums.c). The same bytes as cpu.py.

Importing torch takes longer than merging three models of 2 GB, so a build of sums does without it where the extension
is there. Where it could not be compiled, cpu.py does the work.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import final

from mergeflow.executor import _sums
from mergeflow.executor.device import Bytes, Device, Room, Worker, allocate
from mergeflow.plan.place import Placement
from mergeflow.plan.program import Program
from mergeflow.tensors import DType

_NUMBER = {dtype: i for i, dtype in enumerate(
    (DType.F64, DType.F32, DType.F16, DType.BF16, DType.F8_E4M3, DType.F8_E5M2)
)}  # fmt: skip


@final
class NativeWorker(Worker):
    def __init__(self, room: Room) -> None:
        self._slots = [allocate(n) for n in room.slots]
        self.out = allocate(room.out)
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
            packed = self._packed[program] = pack(program)
        return packed


@final
class NativeDevice(Device):
    name = "cpu"

    def worker(self, placement: Placement, room: Room) -> Worker:
        del placement  # its tiles are torch's; here a tile is what the first-level cache holds
        return NativeWorker(room)


def pack(program: Program) -> bytes:
    """A program as the extension reads it; the layout is described there."""
    dtypes = list(program.inputs)
    parts = [struct.pack("=ii", len(program.ops), 0)]
    for op in program.ops:
        parts.append(struct.pack("=iiiid", _NUMBER[op.compute], _NUMBER[op.to], len(op.terms), 0, float(op.divisor)))
        parts += [struct.pack("=iid", operand, _NUMBER[dtypes[operand]], float(share)) for share, operand in op.terms]
        dtypes.append(op.to)
    return b"".join(parts)
