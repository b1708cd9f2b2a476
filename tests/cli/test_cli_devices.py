"""`mergeflow devices`, and --device and --vram of other commands."""

from __future__ import annotations

import pytest
from support.commands import run, run_json

from mergeflow.build import speeds
from mergeflow.plan.outlook import Accelerator

GB = 10**9
CARDS = Accelerator("cuda", ("A card", "Another"), (8 * GB, 4 * GB), (16 * GB, 4 * GB), up=20e9, down=10e9, term=0.01)


def test_the_cpu_is_always_there() -> None:
    data = run_json("devices", "--device", "cpu", "--memory", "400MB", "-j", "3")
    assert data["schema"] == "mergeflow/devices/1"
    assert data["accelerators"] == []
    assert (data["cpu"]["cores"], data["cpu"]["memory"]) == (3, 400_000_000)
    assert min(data["cpu"]["copies"], data["cpu"]["hashes"], data["cpu"]["terms"]) > 0
    assert "no accelerator" in run("devices", "--device", "cpu").stdout


def test_accelerators_with_what_a_build_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speeds, "look", lambda device: (CARDS,))
    (told,) = run_json("devices")["accelerators"]
    assert (told["name"], told["models"], told["usable"]) == ("cuda", ["A card", "Another"], int(0.8 * 4 * GB))
    assert (told["up"], told["terms"], told["measured"]) == (20e9, 1e11, False)
    assert run_json("devices", "--vram", "1GB")["accelerators"][0]["usable"] == GB
    text = run("devices").stdout
    assert "8.0 GB of 16.0 GB free" in text
    assert "mergeflow devices --measure" in text


def test_names_and_amounts_are_checked() -> None:
    assert "did you mean cuda" in run("devices", "--device", "cdua", exit_code=2).stderr
    assert "is not an amount of memory" in run("devices", "--vram", "much", exit_code=2).stderr


def test_the_disk_of_the_folder_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speeds, "_WRITTEN", 4 << 20)
    before = run_json("devices", "--device", "cpu")["cpu"]["writes"]
    after = run_json("devices", "--device", "cpu", "--measure")["cpu"]["writes"]
    assert before == speeds.Speeds().write != after
    assert "the disk of this folder writes" in run("devices", "--device", "cpu").stdout
