"""What the loop may expect of any device: one suite for all of them.

CUDA and MPS are tried where torch has them. Where it has not, a fake accelerator (fake_device.py) goes through all that
is not the hardware's: the queues, the buffers, the arithmetic as torch calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from fake_device import FakeDriver
from support.builds import Heard, python

from mergeflow.digest import CHUNK
from mergeflow.errors import RecipeError
from mergeflow.executor import _sums
from mergeflow.executor.cpu import CpuDevice
from mergeflow.executor.device import KERNELS_VARIABLE, Device, Room, Worker
from mergeflow.executor.devices import NAMES, find, on_host
from mergeflow.executor.parity import ELEMENTS, disagreement, programs, values
from mergeflow.executor.streamed import StreamedDevice
from mergeflow.executor.wide import run_wide
from mergeflow.formats.blocks import Block
from mergeflow.plan.place import RESIDENT, STREAMED, Placement
from mergeflow.plan.program import Op, Program, Wide
from mergeflow.plan.units import Part
from mergeflow.tensors import DType

TILE = 1000
PLACEMENT = Placement("cpu", "tile", 1, CHUNK, TILE, TILE // 2, 0, "")
HERE = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
EXACT = ["native", "native, plain", "torch", "fake", "fake, resident", *(name for name, there in HERE.items() if there)]


def total(inputs: tuple[DType, ...], to: DType, divisor: int = 1) -> Program:
    """The sum of all inputs, over a divisor."""
    return Program(inputs, (Op(tuple((Fraction(1), i) for i in range(len(inputs))), divisor, to.compute, to),))


F32X2, F16X3 = total((DType.F32, DType.F32), DType.F32), total((DType.F16,) * 3, DType.F16, 2)
TO_BF16, WIDER = total((DType.F64, DType.F16), DType.BF16), total((DType.F16,), DType.F64)
TWO_OPS = Program(
    (DType.F32, DType.F16),
    (
        Op(((Fraction(3), 0), (Fraction(-1), 1)), 2, DType.F32, DType.F16),
        Op(((Fraction(1), 2), (Fraction(2), 1)), 1, DType.F64, DType.F32),
    ),
)
PROGRAMS = [F32X2, F16X3, TO_BF16, WIDER, TWO_OPS]
ROOM = Room((CHUNK // 2 * 8, CHUNK // 2 * 4, CHUNK // 2 * 2), CHUNK)
SIZES = [1, 2, 499, 500, 501, 999, 1000, 1001, 2000, 4321]


@pytest.fixture(params=[*EXACT, "null"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """Each way to run programs; "plain" is for processors without half precision instructions."""
    monkeypatch.setenv(KERNELS_VARIABLE, "torch" if request.param == "torch" else "")
    _sums.plain(request.param == "native, plain")
    yield made(request.param)
    _sums.plain(False)


def made(name: str) -> Device:
    if name.startswith("fake"):
        return StreamedDevice("fake", [FakeDriver()], on_host)
    found = find(name.replace("native, plain", "cpu").replace("native", "cpu").replace("torch", "cpu"))
    assert isinstance(found, CpuDevice) == (name == "torch")
    return found


@pytest.fixture
def placement(request: pytest.FixtureRequest, device: Device) -> Placement:
    if device.name in ("cpu", "null"):
        return PLACEMENT
    resident = "resident" in request.node.callspec.params["device"]
    return replace(PLACEMENT, device=device.name, strategy=RESIDENT if resident else STREAMED)


@pytest.fixture
def worker(device: Device, placement: Placement) -> Iterator[Worker]:
    found = device.worker(placement, ROOM, heard := Heard())
    assert not heard  # an accelerator that gives other bytes is not used, and all else would be shown of the CPU
    yield found
    found.close()


def slots(program: Program) -> range:
    return range(len(program.inputs))


def fill(worker: Worker, program: Program, n: int, seed: int = 0) -> list[np.ndarray]:
    """Whole numbers in each input, so that every sum is exact."""
    rng, columns = np.random.default_rng(seed), []
    for i, dtype in enumerate(program.inputs):
        x = rng.integers(-8, 9, n).astype({8: "f8", 4: "f4", 2: "f2"}[dtype.size])
        worker.slot(i)[: x.nbytes] = x.view(np.uint8)
        columns.append(x.astype(np.float64))
    worker.filled()
    return columns


def result(worker: Worker, program: Program, n: int) -> np.ndarray:
    raw = worker.out[: n * program.out.size].copy()
    if program.out is DType.BF16:
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return raw.view({8: "f8", 4: "f4", 2: "f2"}[program.out.size]).astype(np.float64)


def wanted(device: Device, program: Program, x: list[np.ndarray]) -> np.ndarray:
    if device.name == "null":
        return np.zeros_like(x[0])
    if program is TWO_OPS:
        return (3 * x[0] - x[1]) / 2 + 2 * x[1]
    return sum(x) / program.ops[0].divisor  # type: ignore[return-value]


@pytest.mark.gpu
def test_an_accelerator_takes_part() -> None:
    """In every test of this file: says so once where none does."""
    if not any(HERE.values()):
        pytest.skip("torch has no CUDA and no MPS here: a fake accelerator stands in for them")


def test_names(device: Device) -> None:
    assert device.name == "fake" or find(device.name).name == device.name


def test_buffers_hold_a_unit_of_any_program(worker: Worker) -> None:
    assert worker.out.dtype == np.uint8
    assert worker.out.nbytes >= PLACEMENT.unit
    for program in PROGRAMS:
        for i, dtype in enumerate(program.inputs):
            assert worker.slot(i).nbytes >= PLACEMENT.unit // program.out.size * dtype.size
            assert worker.slot(i).ctypes.data % 64 == 0


def test_buffers_stay_the_same(worker: Worker) -> None:
    before = [worker.out.ctypes.data, *(worker.slot(i).ctypes.data for i in range(3))]
    for program in PROGRAMS:
        fill(worker, program, 100)
        worker.run(program, slots(program), 100)
    assert [worker.out.ctypes.data, *(worker.slot(i).ctypes.data for i in range(3))] == before


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("program", range(len(PROGRAMS)))
def test_exactly_the_first_elements_are_written(device: Device, worker: Worker, program: int, n: int) -> None:
    p = PROGRAMS[program]
    x = fill(worker, p, n, n)
    worker.out[:] = 0xA5
    worker.run(p, slots(p), n)
    assert (result(worker, p, n) == wanted(device, p, x)).all()
    assert (worker.out[n * p.out.size :] == 0xA5).all()


@pytest.mark.parametrize("program", range(len(PROGRAMS)))
def test_a_whole_unit(device: Device, worker: Worker, program: int) -> None:
    p = PROGRAMS[program]
    n = PLACEMENT.unit // p.out.size
    x = fill(worker, p, n)
    worker.run(p, slots(p), n)
    assert (result(worker, p, n) == wanted(device, p, x)).all()


def test_nothing_is_kept_from_call_to_call(device: Device, worker: Worker) -> None:
    """Any program in any order gives what it gives alone, whatever lies in the buffers behind its elements."""
    rng = np.random.default_rng(5)
    for k in range(60):
        program, n = PROGRAMS[rng.integers(len(PROGRAMS))], SIZES[rng.integers(len(SIZES))]
        for i in range(len(program.inputs)):
            worker.slot(i)[:] = 0xFF  # NaNs
        x = fill(worker, program, n, k)
        worker.run(program, slots(program), n)
        assert (result(worker, program, n) == wanted(device, program, x)).all()


def test_inputs_are_not_changed(worker: Worker) -> None:
    for program in PROGRAMS:
        x = fill(worker, program, 1500)
        before = [worker.slot(i).copy() for i in range(len(x))]
        worker.run(program, slots(program), 1500)
        assert all((worker.slot(i) == before[i]).all() for i in range(len(x)))


def test_what_was_lost_before_the_last_rounding(device: Device, placement: Placement) -> None:
    """70000 fits float32 and not float16; an infinity that was there before is no fault of the rounding."""
    program = total((DType.F32,), DType.F16)
    worker = device.worker(placement, Room((10_000,), 5_000))
    x = np.ones(2500, np.float32)
    x[[0, 999, 2499]] = 70000
    x[[1, 1000]] = np.inf, np.nan
    worker.slot(0)[: x.nbytes] = x.view(np.uint8)
    worker.filled()
    worker.run(program, slots(program), len(x))
    assert worker.lost_before_rounding(program, [0], len(x)) == (0 if device.name == "null" else 2)


def test_two_workers_share_nothing(device: Device, placement: Placement) -> None:
    one, two = device.worker(placement, ROOM), device.worker(placement, ROOM)
    x, y = fill(one, F32X2, 700, 1), fill(two, F32X2, 700, 2)
    one.run(F32X2, slots(F32X2), 700)
    two.run(F32X2, slots(F32X2), 700)
    assert (result(one, F32X2, 700) == wanted(device, F32X2, x)).all()
    assert (result(two, F32X2, 700) == wanted(device, F32X2, y)).all()


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("strategy", [STREAMED, RESIDENT])
def test_the_same_bytes_as_the_compiled_sums(name: str, strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Subnormals, ties, overflow, NaNs, divisions, rounding points, in all pairs of dtypes."""
    reference = find("cpu")
    monkeypatch.setenv(KERNELS_VARIABLE, "torch" if name == "torch" else "")
    device, heard = made(name), Heard()
    found = disagreement(
        name,
        lambda p, room: device.worker(replace(p, strategy=strategy), room, heard),
        lambda p, room: reference.worker(p, room),
    )
    assert found is None
    assert not heard


def test_what_is_tried_has_the_hard_cases() -> None:
    """The values that devices are compared on have subnormals, infinities and NaNs; the programs divide and round."""
    x = values(DType.F16, 0).view(np.float16)
    assert len(x) == ELEMENTS
    assert {np.isnan(x).any(), np.isinf(x).any(), ((x != 0) & (np.abs(x) < 2.0**-14)).any()} == {True}
    assert any(op.divisor != 1 for _, p in programs() for op in p.ops)
    assert {(p.inputs[0], p.out) for _, p in programs()} >= {(DType.F64, DType.F16), (DType.F16, DType.F16)}


def test_several_outputs_of_the_same_slots(worker: Worker, device: Device) -> None:
    """What a pass does for a sweep: the slots are filled once, and each output has a program of its own."""
    programs = [total((DType.F32, DType.F32), to, divisor) for to in (DType.F32, DType.F16) for divisor in (1, 3)]
    for seed in range(3):
        x = fill(worker, programs[0], 4321, seed)
        for program in programs:
            worker.run(program, slots(program), 4321)
            exact = np.zeros(4321) if device.name == "null" else sum(x) / program.ops[0].divisor
            near = exact.astype({DType.F32: np.float32, DType.F16: np.float16}[program.out])
            assert (result(worker, program, 4321) == near).all()


def test_a_wide_tensor_goes_through_the_slots_in_pieces(worker: Worker, device: Device) -> None:
    """The first four channels are merged, the others are the primary's."""
    outer, channels, narrow, inner = 300, 9, 4, 50
    rng = np.random.default_rng(1)
    a, b = (rng.integers(-8, 9, (outer, c, inner)).astype(np.float32) for c in (channels, narrow))
    part = Part(0, 0, (0, 1, 0), Block(0, a.nbytes, DType.F32, 0, (0, a.nbytes)), Wide(outer, channels, narrow, inner),
                (True, False), DType.F32)  # fmt: skip
    raw = {0: a.reshape(-1).view(np.uint8), 1: b.reshape(-1).view(np.uint8)}
    found = run_wide(part, worker, F32X2, raw, lambda *lost: None).view(np.float32).reshape(a.shape)
    if device.name != "null":
        assert (found[:, :narrow] == a[:, :narrow] + b).all()
    assert (found[:, narrow:] == a[:, narrow:]).all()


def test_closing_gives_everything_back() -> None:
    driver = FakeDriver()
    worker = StreamedDevice("fake", [driver], on_host).worker(replace(PLACEMENT, strategy=STREAMED), ROOM)
    fill(worker, F16X3, 5000)
    worker.run(F16X3, slots(F16X3), 5000)
    assert driver.free < driver.total
    worker.close()
    assert driver.free == driver.total


def test_unknown_devices() -> None:
    for name in ("gpu", "cuda:", "cuda:x", "mps:0"):
        with pytest.raises(RecipeError, match=f"no device is called {name}"):
            find(name)
    assert "null" not in NAMES  # it makes zeros, and is not offered to anybody


def test_the_null_device_needs_no_torch() -> None:
    code = """
import sys
from mergeflow.executor.devices import find
from mergeflow.executor import run
find("null")
assert "torch" not in sys.modules
"""
    python(code)
