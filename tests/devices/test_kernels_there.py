"""Kernels on an accelerator: the bytes of the CPU, or the CPU; within its memory, and on when it runs out."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_device import FakeDriver
from support.builds import Heard, build, plan, recipe, write_models
from support.checkpoints import related, weights

from mergeflow.build import speeds
from mergeflow.executor import devicekernels, devices
from mergeflow.executor.devices import on_host
from mergeflow.executor.making import Makers
from mergeflow.executor.streamed import StreamedDevice
from mergeflow.methods.kernels import GRID
from mergeflow.plan.outlook import Accelerator

GB = 10**9
CARD = Accelerator("cuda", ("A",), (8 * GB,), (8 * GB,), host=10**8, context=10**8)
EXPRESSIONS = {
    "ties": "ties(c, [a, b @ 0.5], density=0.2)",
    "votes": "c + sum_sign([(a - c), (b - c) @ 0.3], elect=count)",
    "sum of the elected": "c + sum_sign([(a - c), (b - c) @ 0.3], normalize=false)",
    "nothing is kept": "c + ties_trim(a - c, 0) + (b - c)",
    "slerp": "slerp(a, b, 0.3)",
    "mixed lengths": "slerp(a, b, 0.3, norm=lerp)",
    "karcher": "karcher([a, b @ 0.5, c])",
    "multislerp": "multislerp([a, b @ 0.5], base=c)",
    "dare": "c + dare_drop(a - c, 0.3, rescale=l1) + dare_drop(b - c, 0.3, stream=1)",
    "one in another": "slerp(ties(c, [a, b], density=0.5), a, 0.25)",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng, found = np.random.default_rng(4), tmp_path_factory.mktemp("there")
    base = {"large": weights(rng, "F16", (3 * GRID + 77,)), "small": weights(rng, "F16", (5, 7))}
    base["one"] = weights(rng, "F16", ())
    write_models(found, {m: {name: related(rng, tensor) for name, tensor in base.items()} for m in "abc"})
    return found


def on_card(monkeypatch: pytest.MonkeyPatch, drivers: Sequence[FakeDriver], card: Accelerator = CARD) -> None:
    """Plans see a card, and what is placed there goes to these."""
    device, cpu = StreamedDevice("cuda", drivers, on_host), devices.find("cpu")
    monkeypatch.setattr(speeds, "look", lambda name: () if name == "cpu" else (card,))
    monkeypatch.setattr(devices, "find", lambda name: device if name == "cuda" else cpu)
    monkeypatch.setattr(devicekernels, "SPAN_THERE", 2 * GRID)  # more than one of the large tensor


def made(folder: Path, text: str, heard: Heard | None = None, *, device: str = "cuda", **more: object) -> list[str]:
    """The digests of outputs of which nothing was left by earlier builds."""
    shutil.rmtree(folder / "cache", ignore_errors=True)
    for output in folder.glob("*.safetensors"):
        if len(output.stem) > 1:
            output.unlink()
    more = {"jobs": 2, **more}
    built = build(folder, text, Heard() if heard is None else heard, force=True, device=device, memory=2 * GB, **more)
    return [output.digest for output in built.outputs]


@pytest.mark.parametrize(
    "dtype", ["float16", *(pytest.param(d, marks=pytest.mark.slow) for d in ("bfloat16", "float32"))]
)
def test_the_same_bytes_as_on_the_cpu(folder: Path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    """All of them in one build, nothing of which falls back."""
    text = recipe(EXPRESSIONS["ties"], dtype=dtype)
    for i, expression in enumerate(list(EXPRESSIONS.values())[1:]):
        text += f"  mix-{i}.safetensors:\n    from: {expression}\n    dtype: {dtype}\n"
    wanted = made(folder, text, device="cpu")
    driver, heard = FakeDriver(seed=1), Heard()
    on_card(monkeypatch, [driver, FakeDriver(seed=2)], replace(CARD, models=("A", "A"), free=(8 * GB,) * 2))
    monkeypatch.setattr(Makers, "_here", _only_in_trials(Makers._here))
    assert made(folder, text, heard) == wanted
    assert driver.uploaded > 0
    assert not heard.warnings
    assert driver.free == driver.total


def _only_in_trials(here):  # type: ignore[no-untyped-def]
    def checked(makers, job, files):  # type: ignore[no-untyped-def]
        assert job.name == "trial", f"{job.name} was computed on the CPU"
        return here(makers, job, files)

    return checked


def test_auto_leaves_kernels_to_the_cpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where a card should be faster by far: nobody has measured kernels on one."""
    fast = replace(CARD, up=1e12, down=1e12, term=1e-6, start=0.0)
    on_card(monkeypatch, [FakeDriver()], fast)
    where = plan(folder, recipe(EXPRESSIONS["ties"]), force=True, memory=2 * GB).outputs[0].placement
    assert where is not None
    assert (where.device, where.kernels) == ("cpu", False)
    asked = plan(folder, recipe(EXPRESSIONS["ties"]), force=True, memory=2 * GB, device="cuda").outputs[0].placement
    assert asked is not None
    assert (asked.device, asked.kernels) == ("cuda", True)
    assert asked.outlook is not None
    assert [k.device for k in asked.outlook.kernels] == ["cuda"]
    assert all(0 < k.vram <= asked.vram <= 8 * GB for k in asked.outlook.kernels)


def test_what_only_the_cpu_computes_stays_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_card(monkeypatch, [FakeDriver()])
    for expression in ("median([a, b, c])", "truncate_rank(a - b, 2) + c"):
        where = plan(folder, recipe(expression), force=True, memory=2 * GB, device="cuda").outputs[0].placement
        assert where is not None
        assert not where.kernels


@pytest.mark.parametrize("memory", [0, 300_000, 1_500_000])
@pytest.mark.parametrize("name", ["ties", "slerp"])
def test_without_memory_the_cpu_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch, memory: int, name: str) -> None:
    """From the beginning of a tensor, or from the piece that it ran out at; with one warning."""
    text, heard, driver = recipe(EXPRESSIONS[name]), Heard(), FakeDriver()
    wanted = made(folder, text, device="cpu")
    on_card(monkeypatch, [driver])
    monkeypatch.setattr("mergeflow.executor.streamed.kernel_disagreement", lambda driver, program: None)
    devices.find("cuda").worker(plan(folder, text, force=True).outputs[0].placement, devices_room()).close()
    driver.free = driver.total = memory
    assert made(folder, text, heard) == wanted
    assert len(heard.warnings) <= 1
    if not memory:
        assert heard.warnings == ["a fake device has no memory left: what remains is computed on the CPU"]


@pytest.mark.parametrize(
    ("expression", "memory"),
    [
        (EXPRESSIONS["ties"], 300_000),  # less than its inputs take
        (EXPRESSIONS["ties"], 1_200_000),  # and more, but less than all magnitudes besides
        ("slerp(a, b, 0.3) + (c - b)", 600_000),  # c is only there when the result is made
    ],
)
def test_the_cpu_begins_once_the_device_has_its_memory_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch, expression: str, memory: int
) -> None:
    """And not beside what an error still holds of it."""
    text, heard, driver, held = recipe(expression), Heard(), FakeDriver(), []
    wanted = made(folder, text, device="cpu")
    on_card(monkeypatch, [driver])
    monkeypatch.setattr("mergeflow.executor.streamed.kernel_disagreement", lambda driver, program: None)
    devices.find("cuda").worker(plan(folder, text, force=True).outputs[0].placement, devices_room()).close()
    here = Makers._here

    def counted(makers, job, files):  # type: ignore[no-untyped-def]
        held.append(driver.total - driver.free)
        return here(makers, job, files)

    monkeypatch.setattr(Makers, "_here", counted)
    driver.free = driver.total = memory
    assert made(folder, text, heard, jobs=1) == wanted
    assert held == [0]  # the large tensor; there is room for the others
    assert heard.warnings == ["a fake device has no memory left: what remains is computed on the CPU"]
    assert driver.free == driver.total


def test_kernels_that_cannot_be_tried_stay_on_the_cpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the CPU did for want of room would prove nothing of the device."""
    text, heard, driver = recipe(EXPRESSIONS["slerp"]), Heard(), FakeDriver()
    wanted = made(folder, text, device="cpu")
    on_card(monkeypatch, [driver])
    devices.find("cuda").worker(plan(folder, text, force=True).outputs[0].placement, devices_room()).close()
    driver.free = driver.total = 1000
    assert made(folder, text, heard) == wanted
    assert heard.warnings == ["a fake device has no memory left to be tried: the CPU computes slerp"]


def devices_room():  # type: ignore[no-untyped-def]
    from mergeflow.executor.device import Room

    return Room((), 1)


def test_a_device_that_gives_other_bytes_is_not_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It adds up rightly, and is wrong about magnitudes."""
    text, heard = recipe(EXPRESSIONS["ties"]), Heard()
    wanted = made(folder, text, device="cpu")
    on_card(monkeypatch, [FakeDriver()])
    rank = devicekernels.rank
    monkeypatch.setattr(devicekernels, "rank", lambda *given: rank(*given) + 1)
    assert made(folder, text, heard) == wanted
    (warning,) = heard.warnings
    assert warning == "a fake device gives other bytes than the CPU: the CPU computes sum_sign, ties_trim" or (
        warning == "a fake device gives other bytes than the CPU: the CPU computes ties_trim, sum_sign"
    )


def test_numbers_lost_are_counted_as_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 sums that float16 cannot hold, and an infinity that was there before."""
    from support.checkpoints import numbers

    first = [70000.0, 1.0, float("inf"), -70000.0] + [1.0] * 60
    write_models(tmp_path, {"a": {"w": numbers("F32", first)}, "b": {"w": numbers("F32", [2.0] * 64)},
                            "c": {"w": numbers("F32", [1.0] * 64)}})  # fmt: skip
    text = recipe("c + sum_sign([a - c, b - c])", dtype="float16")
    told, heard = Heard(), Heard()
    made(tmp_path, text, told, device="cpu")
    on_card(monkeypatch, [FakeDriver()])
    made(tmp_path, text, heard)
    assert [w for w in heard.warnings if "NaN or infinite" in w] == [w for w in told.warnings if "NaN or" in w] != []
