"""Two machines in one test: each has its own folders, memo and records, and shares nothing but what is copied."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner, Result
from safetensors.numpy import save

from mergeflow.cli.main import cli

RECIPE = """\
mergeflow: 1
sources: { a: models/a.safetensors, b: models/b.safetensors, c: models/c.safetensors }
outputs:
  out/mix.safetensors: a + (b - c) * 0.3
"""
MIX = Path("out/mix.safetensors")


class Machine:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work = folder / "work"
        self.work.mkdir(parents=True)
        self.env = {"MERGEFLOW_MEMO": str(folder / "memo"), "MERGEFLOW_DOWNLOADS": str(folder / "downloads"),
                    "MERGEFLOW_CONFIG": str(folder / "config"), "MERGEFLOW_MODELS": str(folder / "models")}  # fmt: skip

    def run(self, *arguments: object, exit_code: int = 0, env: Mapping[str, str] = {}) -> Result:
        with chdir(self.work):
            result = CliRunner(env={**self.env, **env}).invoke(cli, [str(a) for a in arguments])
        assert result.exit_code == exit_code, result.output
        return result

    def json(self, *arguments: object, exit_code: int = 0, env: Mapping[str, str] = {}) -> dict[str, Any]:
        document = json.loads(self.run(*arguments, "--json", exit_code=exit_code, env=env).stdout)
        assert isinstance(document, dict)
        return document

    def put(self, path: str, data: bytes) -> Path:
        """A file among the machine's models."""
        target = self.folder / "models" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        return target

    def recipe(self, text: str) -> None:
        (self.work / "recipe.yaml").write_text(text, encoding="utf-8")


def model(seed: int, elements: int = 256) -> bytes:
    """A small model file."""
    random = np.random.default_rng(seed)
    return save({f"layer.{i}.weight": random.standard_normal((4, elements // 4)).astype(np.float16) for i in range(3)})


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def flipped(data: bytes) -> bytes:
    """With the last bit changed, which is in a tensor."""
    return data[:-1] + bytes([data[-1] ^ 1])
