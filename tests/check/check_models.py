"""Models of real names, 9 MB each, and the command run on them in the same process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner, Result
from safetensors.numpy import load_file, save_file

from bench import layout
from mergeflow.cli.main import cli

IDS = "cond_stage_model.transformer.text_model.embeddings.position_ids"
FIRST = "model.diffusion_model.input_blocks.0.0.weight"
Tensors = dict[str, np.ndarray]


def write_sd15(path: Path, letter: str, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    layout.write(path, layout.sd15_layout(shrink=16), layout.Model(letter, seed))
    return path


def changed(source: Path, path: Path, change: Callable[[Tensors], object]) -> Path:
    """A copy of a file with something done to its tensors."""
    tensors = load_file(source)
    change(tensors)
    save_file(tensors, path)
    return path


def run(*arguments: object, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert result.exit_code == exit_code, result.output
    return result


def run_json(*arguments: object, exit_code: int = 0) -> dict[str, Any]:
    document = json.loads(run(*arguments, "--json", exit_code=exit_code).stdout)
    assert isinstance(document, dict)
    return document
