"""Small files of many kinds under their real names, and recipes built on them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from bench import layout, sd15
from mergeflow.build.project import Project
from mergeflow.build.settings import Settings
from mergeflow.recipe import loads

Model = dict[str, np.ndarray]
VAE = "first_stage_model."


def sd1(letter: str) -> Model:
    """A whole model of the real names, its wide dimensions divided by 16; each letter has a VAE of its own."""
    names = layout.sd15_layout(shrink=16)
    model = layout.Model(letter, ord(letter))
    return {t.name: layout.numbers(t, 0, model, t.elements).reshape(t.shape) for t in names}


def vae(model: Mapping[str, np.ndarray]) -> Model:
    """A model's VAE under bare names."""
    return {name.removeprefix(VAE): value for name, value in model.items() if name.startswith(VAE)}


def torch_of(model: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value.copy()) for name, value in model.items()}


def write(folder: Path, **models: Mapping[str, np.ndarray]) -> None:
    for name, model in models.items():
        save_file(dict(model), folder / f"{name}.safetensors")


def build(folder: Path, sources: str, output: str, *, more: str = "", name: str = "made") -> Model:
    """The tensors of one output, read back by the library."""
    text = f"mergeflow: 1\n{more}sources: {{ {sources} }}\noutputs: {{ {name}.safetensors: {output} }}\n"
    settings = Settings(folder, cache=folder / "cache", memo=folder / "memo", force=True)
    with Project(loads(text, folder=folder), settings) as project:
        project.build()
    return load_file(folder / f"{name}.safetensors")


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


assert sd15.VAE == VAE
