"""Small models, and forging: files changed by hand as somebody would who wants them to pass for what they are not."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from support.commands import run, run_json

Header = dict[str, Any]
Change = Callable[[dict[str, bytearray]], None]  # of the bytes of a model's tensors


def write_model(path: Path, seed: int, layers: int = 4, width: int = 16) -> None:
    random = np.random.default_rng(seed)
    tensors = {f"layer.{i}.weight": random.standard_normal((4, width)).astype(np.float16) for i in range(layers)}
    save_file({**tensors, "step": np.array([seed], np.int64)}, path)


def recipe(more: str = "", expression: str = "a + (b - c) * m", name: str = "out/mix.safetensors") -> str:
    return (
        "mergeflow: 1\nsources: { a: a.safetensors, b: b.safetensors, c: c.safetensors }\nparams: { m: 0.3 }\n"
        f"outputs:\n  {name}: {{ from: {expression}{more} }}\n"
    )


def build(text: str, *options: str) -> None:
    Path("recipe.yaml").write_text(text, encoding="utf-8")
    run("build", *options)


def header_of(path: Path) -> Header:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    assert isinstance(header, dict)
    return header


def reword(path: Path, change: Callable[[Header], object]) -> None:
    """Change the header of a safetensors file, and leave its tensors as they are."""
    data, header = path.read_bytes(), header_of(path)
    change(header)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % 4096)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + int.from_bytes(data[:8], "little") :])


def say(key: str, value: str) -> Callable[[Header], None]:
    def change(header: Header) -> None:
        header["__metadata__"][key] = value

    return change


def forge(model: Path, change: Change, *, sign: bool = False) -> None:
    """Change the bytes of tensors where they lie, in any container. With `sign`, the digest that the model claims is
    made to fit what its tensors are then."""
    places = _places(model)
    tensors = {name: bytearray(path.read_bytes()[start:end]) for name, (path, start, end) in places.items()}
    was = run_json("inspect", model)["digest"] if sign else ""
    change(tensors)
    for name, (path, start, end) in places.items():
        assert len(tensors[name]) == end - start
        with path.open("r+b") as file:
            file.seek(start)
            file.write(tensors[name])
    if sign:
        restate(model, was, run_json("hash", model)["files"][0]["model"])


def restate(model: Path, old: str, new: str) -> None:
    """Other words of the same length, wherever the files of a model have these; not in what lies beside it."""
    claims = [model.with_name(model.name + ".mergeflow.json")] if model.suffix == ".ckpt" else []
    assert len(old) == len(new)
    found = 0
    for path in {model, *claims, *(path for path, _, _ in _places(model).values())}:
        data = path.read_bytes()
        found += data.count(old.encode())
        path.write_bytes(data.replace(old.encode(), new.encode()))
    assert found


def _places(model: Path) -> dict[str, tuple[Path, int, int]]:
    """Where the bytes of each tensor lie: a file, and from where to where in it."""
    if model.name.endswith(".index.json"):
        shards = set(json.loads(model.read_text(encoding="utf-8"))["weight_map"].values())
        return {name: place for shard in sorted(shards) for name, place in _places(model.with_name(shard)).items()}
    data = model.read_bytes()
    if model.suffix == ".safetensors":
        first = 8 + int.from_bytes(data[:8], "little")
        spans = {name: spec["data_offsets"] for name, spec in header_of(model).items() if name != "__metadata__"}
        return {name: (model, first + start, first + end) for name, (start, end) in spans.items()}
    loaded = torch.load(model, weights_only=True)["state_dict"]  # noqa: TID251  # the judge of what is in a file
    raw = {name: tensor.numpy().tobytes() for name, tensor in loaded.items()}
    return {
        name: (model, data.index(stored), data.index(stored) + len(stored))
        for name, stored in raw.items()
        if data.count(stored) == 1  # as random ones are
    }


def flip(name: str, bit: int = 0) -> Change:
    def change(tensors: dict[str, bytearray]) -> None:
        tensors[name][bit // 8] ^= 1 << bit % 8

    return change


def swap(one: str, other: str) -> Change:
    def change(tensors: dict[str, bytearray]) -> None:
        tensors[one], tensors[other] = tensors[other], tensors[one]

    return change
