"""Models of real names, 9 MB each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from bench import layout

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
