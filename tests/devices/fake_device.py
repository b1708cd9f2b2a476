"""An accelerator made of nothing but queues: what is put into a stream is done later, in any order that the events
allow, on memory of its own that can run out.

It keeps a log of what was queued and what was done. The order in which streams are served is drawn from a seed, so a
missing wait shows as wrong bytes with some seed.
"""

from __future__ import annotations

import random
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch

from mergeflow.executor.device import Bytes, DeviceFull, DeviceLost, allocate
from mergeflow.executor.driver import Driver
from mergeflow.executor.torchsums import Sums
from mergeflow.plan.program import Program


@dataclass(eq=False)
class Event:
    done: bool = False


@dataclass(eq=False)
class Stream:
    number: int
    tasks: list[tuple[str, Callable[[], None], Event | None]] = field(default_factory=list)


class FakeDriver(Driver):
    """`memory_bytes` of its own; after `dies_after` tasks it does not answer any more; `wrong` adds up wrongly."""

    device, kernels = torch.device("cpu"), True

    def __init__(
        self, memory_bytes: int = 1 << 30, *, seed: int = 0, dies_after: int | None = None, wrong: bool = False,
        name: str = "a fake device",
    ) -> None:  # fmt: skip
        self.name, self.free, self.largest = name, memory_bytes, 0
        self.total = memory_bytes
        self.log: list[tuple[str, str]] = []  # ("queued" or "done", what)
        self.uploaded = 0
        self._random, self._lock = random.Random(seed), threading.RLock()
        self._streams: list[Stream] = []
        self._sums = Sums(torch.device("cpu"))
        self._left, self._wrong = dies_after, wrong
        self.tiles: list[int] = []  # elements of each computed tile

    def here(self, stream: Stream) -> AbstractContextManager[None]:
        return nullcontext()

    def runs(self, program: Program) -> bool:
        return True

    def pinned(self, nbytes: int) -> Bytes:
        return allocate(nbytes)

    def memory(self, nbytes: int) -> torch.Tensor:
        with self._lock:
            if nbytes > self.free:
                raise DeviceFull(f"{nbytes} of {self.free}")
            self.free -= nbytes
            self.largest = max(self.largest, self.total - self.free)
        found = torch.full((nbytes,), 0xA5, dtype=torch.uint8)
        weakref.finalize(found, self._give_back, nbytes)
        return found

    def _give_back(self, nbytes: int) -> None:
        with self._lock:
            self.free += nbytes

    def stream(self) -> Stream:
        with self._lock:
            self._streams.append(Stream(len(self._streams)))
            return self._streams[-1]

    def record(self, stream: Stream) -> Event:
        event = Event()

        def happen() -> None:
            event.done = True

        with self._lock:
            stream.tasks.append(("event", happen, None))
        return event

    def wait(self, stream: Stream, event: Event) -> None:
        with self._lock:
            stream.tasks.append(("wait", lambda: None, event))

    def upload(self, stream: Stream, to: torch.Tensor, data: Bytes) -> None:
        def copy() -> None:
            to.numpy()[:] = data
            self.uploaded += data.size

        self._queue(stream, "in", copy)

    def download(self, stream: Stream, to: Bytes, data: torch.Tensor) -> None:
        def copy() -> None:
            to[:] = data.numpy()

        self._queue(stream, "out", copy)

    def compute(self, stream: Stream, program: Program, inputs: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        def run() -> None:
            self._sums.run(program, inputs, out)
            if self._wrong:
                np.bitwise_xor(out.numpy(), 1, out=out.numpy())

        self.tiles.append(out.numel() // program.out.size)
        self._queue(stream, "sum", run)

    def finish(self, stream: Stream) -> None:
        """Do tasks of all streams, in any order that is allowed, until this one is empty."""
        with self._lock:
            while stream.tasks:
                ready = [s for s in self._streams if s.tasks and ((e := s.tasks[0][2]) is None or e.done)]
                assert ready, "all streams wait for each other"
                self._do(self._random.choice(ready))

    def release(self) -> None:
        pass

    def _queue(self, stream: Stream, what: str, task: Callable[[], None]) -> None:
        with self._lock:
            self.log.append(("queued", what))
            stream.tasks.append((what, task, None))

    def _do(self, stream: Stream) -> None:
        what, task, _ = stream.tasks.pop(0)
        if what in ("in", "sum", "out"):
            if self._left is not None:
                self._left -= 1
                if self._left < 0:
                    stream.tasks.clear()
                    raise DeviceLost(f"{self.name} stopped answering: it fell off the bus")
            self.log.append(("done", what))
        task()
