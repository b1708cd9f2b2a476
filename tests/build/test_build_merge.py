"""`mergeflow.merge`: where its file may lie, whatever else the settings say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mergeflow
from mergeflow import MergeflowError, Settings

HERE = {"w": np.array([1, 2, 5], np.float32)}
THERE = {"w": np.array([3, 2, -1], np.float32)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    save_file(HERE, "a.safetensors")
    save_file(THERE, "b.safetensors")
    return tmp_path


def merge(out: Path, settings: Settings | None) -> None:
    mergeflow.merge("a*0.5 + b*0.5", a="a.safetensors", b="b.safetensors", out=out, settings=settings)


@pytest.mark.parametrize("named", [False, True])
def test_a_file_outside_the_current_folder(folder: Path, named: bool) -> None:
    out = folder / "there" / "mix.safetensors"
    merge(out, Settings(memory=10**9, memo=folder / "memo") if named else None)
    np.testing.assert_array_equal(load_file(out)["w"], (HERE["w"] + THERE["w"]) / 2)
    assert (folder / "there" / "cache").is_dir()
    assert not (folder / "here" / "cache").exists()


def test_a_file_outside_the_root_that_was_chosen(folder: Path) -> None:
    with pytest.raises(MergeflowError, match="would be written outside"):
        merge(folder / "there" / "mix.safetensors", Settings(output_root=folder / "root", memory=10**9))
    assert not (folder / "there").exists()
