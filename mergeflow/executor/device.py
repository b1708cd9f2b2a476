"""What a device is to the executor: something that hands out workers, each with buffers of its own.

A worker is used by one thread. The loop fills the buffers of a program's inputs, calls `run`, and takes the result
out of `out`. The contract, which one suite of tests holds every device to:

- `slot(i)` and `out` are byte buffers of at least the sizes the placement implies, and stay the same objects;
- `run(program, n)` reads the first n elements of each input and writes exactly the first n of `out`;
- it may be called with any program of the plan, in any order, and keeps nothing from one call to the next.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mergeflow.plan.place import Placement
from mergeflow.plan.program import Program

Bytes = npt.NDArray[np.uint8]


class Worker(ABC):
    """Buffers and compute for one thread."""

    out: Bytes

    @abstractmethod
    def slot(self, i: int) -> Bytes:
        """The buffer that input i of a program is to be read into."""

    @abstractmethod
    def run(self, program: Program, elements: int) -> None:
        """Compute the first `elements` of the output from the inputs' buffers."""

    @abstractmethod
    def lost_before_rounding(self, program: Program, elements: int) -> int:
        """How many of the results were already not finite before the last rounding; called only when some are."""


class Device(ABC):
    """A kind of machine that runs programs."""

    name: str

    @abstractmethod
    def worker(self, programs: Sequence[Program], placement: Placement) -> Worker:
        """Buffers for one thread, large enough for any unit of the plan."""


def allocate(nbytes: int) -> Bytes:
    """A byte buffer that begins on a page, so that no read or cast straddles one more than it must."""
    page = 4096
    raw: npt.NDArray[Any] = np.empty(nbytes + page, np.uint8)
    skip = -raw.ctypes.data % page
    return raw[skip : skip + nbytes]


def buffer_sizes(programs: Sequence[Program], placement: Placement) -> list[int]:
    """Bytes needed for input 0, 1, … over all programs, a unit being `placement.unit` bytes of output."""
    sizes: list[int] = []
    for program in programs:
        elements = placement.unit // program.out.size
        for i, dtype in enumerate(program.inputs):
            if i == len(sizes):
                sizes.append(0)
            sizes[i] = max(sizes[i], elements * dtype.size)
    return sizes
