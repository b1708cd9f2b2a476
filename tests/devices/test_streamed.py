"""Units through a device with a memory of its own: what is queued when, what happens without room, who takes over."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_device import FakeDriver, Stream
from support.builds import Heard, build, parts, recipe, sha256, write_models
from support.checkpoints import related, weights

from mergeflow.digest import CHUNK
from mergeflow.errors import ResourceError
from mergeflow.executor import devices
from mergeflow.executor.device import DeviceLost, Room, Worker
from mergeflow.executor.devices import find, on_host
from mergeflow.executor.streamed import LEAST, StreamedDevice
from mergeflow.executor.torchdevice import _told
from mergeflow.plan.place import RESIDENT, STREAMED, Placement
from mergeflow.plan.program import Op, Program
from mergeflow.tensors import DType

TILE = 4 * LEAST
N = 10 * LEAST + 17
PLACEMENT = Placement("fake", STREAMED, 1, CHUNK, TILE, TILE, 0, "")
SUM = Program((DType.F16,) * 2, (Op(((Fraction(7), 0), (Fraction(3), 1)), 10, DType.F32, DType.F16),))
ROOM = Room((2 * N, 2 * N), 2 * N)
NEEDS = 2 * 3 * TILE * 2  # bytes on the device: two sets of two inputs and a result


def worker_of(drivers: Sequence[FakeDriver], heard: Heard, strategy: str = STREAMED) -> Worker:
    device = StreamedDevice("fake", drivers, on_host)
    found = device.worker(replace(PLACEMENT, strategy=strategy, devices=len(drivers)), ROOM, heard)
    for driver in drivers:  # what showed that it computes as the CPU does is over
        driver.log.clear()
        driver.tiles.clear()
        driver.released.clear()
        driver.largest = driver.uploaded = 0
    return found


def computed(worker: Worker, *, filled: bool = True) -> bytes:
    rng = np.random.default_rng(3)
    for i in range(2):
        worker.slot(i)[:] = rng.standard_normal(N).astype(np.float16).view(np.uint8)
    if filled:
        worker.filled()
    worker.out[:] = 0
    worker.run(SUM, range(2), N)
    return worker.out.tobytes()


@pytest.fixture(scope="module")
def wanted() -> bytes:
    return computed(find("cpu").worker(PLACEMENT, ROOM))


def test_the_next_tile_is_on_its_way_before_one_is_computed(wanted: bytes) -> None:
    driver, heard = FakeDriver(), Heard()
    assert computed(worker_of([driver], heard)) == wanted
    assert driver.tiles == [TILE, TILE, N - 2 * TILE]
    queued = [i for i, (when, what) in enumerate(driver.log) if (when, what) == ("queued", "in")]
    done = [i for i, (when, what) in enumerate(driver.log) if (when, what) == ("done", "sum")]
    assert queued[2 * 1] < done[0]  # both inputs of the second tile
    assert queued[2 * 2] < done[1]
    assert not heard


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("strategy", [STREAMED, RESIDENT])
def test_any_order_that_the_events_allow_gives_the_same_bytes(wanted: bytes, seed: int, strategy: str) -> None:
    driver, heard = FakeDriver(seed=seed), Heard()
    worker = worker_of([driver], heard, strategy)
    assert not heard  # it has shown that it computes as the CPU does, in a drawn order too
    assert computed(worker) == wanted
    assert computed(worker) == wanted
    assert len(driver.tiles) == 6


def test_resident_inputs_are_copied_once_for_several_outputs(wanted: bytes) -> None:
    driver = FakeDriver()
    worker = worker_of([driver], Heard(), RESIDENT)
    computed(worker)
    once = driver.uploaded
    assert once == 2 * 2 * N
    for _ in range(3):
        assert computed(worker, filled=False) == wanted
    assert driver.uploaded == once
    assert computed(worker) == wanted
    assert driver.uploaded == 2 * once


@pytest.mark.parametrize("memory", [NEEDS, NEEDS - 1, NEEDS // 2, NEEDS // 4])
def test_out_of_memory_halves_the_tile(wanted: bytes, memory: int) -> None:
    driver, heard = FakeDriver(), Heard()
    worker = worker_of([driver], heard)
    driver.free = driver.total = memory
    assert computed(worker) == wanted
    halvings = (-(-NEEDS // memory) - 1).bit_length()
    assert max(driver.tiles[-3:]) == TILE >> halvings
    assert driver.largest <= memory
    assert computed(worker) == wanted  # with the tile that fitted
    assert not heard
    assert driver.released == [0] * halvings  # smaller tiles are made once the larger are gone, and not beside them


class Crowded(FakeDriver):
    """Has no memory left for what a sum takes on its way, in the middle of a unit; or from then on."""

    def __init__(self, *, for_good: bool) -> None:
        super().__init__()
        self.sums, self.for_good = -1000, for_good  # not before it has been tried

    def compute(self, stream: Stream, program: Program, inputs: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        self.sums += 1
        if self.sums == 2 or (self.sums > 2 and self.for_good):
            with _told(self.name):
                raise torch.OutOfMemoryError("CUDA out of memory")
        super().compute(stream, program, inputs, out)


@pytest.mark.parametrize("for_good", [False, True])
def test_out_of_memory_in_the_middle_leaves_nothing_on_its_way(wanted: bytes, for_good: bool) -> None:
    driver, heard = Crowded(for_good=for_good), Heard()
    worker = worker_of([driver], heard)
    driver.sums = 0
    assert computed(worker) == wanted
    assert not any(stream.tasks for stream in driver._streams)
    assert driver.released
    assert not any(driver.released)
    assert len(heard.warnings) == for_good


def test_buffers_are_free_as_soon_as_a_run_returns(wanted: bytes) -> None:
    """What they are filled with next is not what the run before takes; nor does it write after it."""
    driver = FakeDriver(seed=4)
    worker = worker_of([driver], Heard())
    assert computed(worker) == wanted
    kept = worker.out.copy()
    for i in range(2):
        worker.slot(i)[:] = 0xFF
    assert (worker.out == kept).all()
    worker.out[:] = 0
    other = Program((DType.F16,), (Op(((Fraction(1), 0),), 1, DType.F32, DType.F32),))
    worker.slot(0)[:2] = 0x3C
    worker.filled()
    worker.run(other, range(1), 1)
    assert not worker.out[4:].any()


def test_a_resident_unit_that_does_not_fit_is_streamed(wanted: bytes) -> None:
    driver, heard = FakeDriver(), Heard()
    worker = worker_of([driver], heard, RESIDENT)
    driver.free = driver.total = NEEDS
    assert computed(worker) == wanted
    assert max(driver.tiles) == TILE // 2
    assert not heard


def test_what_was_resident_is_copied_again_when_it_had_to_go() -> None:
    """A second output needs more than is left beside the inputs, which were copied for the first."""
    driver, half = FakeDriver(), N // 2
    wider = Program((DType.F16,) * 2, (replace(SUM.ops[0], to=DType.F32),))
    workers = worker_of([driver], Heard(), RESIDENT), find("cpu").worker(PLACEMENT, ROOM)
    for worker in workers:
        computed(worker)
        driver.total -= driver.free  # somebody else has taken the rest
        driver.free = 0
        worker.run(wider, range(2), half)
    assert (workers[0].out[: 4 * half] == workers[1].out[: 4 * half]).all()
    assert driver.released == [0]


def test_without_room_for_the_least_tile_the_cpu_goes_on_with_one_warning(wanted: bytes) -> None:
    driver, heard = FakeDriver(), Heard()
    device = StreamedDevice("fake", [driver], on_host)
    workers = [device.worker(PLACEMENT, ROOM, heard) for _ in range(2)]
    driver.free = driver.total = 1000
    driver.tiles.clear()
    for worker in (*workers, *workers):
        assert computed(worker) == wanted
    assert not driver.tiles
    assert heard.warnings == ["a fake device has no memory left: what remains is computed on the CPU"]
    assert driver.free == driver.total


def test_all_accelerators_work_on_one_queue(wanted: bytes) -> None:
    drivers = [FakeDriver(seed=i, name=f"fake {i}") for i in range(3)]
    device = StreamedDevice("fake", drivers, on_host)
    workers = [device.worker(replace(PLACEMENT, devices=2), ROOM) for _ in range(4)]
    for driver in drivers:
        driver.tiles.clear()
    assert all(computed(worker) == wanted for worker in workers)
    assert [len(driver.tiles) for driver in drivers] == [6, 6, 0]  # the placement says two of them


def test_a_device_that_adds_up_wrongly_is_not_used(wanted: bytes) -> None:
    driver, heard = FakeDriver(wrong=True), Heard()
    worker = worker_of([driver], heard)
    assert computed(worker) == wanted
    assert not driver.tiles
    assert len(heard.warnings) == 1
    assert "a fake device gives other bytes than the CPU for" in heard.warnings[0]


class Limited(FakeDriver):
    """Has no code for float8, as some cards and versions have not."""

    def compute(self, stream: Stream, program: Program, inputs: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        if DType.F8_E5M2 in program.inputs:
            raise RuntimeError("'copy_' not implemented for 'Float8_e5m2'")
        super().compute(stream, program, inputs, out)


@pytest.mark.parametrize(
    ("driver", "warning"),
    [
        (FakeDriver(1000), "a fake device has no memory left to be tried for float16 → float16 in float32: it is not"),
        (Limited(), "a fake device has no code ('copy_' not implemented for 'Float8_e5m2') for float8_e5m2 → float16"),
    ],
    ids=["no room", "no code"],
)
def test_a_device_that_cannot_be_tried_is_not_used(wanted: bytes, driver: FakeDriver, warning: str) -> None:
    """What the CPU does in its place would prove nothing of it."""
    heard = Heard()
    device = StreamedDevice("fake", [driver], on_host)
    workers = [device.worker(PLACEMENT, ROOM, heard) for _ in range(2)]
    driver.tiles.clear()
    assert [computed(worker) for worker in workers] == [wanted, wanted]
    assert not driver.tiles
    assert driver.free == driver.total
    (said,) = heard.warnings
    assert said.startswith(warning)


def test_a_lost_device_is_an_error(wanted: bytes) -> None:
    driver = FakeDriver()
    worker = worker_of([driver], Heard())
    driver._left = 5
    with pytest.raises(DeviceLost, match="stopped answering"):
        computed(worker)
    assert DeviceLost("").exit_code == ResourceError("").exit_code
    with pytest.raises(DeviceLost):
        worker.close()
    assert driver.free == driver.total


# -- whole builds ------------------------------------------------------------------------------------------------------

TEXT = recipe("a + (b - c)*s", more="params: { s: { sweep: [0.25, 0.3, 1] } }\n", out='"mix-{s}"').replace(
    '"mix-{s}".safetensors', '"mix-{s}.safetensors"'
)
OUTPUTS = ["mix-0.25", "mix-0.3", "mix-1"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(8)
    first = weights(rng, "F16", (1_700_001,))
    small = [weights(rng, "F16", (7, k)) for k in range(1, 30)]
    made = {}
    for name in "abc":
        made[name] = {"large": related(rng, first), **{f"small.{i}": related(rng, t) for i, t in enumerate(small)}}
    folder = tmp_path_factory.mktemp("models")
    write_models(folder, made)
    return folder


def on_fake(monkeypatch: pytest.MonkeyPatch, drivers: Sequence[FakeDriver]) -> None:
    """Every build computes on these."""
    device = StreamedDevice("fake", drivers, on_host)
    monkeypatch.setattr(devices, "find", lambda name: device)


@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize("memory", [1 << 30, 3 << 20])
def test_builds_are_the_same(models: Path, monkeypatch: pytest.MonkeyPatch, jobs: int, memory: int) -> None:
    folder, heard = models, Heard()
    build(folder, TEXT, force=True)
    expected = [sha256(folder / f"{name}.safetensors") for name in OUTPUTS]
    drivers = [FakeDriver(memory, seed=jobs), FakeDriver(memory, seed=jobs + 1)]
    on_fake(monkeypatch, drivers)
    build(folder, TEXT, heard, force=True, jobs=jobs)
    assert [sha256(folder / f"{name}.safetensors") for name in OUTPUTS] == expected
    full = [f"{driver.name} has no memory left: what remains is computed on the CPU" for driver in drivers]
    assert heard.warnings in ([], *([one] for one in full))  # three workers may find too little room for all of them


def test_a_device_lost_in_a_build_leaves_nothing_behind(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = models
    for name in OUTPUTS:
        (folder / f"{name}.safetensors").unlink(missing_ok=True)
    driver = FakeDriver()
    on_fake(monkeypatch, [driver])
    devices.find("fake").worker(PLACEMENT, ROOM).close()  # it has shown that it computes as the CPU does
    driver._left = 4
    with pytest.raises(DeviceLost):
        build(folder, TEXT, jobs=2)
    assert not [name for name in OUTPUTS if (folder / f"{name}.safetensors").exists()]


def test_what_was_made_before_a_device_was_lost_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(9)
    first = {f"w{i}": weights(rng, "F16", (300_000,)) for i in range(6)}
    write_models(tmp_path, {m: {name: related(rng, t) for name, t in first.items()} for m in "abc"})
    text, mix, driver = recipe("a + (b - c)*0.3"), tmp_path / "mix.safetensors", FakeDriver()
    build(tmp_path, text)
    right = sha256(mix)
    mix.unlink()
    shutil.rmtree(tmp_path / "cache")
    with monkeypatch.context() as lost:
        on_fake(lost, [driver])
        devices.find("fake").worker(PLACEMENT, ROOM).close()
        driver._left = 50  # three tensors are a unit of seven tiles, each of them five tasks
        with pytest.raises(DeviceLost):
            build(tmp_path, text, jobs=1)
    assert not mix.exists()
    assert len(parts(tmp_path)) == 1
    monkeypatch.setattr("mergeflow.formats.parts.process_is_gone", lambda mark: True)
    (built,) = build(tmp_path, text).outputs
    assert (built.tally.reused, built.tally.computed) == (3, 3)
    assert sha256(mix) == right
    assert not parts(tmp_path)
