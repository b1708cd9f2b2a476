"""What a device is to the executor: something that hands out workers, each with buffers of its own.

A worker is used by one thread. The loop fills slots, calls `run` for each program that is to be made from them, and
takes the result out of `out`. The contract, which one suite of tests holds every device to:

- `slot(i)` and `out` are byte buffers of the sizes that were asked for, and stay the same objects;
- whoever has written into slots calls `filled()` before the next `run`: devices with a memory of their own copy a slot
  there once, however many programs take it;
- `run(program, slots, n)` reads the first n elements of `slot(slots[i])` as the program's input i, and writes exactly
  the first n elements of `out`;
- it may be called with any program of the plan, in any order, and keeps nothing of results from one call to the next;
- `close` gives back what the worker holds; nothing is called after it.

A device that runs out of memory goes on with less of it, and in the end on the CPU, with one warning; it gives up only
when it is gone (`DeviceLost`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from mergeflow.errors import ResourceError
from mergeflow.events import Reporter, silent
from mergeflow.plan.place import Placement
from mergeflow.plan.program import Program, Staged

if TYPE_CHECKING:
    from mergeflow.executor.pieces import Making
    from mergeflow.formats.many import ReadFiles
    from mergeflow.plan.jobs import Job

Bytes = npt.NDArray[np.uint8]
KERNELS_VARIABLE = "MERGEFLOW_KERNELS"  # `torch`: torch does on the CPU what compiled code is there for


class Room(NamedTuple):
    """Sizes of a worker's buffers, in bytes: each slot, and the largest piece of an output."""

    slots: tuple[int, ...]
    out: int


class Buffers(NamedTuple):
    """What a worker reads into and writes from, in the machine's own memory."""

    slots: tuple[Bytes, ...]
    out: Bytes


class DeviceFull(Exception):
    """A device has no memory left; caught by its worker, which goes on with less."""


class DeviceLost(ResourceError):
    """A device stopped answering in the middle of a build."""


class Kernels(Protocol):
    """Programs with kernels, on a device with a memory of its own."""

    def run(self, job: Job, files: Mapping[int, ReadFiles], host: Callable[[], Making]) -> Making | None:
        """A job, ready to be gone through; None where the CPU has to do it. `host` makes it there, should the device
        run out of memory on the way."""


class Worker(ABC):
    """Buffers and compute for one thread."""

    out: Bytes

    @abstractmethod
    def slot(self, i: int) -> Bytes:
        """The buffer number i that inputs are read into."""

    def filled(self) -> None:  # noqa: B027  # most devices read the slots where they are
        """Slots have been written into since the last `run`."""

    @abstractmethod
    def run(self, program: Program, slots: Sequence[int], elements: int) -> None:
        """Compute the first `elements` of the output from the buffers of the inputs."""

    @abstractmethod
    def lost_before_rounding(self, program: Program, slots: Sequence[int], elements: int) -> int:
        """How many of the results were already not finite before the last rounding; called only when some are."""

    def kernels(self, programs: Sequence[Staged]) -> Kernels | None:
        """What runs jobs on the device, in the worker's thread; None where the CPU runs all of them."""
        return None

    def close(self) -> None:  # noqa: B027  # memory of the process goes with the object
        """Give back what the worker holds of its device."""


class Device(ABC):
    """A kind of machine that runs programs."""

    name: str

    @abstractmethod
    def worker(self, placement: Placement, room: Room, report: Reporter = silent) -> Worker:
        """Buffers for one thread, large enough for any unit of the plan. `report` is told once of what goes wrong and
        can be worked around."""


def allocate(nbytes: int) -> Bytes:
    """A byte buffer that begins on a page, so that no read or cast straddles one more than it must."""
    page = 4096
    raw: npt.NDArray[Any] = np.empty(nbytes + page, np.uint8)
    skip = -raw.ctypes.data % page
    return raw[skip : skip + nbytes]


def buffers(room: Room, new: Callable[[int], Bytes] = allocate) -> Buffers:
    """The buffers of a worker."""
    return Buffers(tuple([new(n) for n in room.slots]), new(room.out))
