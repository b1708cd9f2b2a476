"""What a build may use: limits of control groups and of the address space, cards that NVML tells of, rates that are
measured once."""

from __future__ import annotations

import ctypes
import json
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import pytest
from support.builds import plan, project, python, recipe, write_models
from support.checkpoints import numbers

from mergeflow.build import accelerators, machine, speeds
from mergeflow.build.accelerators import Card, look, visible
from mergeflow.errors import MergeflowError, ResourceError
from mergeflow.plan.outlook import Accelerator
from mergeflow.plan.place import FLOOR, Budget, Footprint, place

GB = 10**9


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(machine, "_GROUP", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "_MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(machine, "_free", lambda: 100 * GB)
    monkeypatch.setattr(machine, "_space_left", lambda: None)
    return tmp_path


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def test_version_2_counts_all_groups_above(groups: Path) -> None:
    """The tightest limit is the parent's: 4 GB, of which 1 GB is used, 0.3 GB of it files."""
    (groups / "membership").write_text("0::/user/app\n")
    group(groups / "cgroup/user/app", memory__max="max", memory__current="500000000")
    stat = "anon 1\ninactive_file 100000000\nactive_file 200000000"
    group(groups / "cgroup/user", memory__max="4000000000", memory__current="1000000000", memory__stat=stat)
    group(groups / "cgroup", cpu__max="150000 100000")
    found = machine.budget()
    assert found == Budget(3_300_000_000 // 2, 1)
    assert machine.budget(3 * GB) == Budget(3 * GB, 1)
    assert machine.budget(64 * GB) == Budget(3_300_000_000, 1, None, "the limit of its control group")


def test_version_1_has_a_tree_for_each_controller(groups: Path) -> None:
    (groups / "membership").write_text("5:memory:/job\n4:cpu,cpuacct:/\n0::/\n")
    stat = "inactive_file 1\nactive_file 2\ntotal_inactive_file 50000000\ntotal_active_file 50000000"
    group(groups / "cgroup/memory/job", memory__limit_in_bytes="2000000000", memory__usage_in_bytes="600000000",
          memory__stat=stat)  # fmt: skip
    group(groups / "cgroup/memory", memory__limit_in_bytes="9223372036854771712", memory__usage_in_bytes="9")
    group(groups / "cgroup/cpu", cpu__cfs_quota_us="100000", cpu__cfs_period_us="100000")
    assert machine.budget(5 * GB) == Budget(1_500_000_000, 1, None, "the limit of its control group")


def test_without_limits_half_of_what_is_free(groups: Path) -> None:
    assert machine.budget().memory == 50 * GB
    assert machine.budget(70 * GB).memory == 70 * GB


def test_address_space_leaves_room_for_torch_and_threads(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_space_left", lambda: 1_300_000_000)
    found = machine.budget(64 * GB)
    assert found.memory == FLOOR + 1_300_000_000 - machine.TORCH_MAPPED - found.cores * machine.THREAD_MAPPED
    assert "ulimit -v" in found.limit
    with pytest.raises(ResourceError) as caught:
        place(Footprint(2000, 2, 2, 8, 0, GB), found)
    assert "ulimit -v" in caught.value.hint
    assert "--memory" not in caught.value.hint


@pytest.mark.skipif(sys.platform != "linux", reason="ulimit -v")
def test_the_limit_of_this_very_process() -> None:
    code = """
import resource
from mergeflow.build.machine import budget
resource.setrlimit(resource.RLIMIT_AS, (1_500_000_000, 1_500_000_000))
print(budget(64 * 10**9).memory)
"""
    found = int(python(code).stdout)
    assert 300_000_000 < found < 1_200_000_000


# -- accelerators ------------------------------------------------------------------------------------------------------


class FakeNvml:
    """Three cards, of which the last does not answer; the driver runs CUDA 12.4."""

    cards = (("NVIDIA H100", 80, 70), ("NVIDIA T4", 16, 3))

    def nvmlSystemGetCudaDriverVersion_v2(self, version: Any) -> int:  # noqa: N802
        version._obj.value = 12040
        return 0

    def __getattr__(self, name: str) -> Any:
        return lambda *given: 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:  # noqa: N802
        count._obj.value = 3
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, handle: Any) -> int:  # noqa: N802
        handle._obj.value = index.value + 1
        return 0 if index.value < 2 else 15

    def nvmlDeviceGetMemoryInfo(self, handle: Any, memory: Any) -> int:  # noqa: N802
        _, memory._obj.total, memory._obj.free = (
            FakeNvml.cards[handle.value - 1][i] * (GB if i else 1) for i in range(3)
        )
        return 0

    def nvmlDeviceGetName(self, handle: Any, name: Any, length: Any) -> int:  # noqa: N802
        name.value = FakeNvml.cards[handle.value - 1][0].encode()
        return 0

    def nvmlDeviceGetMaxPcieLinkGeneration(self, handle: Any, found: Any) -> int:  # noqa: N802
        found._obj.value = 6 - handle.value
        return 0

    def nvmlDeviceGetMaxPcieLinkWidth(self, handle: Any, found: Any) -> int:  # noqa: N802
        found._obj.value = 16
        return 0


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerators, "_SIGNS", ("/",))
    monkeypatch.setattr(accelerators, "_cuda_of_torch", lambda: 12)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeNvml())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("two_cards")
def test_cards_are_known_without_torch() -> None:
    (found,) = look("auto")
    assert (found.name, found.models) == ("cuda", ("NVIDIA H100", "NVIDIA T4"))
    assert found.free == (70 * GB, 3 * GB)
    assert found.up == pytest.approx(1.97e9 * 16 * 0.6)  # of the slower link
    assert not found.measured
    assert look("cuda") == (found,)
    (second,) = look("cuda:1")
    assert (second.name, second.models, second.free) == ("cuda:1", ("NVIDIA T4",), (3 * GB,))
    assert look("cpu") == ()
    with pytest.raises(ResourceError, match="no cuda:2: this machine has 2"):
        look("cuda:2")


@pytest.mark.usefixtures("two_cards")
@pytest.mark.parametrize(("built_with", "used"), [(0, False), (11, True), (13, False)])
def test_cards_are_used_where_torch_can(monkeypatch: pytest.MonkeyPatch, built_with: int, used: bool) -> None:
    """A torch without CUDA cannot, and one with a newer CUDA than the driver's cannot either."""
    monkeypatch.setattr(accelerators, "_cuda_of_torch", lambda: built_with)
    assert bool(look("auto")) == used


@pytest.mark.parametrize(
    ("said", "left"),
    [
        (None, "ABC"),
        ("", ""),
        ("-1", ""),
        ("2,0", "CA"),
        ("1", "B"),
        ("0,9,1", "A"),
        ("GPU-1f,GPU-2e", "AB"),
        ("x", ""),
    ],
)
def test_visible_devices(said: str | None, left: str) -> None:
    cards = [Card(model, 1, 1, 1.0) for model in "ABC"]
    assert "".join(card.model for card in visible(cards, said)) == left


def test_the_cuda_of_torch_is_read_from_its_version_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    assert accelerators._cuda_of_torch() == int((torch.version.cuda or "0").split(".")[0])
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()
    monkeypatch.setattr(accelerators, "find_spec", PathFinder.find_spec)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for line, cuda in (("cuda: Optional[str] = '12.8'", 12), ("cuda: Optional[str] = None", 0)):
        (tmp_path / "torch" / "version.py").write_text(f"debug = False\n{line}\nhip: Optional[str] = '6.4'\n")
        assert accelerators._cuda_of_torch() == cuda


def test_a_machine_without_a_card_says_so_when_one_is_asked_for(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    write_models(tmp_path, {m: {"w": numbers("F32", [1.0])} for m in "ab"})
    with pytest.raises(ResourceError, match="has no cuda") as caught:
        plan(tmp_path, recipe("a + b - a", "ab"), device="cuda")
    assert "--device cpu" in caught.value.hint


# -- rates -------------------------------------------------------------------------------------------------------------


def test_rates_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "large"
    source.write_bytes(bytes(33 << 20))
    first = speeds.machine(tmp_path / "memo", "auto", [source, tmp_path / "gone"])
    assert first.speeds.measured
    assert min(first.speeds.copy, first.speeds.hash, first.speeds.read, 1 / first.speeds.term) > 0
    for name in ("_copy", "_hash", "_term", "_read_rate"):
        monkeypatch.setattr(speeds, name, lambda *given: pytest.fail("measured again"))
    if json.loads((tmp_path / "memo" / speeds.FILE).read_text())["disks"]:  # else it cannot be read past the cache
        assert speeds.machine(tmp_path / "memo", "auto", [source]) == first


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"version": 99}', '{"version": 1, "host": 3}'])
def test_a_damaged_file_is_measured_again(tmp_path: Path, damage: str) -> None:
    (tmp_path / speeds.FILE).write_text(damage)
    assert speeds.machine(tmp_path, "cpu", []).speeds.measured
    assert json.loads((tmp_path / speeds.FILE).read_text())["version"] == speeds.VERSION


def test_small_sources_do_not_tell_of_a_disk(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"x")
    assert speeds.machine(tmp_path, "cpu", [tmp_path / "small"]).speeds.read == speeds.Speeds().read


def test_what_was_measured_of_an_accelerator_is_taken(tmp_path: Path) -> None:
    card = Accelerator("cuda", ("NVIDIA H100",), (1,), (1,))
    known = speeds.remembered(tmp_path)
    rates = {"up": 50e9, "down": 40e9, "term": 0.005, "start": 2.5, "host": 7, "context": 9}
    known["accelerators"][speeds.identity(card)] = rates
    speeds.remember(tmp_path, known)
    found = speeds.with_measured(card, speeds.remembered(tmp_path))
    assert (found.up, found.down, found.term, found.start, found.measured) == (50e9, 40e9, 0.005, 2.5, True)
    assert (found.host, found.context) == (7, 9)
    other = Accelerator("cuda", ("NVIDIA T4",), (1,), (1,))
    assert speeds.with_measured(other, speeds.remembered(tmp_path)) == other


def test_an_accelerator_is_measured_by_its_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies, sums, and what being awake takes of both memories: half a gigabyte of the card's here."""
    from fake_device import FakeDriver

    from mergeflow.executor import torchdevice

    monkeypatch.setattr(torchdevice, "drivers", lambda name: [FakeDriver()])
    monkeypatch.setattr(torchdevice, "seen", lambda name: (("T4",), (15 * GB - GB // 2,), (16 * GB,)))
    card = Accelerator("cuda", ("T4",), (15 * GB,), (16 * GB,))
    found = speeds.measure_accelerator(tmp_path, card)
    assert found.measured
    assert min(found.up, found.down, found.term, found.start) > 0
    assert GB // 2 <= found.context <= GB
    assert 0 < found.host < GB
    assert speeds.with_measured(card, speeds.remembered(tmp_path)) == found


def test_how_fast_a_disk_writes_is_measured_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speeds, "_WRITTEN", 8 << 20)
    memo, out = tmp_path / "memo", tmp_path / "not" / "there"
    assert speeds.machine(memo, "cpu", [], out).speeds.write == speeds.Speeds().write
    rate = speeds.measure_writing(memo, tmp_path)
    assert rate > 0
    assert speeds.machine(memo, "cpu", [], out).speeds.write == rate
    assert speeds.machine(memo, "cpu", []).speeds.write == speeds.Speeds().write
    assert [path.name for path in tmp_path.iterdir()] == ["memo"]
    with pytest.raises(ResourceError, match="how fast its disk writes cannot be measured") as caught:
        speeds.measure_writing(memo, out)
    assert "8.4 MB can be written to" in caught.value.hint


def test_a_build_with_nothing_to_do_measures_nothing(tmp_path: Path) -> None:
    write_models(tmp_path, {m: {"w": numbers("F32", [1.0, 2.0])} for m in "ab"})
    text = recipe("a*0.5 + b*0.5", "ab")
    with project(tmp_path, text) as p:
        p.build()
    file = tmp_path / "memo" / speeds.FILE
    assert file.exists()
    file.unlink()
    with project(tmp_path, text) as p:
        assert not p.plan().outputs[0].build
    assert not file.exists()


def test_names_of_devices() -> None:
    from mergeflow.build.settings import check_device

    assert [check_device(name) for name in ("auto", "cpu", "cuda", "cuda:3", "mps")]
    for name in ("gpu", "cuda:", "cuda:1000", "null", "CUDA", ""):
        with pytest.raises(MergeflowError, match="no device is called"):
            check_device(name)
