"""Position ids from A1111's weighted sum, as a file has them: broken as its formula says, found, and repaired.

The multipliers and ids are those of a weighted sum of two intact models, int64 times a Python float, as torch has it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from check_models import IDS
from safetensors.torch import load_file, save_file
from support.commands import run, run_json

from mergeflow.build.api import load

INTACT = torch.arange(77).reshape(1, 77)
BROKEN = {
    0.05: [13, 21, 26, 31, 37, 42, 47, 52, 57, 62, 69, 74],
    0.10: [3, 6, 7, 9, 12, 14, 18, 23, 24, 28, 29, 36, 41, 46, 48, 51, 53, 56, 58, 61, 63, 72],
    0.35: [29, 53, 58, 63],
    0.65: [29, 53, 58, 63],
    0.90: [3, 6, 7, 9, 12, 14, 18, 23, 24, 28, 29, 36, 41, 46, 48, 51, 53, 56, 58, 61, 63, 72],
    0.95: [13, 21, 26, 31, 37, 42, 47, 52, 57, 62, 69, 74],
}


def merged(m: float) -> torch.Tensor:
    ids = ((1 - m) * INTACT) + (m * INTACT)
    assert ids.dtype is torch.float32
    return ids


@pytest.mark.parametrize("step", range(21))
def test_the_formula_breaks_these_and_no_others(step: int) -> None:
    m = round(step * 0.05, 2)
    loaded = torch.empty_like(INTACT).copy_(merged(m))  # as load_state_dict does: truncated
    assert torch.nonzero(loaded != INTACT)[:, 1].tolist() == BROKEN.get(m, [])
    halved = torch.empty_like(INTACT).copy_(merged(m).half())
    assert torch.equal(halved, INTACT)


@pytest.mark.parametrize("container", ["safetensors", "ckpt"])
@pytest.mark.parametrize("m", BROKEN)
def test_found_and_repaired(
    m: float, container: str, sd15: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    broken = load_file(sd15["A"]) | {IDS: merged(m)}
    path = tmp_path / f"broken.{container}"
    if container == "ckpt":
        torch.save({"state_dict": broken}, path)
    else:
        save_file(broken, path)
    (file,) = run_json("check", path, exit_code=3)["files"]
    assert [finding["ids"] for finding in file["findings"]] == [BROKEN[m]]
    output = "{ from: a, fix: [clip_position_ids] }"
    text = f"mergeflow: 1\nsources: {{ a: {path.name} }}\noutputs:\n  mended.safetensors: {output}\n"
    (tmp_path / "recipe.yaml").write_text(text)
    with load(tmp_path / "recipe.yaml") as project:
        project.build()
    mended = load_file(tmp_path / "mended.safetensors")
    assert mended[IDS].dtype is torch.int64
    assert torch.equal(mended.pop(IDS), INTACT)
    assert all(np.array_equal(t.numpy(), broken[n].numpy()) for n, t in mended.items())
    assert "nothing is wrong" in run("check", "mended.safetensors").stdout
