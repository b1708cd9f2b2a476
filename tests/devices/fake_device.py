"""An accelerator made of nothing but queues: what is put into a stream is done later, in any order that the events
allow, on memory of its own that can run out.

It keeps a log of what was queued and what was done. The order in which streams are served is drawn from a seed, so a
missing wait shows as wrong bytes with some seed. Nothing is done before somebody waits for it, so memory of the machine
that is written to too early shows as well. Memory of its own that is given back is overwritten at once, as that of a
card may be by whoever gets it next: what is queued holds its bytes and not the tensor.
"""

from __future__ import annotations

import random
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from mergeflow.executor.device import Bytes, DeviceLost, allocate
from mergeflow.executor.driver import Driver
from mergeflow.executor.torchdevice import _told
from mergeflow.executor.torchsums import Sums
from mergeflow.plan.program import Program

_UNWRITTEN, _GIVEN_BACK = 0xA5, 0x5A
Held = tuple[torch.UntypedStorage, int, int]


@dataclass(eq=False)
class Event:
    done: bool = False


@dataclass(eq=False)
class Stream:
    number: int
    tasks: list[tuple[str, Callable[[], None], Event | None]] = field(default_factory=list)


class FakeDriver(Driver):
    """`memory_bytes` of its own; after `dies_after` tasks it does not answer any more, to whatever call; `wrong` adds
    up wrongly."""

    device, kernels = torch.device("cpu"), True

    def __init__(
        self, memory_bytes: int = 1 << 30, *, seed: int = 0, dies_after: int | None = None, wrong: bool = False,
        name: str = "a fake device",
    ) -> None:  # fmt: skip
        self.name, self.free, self.largest = name, memory_bytes, 0
        self.total = memory_bytes
        self.log: list[tuple[str, str]] = []  # ("queued" or "done", what)
        self.released: list[int] = []  # bytes in use whenever what was dropped was to be given back
        self.uploaded = 0
        self._random, self._lock = random.Random(seed), threading.RLock()
        self._streams: list[Stream] = []
        self._sums = Sums(torch.device("cpu"))
        self._left, self._wrong = dies_after, wrong
        self.tiles: list[int] = []  # elements of each computed tile

    @contextmanager
    def here(self, stream: Stream) -> Iterator[None]:
        self._answers()
        with _told(self.name):
            yield

    def runs(self, program: Program) -> bool:
        return True

    def pinned(self, nbytes: int) -> Bytes:
        return allocate(nbytes)

    def memory(self, nbytes: int) -> torch.Tensor:
        self._answers()
        with self._lock, _told(self.name):
            if nbytes > self.free:
                raise torch.OutOfMemoryError(f"CUDA out of memory: {nbytes} of {self.free}")
            self.free -= nbytes
            self.largest = max(self.largest, self.total - self.free)
        found = torch.full((nbytes,), _UNWRITTEN, dtype=torch.uint8)
        weakref.finalize(found, self._give_back, found.untyped_storage(), nbytes).atexit = False
        return found

    def _give_back(self, storage: torch.UntypedStorage, nbytes: int) -> None:
        torch.empty(0, dtype=torch.uint8).set_(storage).fill_(_GIVEN_BACK)
        with self._lock:
            self.free += nbytes

    def stream(self) -> Stream:
        self._answers()
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
        there = _held(to)

        def copy() -> None:
            _bytes(there).numpy()[:] = data
            self.uploaded += data.size

        self._queue(stream, "in", copy)

    def download(self, stream: Stream, to: Bytes, data: torch.Tensor) -> None:
        there = _held(data)

        def copy() -> None:
            to[:] = _bytes(there).numpy()

        self._queue(stream, "out", copy)

    def compute(self, stream: Stream, program: Program, inputs: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        operands, there = [_held(x) for x in inputs], _held(out)

        def run() -> None:
            result = _bytes(there)
            self._sums.run(program, [_bytes(x) for x in operands], result)
            if self._wrong:
                np.bitwise_xor(result.numpy(), 1, out=result.numpy())

        self.tiles.append(out.numel() // program.out.size)
        self._queue(stream, "sum", run)

    def finish(self, stream: Stream) -> None:
        """Do tasks of all streams, in any order that is allowed, until this one is empty."""
        self._answers()
        with self._lock:
            while stream.tasks:
                ready = [s for s in self._streams if s.tasks and ((e := s.tasks[0][2]) is None or e.done)]
                assert ready, "all streams wait for each other"
                self._do(self._random.choice(ready))

    def release(self) -> None:
        self._answers()
        with self._lock:
            self.released.append(self.total - self.free)

    def _answers(self) -> None:
        if self._left is not None and self._left < 0:
            raise DeviceLost(f"{self.name} stopped answering: it fell off the bus")

    def _queue(self, stream: Stream, what: str, task: Callable[[], None]) -> None:
        self._answers()
        with self._lock:
            self.log.append(("queued", what))
            stream.tasks.append((what, task, None))

    def _do(self, stream: Stream) -> None:
        what, task, _ = stream.tasks.pop(0)
        if what in ("in", "sum", "out"):
            if self._left is not None:
                self._left -= 1
                self._answers()
            self.log.append(("done", what))
        task()


def _held(x: torch.Tensor) -> Held:
    """Bytes without the tensor that they were given out as: its end is not put off by what is queued."""
    return x.untyped_storage(), x.storage_offset(), x.numel()


def _bytes(there: Held) -> torch.Tensor:
    storage, first, n = there
    return torch.empty(0, dtype=torch.uint8).set_(storage, first, (n,), (1,))
