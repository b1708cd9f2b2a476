"""What an accelerator has to do for units and kernels to be taken through it (streamed.py, devicekernels.py)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeAlias

from mergeflow.executor.device import Bytes
from mergeflow.plan.program import Program

if TYPE_CHECKING:
    import torch

    Memory: TypeAlias = torch.Tensor  # bytes on the device
Stream: TypeAlias = Any  # whatever the driver hands out; nothing else looks into it
Event: TypeAlias = Any


class Driver(ABC):
    """One accelerator. All but `finish` return at once and are done in the order of their stream; a device that knows
    no streams may do them on the spot.

    Raises of each:
        DeviceFull: there is no memory left for it.
        DeviceLost: the device does not answer.
    """

    name: str
    device: torch.device
    kernels: bool  # whether it has what kernels need: float64, and streams that are done in order

    @abstractmethod
    def here(self, stream: Stream) -> AbstractContextManager[None]:
        """Within it, torch's calls on the device's memory go into the stream, and their errors are those below."""

    @abstractmethod
    def runs(self, program: Program) -> bool:
        """Whether it has all the dtypes."""

    @abstractmethod
    def pinned(self, nbytes: int) -> Bytes:
        """Memory of the machine that the device can copy from on its own, beginning on a page."""

    @abstractmethod
    def memory(self, nbytes: int) -> Memory: ...

    @abstractmethod
    def stream(self) -> Stream: ...

    @abstractmethod
    def record(self, stream: Stream) -> Event:
        """What has happened when all that is in the stream now is done."""

    @abstractmethod
    def wait(self, stream: Stream, event: Event) -> None:
        """What is put into the stream from here on begins after the event."""

    @abstractmethod
    def upload(self, stream: Stream, to: Memory, data: Bytes) -> None: ...

    @abstractmethod
    def download(self, stream: Stream, to: Bytes, data: Memory) -> None: ...

    @abstractmethod
    def compute(self, stream: Stream, program: Program, inputs: Sequence[Memory], out: Memory) -> None: ...

    @abstractmethod
    def finish(self, stream: Stream) -> None:
        """Wait until all that is in the stream is done."""

    @abstractmethod
    def release(self) -> None:
        """Give memory that was dropped back to the device, for whoever needs it."""
