"""What tensors take that are computed whole: how many may be worked on at a time follows from it, and whether any."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

from mergeflow.methods.kernels import formula
from mergeflow.methods.rooms import room_of
from mergeflow.plan.program import STAGED, Call, Staged, TensorWork


class Largest(NamedTuple):
    """The tensor that takes most, in bytes, and the method it takes them for."""

    nbytes: int = 0
    tensor: str = ""
    kernel: str = ""


def largest(programs: Sequence[Staged], works: Sequence[TensorWork]) -> Largest:
    found = Largest()
    kernels = {n: whole_calls(programs[n]) for n in {work.staged for work in works if work.program == STAGED}}
    for work in works:
        if work.program == STAGED and kernels[work.staged]:
            nbytes = whole_bytes(programs[work.staged], work.shape)
            if nbytes > found.nbytes:
                found = Largest(nbytes, work.name, kernels[work.staged][-1].kernel)
    return found


def whole_calls(program: Staged) -> list[Call]:
    """The kernels of a program that take whole tensors."""
    return [op for op in program.ops if isinstance(op, Call) and formula(op.kernel).kernel.access == "tensor"]


def whole_bytes(program: Staged, shape: Sequence[int]) -> int:
    """What a job takes for them at its fullest: the results of those before stay, as any of them may be needed."""
    elements, most, results = prod(shape), 0, 0
    for call in whole_calls(program):
        result = elements * call.to.size
        most = max(most, results + result * (len(call.operands) + 1) + room_of(call.kernel, shape))
        results += result
    return most
