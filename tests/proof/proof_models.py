"""Small models, and forging: files changed by hand as somebody would who wants them to pass for what they are not."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner, Result
from safetensors.numpy import save_file

from mergeflow.cli.main import cli

Header = dict[str, Any]


def write_model(path: Path, seed: int, layers: int = 4) -> None:
    random = np.random.default_rng(seed)
    tensors = {f"layer.{i}.weight": random.standard_normal((4, 16)).astype(np.float16) for i in range(layers)}
    save_file({**tensors, "step": np.array([seed], np.int64)}, path)


def recipe(more: str = "", expression: str = "a + (b - c) * m", name: str = "out/mix.safetensors") -> str:
    return (
        "mergeflow: 1\nsources: { a: a.safetensors, b: b.safetensors, c: c.safetensors }\nparams: { m: 0.3 }\n"
        f"outputs:\n  {name}: {{ from: {expression}{more} }}\n"
    )


def run(*arguments: object, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert result.exit_code == exit_code, result.output
    return result


def run_json(*arguments: object, exit_code: int = 0) -> dict[str, Any]:
    document = json.loads(run(*arguments, "--json", exit_code=exit_code).stdout)
    assert isinstance(document, dict)
    return document


def build(text: str, *options: str) -> None:
    Path("recipe.yaml").write_text(text, encoding="utf-8")
    run("build", *options)


def parts(path: Path) -> tuple[Header, bytearray]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), bytearray(data[8 + length :])


def forge(path: Path, change: Callable[[Header, bytearray], None], *, sign: bool = False) -> None:
    """Change a safetensors file. With `sign`, its claim of a digest is made to fit what its tensors are then."""
    header, data = parts(path)
    change(header, data)
    _write(path, header, data)
    if sign:
        header["__metadata__"]["mergeflow.digest"] = run_json("hash", path)["files"][0]["model"]
        _write(path, header, data)


def _write(path: Path, header: Mapping[str, Any], data: bytes) -> None:
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % 4096)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def flip(name: str, bit: int = 0) -> Callable[[Header, bytearray], None]:
    def change(header: Header, data: bytearray) -> None:
        data[header[name]["data_offsets"][0] + bit // 8] ^= 1 << bit % 8

    return change


def swap(one: str, other: str) -> Callable[[Header, bytearray], None]:
    def change(header: Header, data: bytearray) -> None:
        (a, b), (c, d) = header[one]["data_offsets"], header[other]["data_offsets"]
        data[a:b], data[c:d] = bytes(data[c:d]), bytes(data[a:b])

    return change


def say(key: str, value: str) -> Callable[[Header, bytearray], None]:
    def change(header: Header, data: bytearray) -> None:
        header["__metadata__"][key] = value

    return change
