"""Devices with a memory of their own: units go through it tile by tile, in and out while the tile before is computed.

Three queues of work (streams) run beside each other: tiles are copied in by one, computed by the second and copied out
by the third, in two sets of buffers, so that the copy of tile n + 1 is on its way before tile n is done:

    up       in 0 │ in 1 │      in 2 │ …
    compute         sum 0 │ sum 1 │    sum 2 │ …
    down                    out 0 │ out 1 │    out 2 │ …

A set is used again when its events say that what was in it has been taken. With the strategy `resident` the inputs of a
unit stay whole on the device while all outputs of a pass are made from them, and are copied in once.

Reading, hashing and writing are the loop's, in several workers with streams of their own: while one reads, another's
tiles are on their way. Workers of one device take turns at the accelerators there are; all of them empty one queue.

When the device's memory runs out, the tile is halved; below LEAST, the worker goes on on the CPU, from the same
buffers. The unit in hand is made again from its inputs, which are still there, so nothing of that shows in the bytes.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, final

from mergeflow.events import Reporter, Warned, silent
from mergeflow.executor.device import Buffers, Bytes, Device, DeviceFull, Room, Worker, buffers
from mergeflow.executor.driver import Driver
from mergeflow.executor.parity import disagreement, kernel_disagreement
from mergeflow.plan.place import RESIDENT, Placement, tile_for
from mergeflow.plan.program import Call, Program, Staged

if TYPE_CHECKING:
    from mergeflow.executor.devicekernels import DeviceKernels
    from mergeflow.executor.driver import Event, Memory

LEAST = 1 << 16  # elements of a tile: with fewer, the calls take longer than the CPU would
SETS = 2  # of buffers


class _Streams:
    """What one worker has of its device: queues, and buffers made when first asked for."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.up, self.compute, self.down = (driver.stream() for _ in range(3))
        self._memory: dict[tuple[str, int, int], Memory] = {}

    def buffer(self, kind: str, which: int, number: int, nbytes: int) -> Memory:
        """At least so many bytes, the same each time. Nothing may be on its way in the smaller one that it replaces:
        sizes change between runs only."""
        key = kind, which, number
        found = self._memory.get(key)
        if found is None or found.numel() < nbytes:
            self._memory.pop(key, None)
            found = self._memory[key] = self.driver.memory(nbytes)
        return found[:nbytes]

    def finish(self) -> None:
        """Wait for all of them, after an error of one, too: what is still on its way writes into the buffers."""
        with ExitStack() as waits:
            for stream in (self.down, self.compute, self.up):  # the last one is waited for first
                waits.callback(self.driver.finish, stream)

    def drop(self) -> None:
        self._memory.clear()
        self.driver.release()


@final
class StreamedWorker(Worker):
    """`host` makes a worker of the CPU over the same buffers; `spilled` is told when it takes over; `agrees` says of a
    program with kernels whether the device gives the CPU's bytes."""

    def __init__(
        self, driver: Driver, placement: Placement, room: Room, host: Callable[[Buffers], Worker],
        spilled: Callable[[], None], agrees: Callable[[Staged], bool] = lambda program: False,
    ) -> None:  # fmt: skip
        self._driver, self._placement, self._spilled, self._agrees = driver, placement, spilled, agrees
        self._kernels: DeviceKernels | None = None
        self._buffers = buffers(room, driver.pinned)
        self.out = self._buffers.out
        self._host = host(self._buffers)
        self._streams: _Streams | None = None  # made with the first run; None after the device had no room
        self._resident = placement.strategy == RESIDENT
        self._shift = 0  # how often the tile was halved
        self._on_cpu = False
        self._there: set[int] = set()  # slots that are on the device, where inputs stay there

    def slot(self, i: int) -> Bytes:
        return self._buffers.slots[i]

    def filled(self) -> None:
        self._there.clear()

    def run(self, program: Program, slots: Sequence[int], elements: int) -> None:
        while not self._on_cpu and self._driver.runs(program):
            tile = max(1, min(tile_for(op.compute, self._placement) for op in program.ops) >> self._shift)
            if self._fits(program, slots, elements, tile):
                return
            self._use_less(tile)
        self._host.run(program, slots, elements)

    def lost_before_rounding(self, program: Program, slots: Sequence[int], elements: int) -> int:
        return self._host.lost_before_rounding(program, slots, elements)

    def kernels(self, programs: Sequence[Staged]) -> DeviceKernels | None:
        if not self._placement.kernels or not self._driver.kernels:
            return None
        try:
            from mergeflow.executor.devicekernels import DeviceKernels
        except ImportError:  # masks are compiled, and there was no compiler when this was installed
            return None
        self._kernels = DeviceKernels(self._driver, programs, self._agrees, self._spilled)
        return self._kernels

    def close(self) -> None:
        with ExitStack() as rest:  # a device that is lost says so again
            rest.callback(self._host.close)
            if self._kernels is not None:
                rest.callback(self._kernels.close)
            self._drop()

    def _fits(self, program: Program, slots: Sequence[int], elements: int, tile: int) -> bool:
        """Compute all of it, if the device has the memory. An error holds the frames that it came through, and they
        the tiles, so nothing is given back before it is gone."""
        try:
            self._through(program, slots, elements, tile)
        except DeviceFull:
            return False
        return True

    def _through(self, program: Program, slots: Sequence[int], elements: int, tile: int) -> None:
        """All tiles, queued one after the other; done when it returns."""
        if self._streams is None:
            self._streams = _Streams(self._driver)
        try:
            self._queue(self._streams, program, slots, elements, tile)
        finally:
            self._streams.finish()  # after an error too: nothing may write into buffers that are used again
        if self._resident:
            self._there.update(slots)

    def _queue(self, s: _Streams, program: Program, slots: Sequence[int], elements: int, tile: int) -> None:
        driver, sizes = s.driver, [dtype.size for dtype in program.inputs]
        widths = dict(zip(slots, sizes, strict=False))
        ins, outs = self._inputs(s, widths, elements, tile), self._outputs(s, program.out.size, elements, tile)
        taken: list[Event | None] = [None] * SETS  # when the inputs of a set have been computed with
        gone: list[Event | None] = [None] * SETS  # when the result in a set has been copied out
        for number, begin in enumerate(range(0, elements, tile)):
            n, which = min(tile, elements - begin), number % SETS
            if not self._resident and (event := taken[which]) is not None:
                driver.wait(s.up, event)
            here = {}
            for slot, width in widths.items():
                first = begin if self._resident else 0
                here[slot] = ins[which][slot][first * width : (first + n) * width]
                if slot not in self._there:
                    driver.upload(s.up, here[slot], self._buffers.slots[slot][begin * width : (begin + n) * width])
            driver.wait(s.compute, driver.record(s.up))
            if (event := gone[which]) is not None:
                driver.wait(s.compute, event)
            result = outs[which][: n * program.out.size]
            driver.compute(s.compute, program, [here[slot] for slot in slots[: len(sizes)]], result)
            taken[which] = done = driver.record(s.compute)
            driver.wait(s.down, done)
            driver.download(s.down, self.out[begin * program.out.size :][: n * program.out.size], result)
            gone[which] = driver.record(s.down)

    def _inputs(self, s: _Streams, widths: dict[int, int], elements: int, tile: int) -> list[dict[int, Memory]]:
        """The device's buffers of each slot, by set: whole units that all sets share, or a tile each."""
        if self._resident:
            whole = {slot: s.buffer("slot", 0, slot, elements * width) for slot, width in widths.items()}
            return [whole] * SETS
        length, sets = min(tile, elements), _sets(elements, tile)
        return [
            {slot: s.buffer("slot", which, slot, length * width) for slot, width in widths.items()}
            for which in range(sets)
        ]

    def _outputs(self, s: _Streams, size: int, elements: int, tile: int) -> list[Memory]:
        length, sets = min(tile, elements), _sets(elements, tile)
        return [s.buffer("out", which, 0, length * size) for which in range(sets)]

    def _use_less(self, tile: int) -> None:
        """Halve the tile, or leave the device to others."""
        self._drop()
        if tile // 2 >= LEAST:
            self._shift += 1
            self._resident = False  # whole units are what takes most
            return
        self._on_cpu = True
        self._spilled()

    def _drop(self) -> None:
        self._there.clear()
        streams, self._streams = self._streams, None
        if streams is not None:
            streams.drop()


def _sets(elements: int, tile: int) -> int:
    return min(SETS, -(-elements // tile))


@final
class StreamedDevice(Device):
    """Accelerators of one kind. Before the first is used, each shows that it computes what the CPU does; if one does
    not, the CPU does the work, and says so."""

    def __init__(
        self, name: str, drivers: Sequence[Driver], host: Callable[[Placement, Room, Buffers], Worker]
    ) -> None:
        self.name, self._drivers, self._host = name, drivers, host
        self._turn = itertools.count()
        self._lock = threading.Lock()
        self._trusted: dict[int, bool] = {}
        self._kernels: dict[tuple[int, Staged], bool] = {}
        self._told = False

    def worker(self, placement: Placement, room: Room, report: Reporter = silent) -> Worker:
        number = next(self._turn) % min(placement.devices, len(self._drivers))
        with self._lock:
            if number not in self._trusted:
                self._trusted[number] = self._agrees(number, report)
        if not self._trusted[number]:
            return self._host(placement, room, buffers(room))
        driver = self._drivers[number]
        message = f"{driver.name} has no memory left: what remains is computed on the CPU"
        return StreamedWorker(
            driver, placement, room, lambda own: self._host(placement, room, own),
            lambda: self._tell(report, message), lambda program: self._kernels_agree(number, program, report),
        )  # fmt: skip

    def _tried(self, driver: Driver, placement: Placement, room: Room) -> Worker:
        """A worker that the CPU never helps: what it computes is the device's."""

        def full() -> None:
            raise DeviceFull(driver.name)

        return StreamedWorker(driver, placement, room, lambda own: self._host(placement, room, own), full)

    def _kernels_agree(self, number: int, program: Staged, report: Reporter) -> bool:
        """Whether an accelerator gives the CPU's bytes for a program with kernels, asked once."""
        with self._lock:
            if (number, program) not in self._kernels:
                driver = self._drivers[number]
                why = kernel_disagreement(driver, program)
                self._kernels[number, program] = why is None
                if why is not None:
                    names = ", ".join(dict.fromkeys(op.kernel for op in program.ops if isinstance(op, Call)))
                    report(Warned(f"{driver.name} {why}: the CPU computes {names}"))
            return self._kernels[number, program]

    def _agrees(self, number: int, report: Reporter) -> bool:
        driver = self._drivers[number]
        found = disagreement(
            self.name,
            lambda placement, room: self._tried(driver, placement, room),
            lambda placement, room: self._host(placement, room, buffers(room)),
        )
        if found is not None:
            report(Warned(f"{driver.name} {found}: it is not used"))
        return found is None

    def _tell(self, report: Reporter, message: str) -> None:
        with self._lock:
            told, self._told = self._told, True
        if not told:
            report(Warned(message))
