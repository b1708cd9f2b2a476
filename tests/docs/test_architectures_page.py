"""docs/architectures.md: its file is one, and its recipe means what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from support.tiny_models import settings

from mergeflow import Project
from mergeflow.recipe import loads

PAGE = (Path(__file__).parents[2] / "docs/architectures.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert found
    return found[1]


def test_the_example(tmp_path: Path) -> None:
    (tmp_path / "mynet.toml").write_text(block("toml"), encoding="utf-8")
    shapes = {"layers.0.weight": (2, 2), "layers.1.weight": (2, 2), "layers.2.weight": (2, 2), "head.weight": (2,)}
    shapes |= {"layers.0.lookup": (3,), "tail.weight": (2,)}
    for n, (file, before) in enumerate((("a", ""), ("b", "module."))):
        tensors = {
            (before if name.startswith(("layers", "head")) else "") + name: np.full(shape, 4.0 * n, np.float32)
            for name, shape in shapes.items()
        }
        save_file(tensors, tmp_path / f"{file}.safetensors")
    with Project(loads(block("yaml own"), folder=tmp_path), settings(tmp_path)) as project:
        project.build()
    made = {name: float(value.flat[0]) for name, value in load_file(tmp_path / "out/mix.safetensors").items()}
    weights = {"layers.0.weight": 1.0, "layers.1.weight": 1.0, "layers.2.weight": 2.0, "head.weight": 4.0}
    assert made == weights | {"layers.0.lookup": 0.0} | {"tail.weight": 2.0}
