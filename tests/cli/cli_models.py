"""Tiny models, and a recipe over them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

RECIPE = """\
mergeflow: 1
sources: { a: a.safetensors, b: b.safetensors, c: c.safetensors }
params: { m: 0.3 }
steps:
  lewd: a + (b - c) * m
  same: (a - c * m) + b * m
  half: { expr: lewd, round: float16 }
outputs:
  out/lewd.safetensors: lewd
  out/half.safetensors: half * 0.5 + a * 0.5
"""


def write_model(path: Path, seed: int, elements: int = 64) -> None:
    random = np.random.default_rng(seed)
    tensors = {f"layer.{i}.weight": random.standard_normal((4, elements // 4)).astype(np.float16) for i in range(3)}
    save_file({**tensors, "step": np.array([seed], np.int64)}, path)


def folder_with_recipe(folder: Path, text: str = RECIPE) -> Path:
    for seed, name in enumerate("abc"):
        write_model(folder / f"{name}.safetensors", seed)
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    return folder
