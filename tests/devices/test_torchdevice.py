"""The drivers for CUDA and MPS as far as they can run without either: which calls they make, in which stream, and what
they make of torch's errors."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_device_contract import F16X3, PLACEMENT, ROOM, fill, result, slots

from mergeflow.errors import ResourceError
from mergeflow.executor import torchdevice, trial
from mergeflow.executor.device import DeviceFull, DeviceLost
from mergeflow.executor.devices import on_host
from mergeflow.executor.streamed import StreamedDevice
from mergeflow.executor.torchdevice import CudaDriver, MpsDriver, drivers
from mergeflow.executor.torchkernels import rank
from mergeflow.plan.place import RESIDENT, STREAMED
from mergeflow.tensors import DType

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("raised", "becomes"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), DeviceFull),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"), DeviceFull),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), DeviceFull),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nSearch for"), DeviceLost),
        (RuntimeError("CUDA error: unspecified launch failure"), DeviceLost),
        (RuntimeError("CUDA error: no kernel image is available for execution on the device"), RuntimeError),
        (RuntimeError("\"copy_\" not implemented for 'Float8_e5m2'"), RuntimeError),
        (TypeError("BFloat16 is not supported on MPS"), TypeError),
    ],
)
def test_errors_say_what_can_be_done(raised: Exception, becomes: type[Exception]) -> None:
    with pytest.raises(becomes) as caught, torchdevice._told("a card"):
        raise raised
    assert type(caught.value) is becomes
    if becomes is DeviceLost:
        assert str(caught.value).startswith(f"a card stopped answering: {str(raised).splitlines()[0]}")


class FakeCuda:
    """torch.cuda on the CPU: streams are names, and the current one is noted with each call."""

    def __init__(self) -> None:
        self.current: str | None = None
        self.made = 0

    def get_device_name(self, index: int) -> str:
        return "A Card"

    def device(self, device: torch.device) -> AbstractContextManager[None]:
        return nullcontext()

    def Stream(self, device: torch.device) -> FakeCuda.AStream:  # noqa: N802
        assert device == torch.device("cuda", 1)
        self.made += 1
        return FakeCuda.AStream(("up", "compute", "down")[(self.made - 1) % 3])  # as a worker makes them

    @contextmanager
    def stream(self, stream: FakeCuda.AStream) -> Iterator[None]:
        before, self.current = self.current, stream.name
        yield
        self.current = before

    def empty_cache(self) -> None:
        pass

    class AStream:
        def __init__(self, name: str) -> None:
            self.name, self.waited = name, 0

        def record_event(self) -> FakeCuda.AStream:
            return self

        def wait_event(self, event: FakeCuda.AStream) -> None:
            assert isinstance(event, FakeCuda.AStream)

        def synchronize(self) -> None:
            self.waited += 1


@pytest.mark.parametrize("strategy", [STREAMED, RESIDENT])
def test_each_call_goes_into_its_stream(monkeypatch: pytest.MonkeyPatch, strategy: str) -> None:
    """Copies are not waited for, each in the stream for its direction; sums are in the third."""
    cuda, seen = FakeCuda(), []
    copy, empty = torch.Tensor.copy_, torch.empty

    def made(*size: int, pin_memory: bool = False, **more: Any) -> torch.Tensor:
        if pin_memory:  # there is no more of it: other memory does
            raise RuntimeError("CUDA error: out of memory")
        return empty(*size, **more)

    def copied(to: torch.Tensor, x: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        seen.append((cuda.current, non_blocking))
        return copy(to, x)

    for name in ("get_device_name", "device", "Stream", "stream", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    monkeypatch.setattr(torch, "empty", made)
    driver = CudaDriver(1)
    assert (driver.name, driver.device) == ("A Card (cuda:1)", torch.device("cuda", 1))
    worker = StreamedDevice("cuda", [driver], on_host)
    monkeypatch.setattr(worker, "_agrees", lambda number, report: True)
    here = worker.worker(replace(PLACEMENT, strategy=strategy), ROOM)
    driver.device = driver._sums._device = CPU
    monkeypatch.setattr(driver, "stream", lambda: cuda.Stream(torch.device("cuda", 1)))
    columns = fill(here, F16X3, 1500)
    monkeypatch.setattr(torch.Tensor, "copy_", copied)
    here.run(F16X3, slots(F16X3), 1500)
    monkeypatch.undo()
    assert (result(here, F16X3, 1500) == np.float16(sum(columns) / 2)).all()
    assert {call for call in seen if call[1]} == {("up", True), ("down", True)}
    assert seen.count(("up", True)) == 2 * 3
    assert seen.count(("down", True)) == 2
    assert {call for call in seen if not call[1]} == {("compute", False)}


def test_one_thread_at_a_time_uses_mps() -> None:
    """torch ends the process when two put work into its queue at once."""
    driver, inside, most = MpsDriver(), [], []

    class Slow:
        def run(self, *given: object) -> None:
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.002)
            inside.pop()

    driver._sums = Slow()  # type: ignore[assignment]
    empty = torch.empty(0)
    work = [threading.Thread(target=driver.compute, args=(None, F16X3, [], empty)) for _ in range(8)]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert most == [1] * 8


def test_a_driver_that_is_too_old_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch says so in a warning, which is for whoever asked for the card, and for nobody else."""

    def unavailable() -> bool:
        said = "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040)."
        warnings.warn(said, stacklevel=2)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", unavailable)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(ResourceError, match=r"no card answers \(CUDA initialization: The NVIDIA driver .* too old"):
        drivers("cuda")


def test_a_card_that_cannot_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    class Card:
        name = "A Card (cuda:0)"

        def __init__(self, error: Exception) -> None:
            self.error = error

        def stream(self) -> None:
            raise self.error

        def finish(self, stream: None) -> None:
            pytest.fail("there is no stream")

    for error, said in (
        (DeviceFull("2 GB"), "has no memory left to be measured"),
        (RuntimeError("CUDA error: no kernel image is available\nmore"), "torch cannot use A Card"),
    ):
        monkeypatch.setattr(torchdevice, "drivers", lambda name, error=error: [Card(error)])
        with pytest.raises(ResourceError, match=said) as caught:
            trial.rates("cuda", 1)
        assert caught.value.hint
        assert "\n" not in str(caught.value.message)


@pytest.mark.parametrize("compute", [DType.F32, DType.F64])
@pytest.mark.parametrize("n", [1, 1000, 20_000])
def test_the_kth_magnitude(compute: DType, n: int) -> None:
    """Of few numbers and of many, with equal ones, infinities and NaNs among them, which count as the largest."""
    rng = np.random.default_rng(n)
    real, whole = {DType.F32: (np.float32, np.int32), DType.F64: (np.float64, np.int64)}[compute]
    x = rng.standard_normal(n).astype(real)
    x[::2] = x[::2].round(1)
    x[rng.integers(0, n, n // 50)] = -np.inf
    x[rng.integers(0, n, n // 100)] = np.nan
    x[rng.integers(0, n, n // 100)] = 1e-310
    ordered = np.sort(np.abs(x))[::-1]  # NaNs last: first here
    for k in {1, n // 100 + 1, n // 5 + 1, n, *rng.integers(1, n + 1, 8).tolist()}:
        bits = torch.empty(n, dtype=torch.int32 if compute is DType.F32 else torch.int64)
        spans = [(at, [torch.from_numpy(x[at : at + 7_000].copy())]) for at in range(0, n, 7_000)]
        found = np.array([rank(k, spans, bits, compute)], whole).view(real)[0]
        assert found == ordered[k - 1] or (np.isnan(found) and np.isnan(ordered[k - 1]))
