"""CUDA and MPS through torch: the driver that units are streamed by.

CUDA copies from pinned memory on streams of their own. MPS shares the machine's memory and has one queue: what is put
into it is done in order, and copies wait for it. It has no float64 and no float8; such programs stay on the CPU.
torch crashes when two threads put something into that queue at a time, so workers take turns.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, final

import torch

from mergeflow.errors import ResourceError
from mergeflow.executor.device import Bytes, DeviceFull, DeviceLost, allocate
from mergeflow.executor.driver import Driver
from mergeflow.executor.torchsums import Sums
from mergeflow.plan.program import Program
from mergeflow.tensors import DType

if TYPE_CHECKING:
    from mergeflow.executor.driver import Event, Memory, Stream

_NOT_ON_MPS = frozenset({DType.F64, DType.F8_E4M3, DType.F8_E5M2})
_NO_CODE = "no kernel image"  # torch was not built for this card, which is not gone
_GONE = ("CUDA error", "CUDA driver error", "CUDA unknown error", "device-side assert", "MPS backend")


def drivers(name: str) -> list[Driver]:
    """The accelerators of a name: `cuda` all of them, `cuda:1` the second, `mps` the one.

    Raises:
        ResourceError: torch has none of that name.
    """
    kind, _, number = name.partition(":")
    if kind == "mps":
        if not torch.backends.mps.is_available():
            raise ResourceError(_missing(name, "it was not built for MPS, or this macOS is too old"), hint=_WAY_OUT)
        return [MpsDriver()]
    if (why := without_cuda()) is not None:
        raise ResourceError(_missing(name, why), hint=_WAY_OUT)
    count = torch.cuda.device_count()
    if number and int(number) >= count:
        raise ResourceError(_missing(name, f"it sees {count} CUDA devices, counted from 0"), hint=_WAY_OUT)
    return [CudaDriver(i) for i in ([int(number)] if number else range(count))]


def without_cuda() -> str | None:
    """Why torch has no card; None where it has. A driver that is too old for it is told in a warning of its own."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return None
    if torch.version.cuda is None and torch.version.hip is None:
        return "it was built without CUDA"
    said = str(told[0].message).splitlines()[0] if told else ""
    return f"no driver or no card answers{f' ({said})' if said else ''}"


_WAY_OUT = "--device cpu computes the same bytes; `mergeflow devices` shows what there is"


def _missing(name: str, why: str) -> str:
    return f"torch {torch.__version__} has no {name}: {why}"


@contextmanager
def _told(name: str) -> Iterator[None]:
    """torch's errors as what can be done about them."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if isinstance(error, torch.cuda.OutOfMemoryError) or "out of memory" in text:
            raise DeviceFull(text) from error
        if any(words in text for words in _GONE) and _NO_CODE not in text:
            raise DeviceLost(
                f"{name} stopped answering: {text.splitlines()[0]}",
                hint="--device cpu computes the same bytes, and takes over the tensors that are done",
            ) from error
        raise


@final
class CudaDriver(Driver):
    kernels = True

    def __init__(self, index: int) -> None:
        self.index, self.device = index, torch.device("cuda", index)
        with _told(f"cuda:{index}"):
            self.name = f"{torch.cuda.get_device_name(index)} (cuda:{index})"
        self._sums = Sums(self.device)

    @contextmanager
    def here(self, stream: Stream) -> Iterator[None]:
        with _told(self.name), torch.cuda.stream(stream):
            yield

    def runs(self, program: Program) -> bool:
        return True

    def pinned(self, nbytes: int) -> Bytes:
        """Without room for pinned memory, any does: copies are slower then, and as right."""
        try:
            with _told(self.name), torch.cuda.device(self.device):
                return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True).numpy()
        except DeviceFull:
            return allocate(nbytes)

    def memory(self, nbytes: int) -> Memory:
        with _told(self.name):
            return torch.empty(nbytes, dtype=torch.uint8, device=self.device)

    def stream(self) -> Stream:
        make: Any = torch.cuda.Stream  # which torch has no types for
        with _told(self.name):
            return make(self.device)

    def record(self, stream: Stream) -> Event:
        with _told(self.name):
            return stream.record_event()

    def wait(self, stream: Stream, event: Event) -> None:
        with _told(self.name):
            stream.wait_event(event)

    def upload(self, stream: Stream, to: Memory, data: Bytes) -> None:
        with _told(self.name), torch.cuda.stream(stream):
            to.copy_(torch.from_numpy(data), non_blocking=True)

    def download(self, stream: Stream, to: Bytes, data: Memory) -> None:
        with _told(self.name), torch.cuda.stream(stream):
            torch.from_numpy(to).copy_(data, non_blocking=True)

    def compute(self, stream: Stream, program: Program, inputs: Sequence[Memory], out: Memory) -> None:
        with self.here(stream):
            self._sums.run(program, inputs, out)

    def finish(self, stream: Stream) -> None:
        with _told(self.name):
            stream.synchronize()

    def release(self) -> None:
        with _told(self.name):
            torch.cuda.empty_cache()  # of all devices; what is in use stays


@final
class MpsDriver(Driver):
    """Everything is done in order; `record` and `wait` have nothing to say. One thread at a time: several that put
    work into the queue end the process (pytorch issue 197805)."""

    name = "MPS"
    kernels = False

    def __init__(self) -> None:
        self.device = torch.device("mps")
        self._sums = Sums(self.device)
        self._turn = threading.RLock()

    def here(self, stream: Stream) -> AbstractContextManager[None]:
        return self._alone()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self._turn, _told(self.name):
            yield

    def runs(self, program: Program) -> bool:
        dtypes = {*program.inputs, *(op.compute for op in program.ops), *(op.to for op in program.ops)}
        return not dtypes & _NOT_ON_MPS

    def pinned(self, nbytes: int) -> Bytes:
        return allocate(nbytes)

    def memory(self, nbytes: int) -> Memory:
        with self._alone():
            return torch.empty(nbytes, dtype=torch.uint8, device=self.device)

    def stream(self) -> Stream:
        return None

    def record(self, stream: Stream) -> Event:
        return None

    def wait(self, stream: Stream, event: Event) -> None:
        """Nothing to wait for."""

    def upload(self, stream: Stream, to: Memory, data: Bytes) -> None:
        with self._alone():
            to.copy_(torch.from_numpy(data))

    def download(self, stream: Stream, to: Bytes, data: Memory) -> None:
        with self._alone():
            torch.from_numpy(to).copy_(data)

    def compute(self, stream: Stream, program: Program, inputs: Sequence[Memory], out: Memory) -> None:
        with self._alone():
            self._sums.run(program, inputs, out)

    def finish(self, stream: Stream) -> None:
        with self._alone():
            torch.mps.synchronize()

    def release(self) -> None:
        with self._alone():
            torch.mps.empty_cache()


def seen(kind: str) -> tuple[tuple[str, ...], tuple[int, ...], tuple[int, ...]]:
    """Models, free and total bytes of what torch has of a kind.

    Raises:
        ResourceError: it has none.
    """
    found = drivers(kind)
    if kind == "mps":
        total = torch.mps.recommended_max_memory()
        return ("Apple silicon",), (total - torch.mps.driver_allocated_memory(),), (total,)
    numbers = [driver.index for driver in found if isinstance(driver, CudaDriver)]
    names = [torch.cuda.get_device_name(i) for i in numbers]
    memory = [_memory(i) for i in numbers]
    return tuple(names), tuple(free for free, _ in memory), tuple(total for _, total in memory)


def _memory(index: int) -> tuple[int, int]:
    """Free and total bytes of a card, which is woken for that; none are free where there is too little to wake it."""
    try:
        with _told(f"cuda:{index}"):
            return torch.cuda.mem_get_info(index)
    except DeviceFull:
        return 0, torch.cuda.get_device_properties(index).total_memory
