"""Recipes over the models of a folder, and readers of what comes of them that share nothing with mergeflow."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from support.builds import HEAD, Heard, build, parts, sha256

from mergeflow.build.project import BuildResult

__all__ = ["Heard", "build", "parts", "sha256"]

EXPRESSION = "a + (b - c)*0.3"
SHARDED = "mix.safetensors.index.json"


def wanted(outputs: str, *, sources: Mapping[str, str] | None = None, more: str = "") -> str:
    """A recipe with these outputs (the text behind `outputs:`)."""
    named = sources or {n: f"{n}.safetensors" for n in "abc"}
    lines = "".join(f"  {name}: {path}\n" for name, path in named.items())
    return f"{HEAD}sources:\n{lines}{more}outputs:\n{outputs}"


def every(expression: str = EXPRESSION, **options: str) -> dict[str, str]:
    """The same result in every container: recipe text by the path of the output."""
    rest = "".join(f", {key}: {value}" for key, value in options.items())
    plain = f"{{ from: {expression}{rest} }}"
    shards = f"{{ from: {expression}{rest}, shard_size: 2MB }}"
    return {
        "one.safetensors": plain,
        "two.ckpt": plain,
        "three.pt": plain,
        "four.bin": plain,
        "mix.safetensors": shards,
    }


def linked(folder: Path, models: Path) -> Path:
    """Models of another folder under their names here, without a copy."""
    for file in models.glob("*.safetensors"):
        os.link(file, folder / file.name)
    return folder


def loaded(path: Path) -> dict[str, torch.Tensor]:
    """As other programs load it: torch, the safetensors library, or an index followed as transformers does."""
    if path.name.endswith(".index.json"):
        where = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        found: dict[str, torch.Tensor] = {}
        for name in sorted(set(where.values())):
            shard = safetensors.torch.load_file(path.parent / name)
            assert {t for t, file in where.items() if file == name} == shard.keys()
            found |= shard
        assert found.keys() == where.keys()
        return found
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    model = torch_loaded(path)
    return model["state_dict"] if path.suffix == ".ckpt" else model


def torch_loaded(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)  # noqa: TID251  # the judge of what is in a file


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        assert torch.equal(tensor, other[name]), name


def built(result: BuildResult) -> list[bool]:
    return [output.built for output in result.outputs]
