"""Tiny models, a recipe over them, and running the command in the same process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner, Result
from safetensors.numpy import save_file

from mergeflow.cli.main import cli

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


def run(*arguments: object, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert result.exit_code == exit_code, result.output
    return result


def run_json(*arguments: object, exit_code: int = 0) -> dict[str, Any]:
    """The one JSON object on stdout."""
    document = json.loads(run(*arguments, "--json", exit_code=exit_code).stdout)
    assert isinstance(document, dict)
    return document
