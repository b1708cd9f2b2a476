"""A broken thing to try: a recipe and files in a folder of its own, a command, and what must come of it.

What holds for every case is checked in one place (`run`): the message is the golden one, it fits a screen, nothing
appeared and nothing changed in the folder, and no tensor was computed where planning could have known.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from support.checkpoints import Model, Tensor, numbers, weights, write

from mergeflow.cli.main import cli

GOLDEN = Path(__file__).parent / "golden"
MAX_LINES, MAX_LINE = 12, 200
TORCH = ("torch", "mergeflow.executor.outputs", "mergeflow.executor.cpu", "mergeflow.executor.devices")
HEAD = "mergeflow: 1\nsources: { a: a.safetensors, b: b.safetensors, c: c.safetensors }\n"

Content = bytes | str | Model
Change = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """`recipe` is written as recipe.yaml, `files` beside it, after the models a, b and c; `change` does the rest.
    `computed`: it can only be known once tensors are computed."""

    name: str
    code: int
    recipe: Content = ""
    files: Mapping[str, Content] = field(default_factory=dict)
    command: str = "build recipe.yaml"
    change: Change | None = None
    computed: bool = False

    def __str__(self) -> str:
        return self.name


def mix(name: str, expression: str, more: str = "", **rest: Any) -> Case:
    """A recipe of one output over a, b and c."""
    text = f"{HEAD}{more}{chr(10) if more else ''}outputs:\n  mix.safetensors: {expression}\n"
    return Case(name, rest.pop("code", 2), text, **rest)


def head(name: str, rest: str, **more: Any) -> Case:
    """A recipe that begins like all others."""
    return Case(name, more.pop("code", 2), HEAD + rest, **more)


# -- models --------------------------------------------------------------------------------------------------------


def small(seed: int, code: str = "F32") -> Model:
    return {
        "v": weights(np.random.default_rng(seed), code, (3,)),
        "w": weights(np.random.default_rng(seed), code, (2, 4)),
    }


FIRST = "model.diffusion_model.input_blocks.0.0.weight"


def sd1(seed: int, channels: int = 4) -> Model:
    """Recognised as Stable Diffusion 1: a tensor or two of each component."""
    r = np.random.default_rng(seed)
    return {
        FIRST: weights(r, "F16", (5, channels, 3, 3)),
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": weights(r, "F16", (2, 768)),
        "model.diffusion_model.out.2.weight": weights(r, "F16", (4, 5, 3, 3)),
        "first_stage_model.decoder.conv_in.weight": weights(r, "F16", (5, 4, 3, 3)),
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": weights(r, "F16", (3, 768)),
        "betas": weights(r, "F32", (10,)),
    }


def flux(seed: int) -> Model:
    r = np.random.default_rng(seed)
    shapes = {"double_blocks.0.img_attn.qkv.weight": (12, 4), "single_blocks.0.linear1.weight": (8, 4),
              "txt_in.weight": (4, 8), "vector_in.in_layer.weight": (4, 4)}  # fmt: skip
    return {name: weights(r, "BF16", shape) for name, shape in shapes.items()}


def put(folder: Path, files: Mapping[str, Content]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, dict):
            write(path, content)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)


def values(code: str, *x: float) -> Tensor:
    return numbers(code, list(x))


# -- running -------------------------------------------------------------------------------------------------------


def prepare(case: Case, folder: Path, old: bytes | None) -> None:
    """Everything that is there before; with `old`, also an output that an earlier build of ours made."""
    put(folder, {f"{name}.safetensors": small(i) for i, name in enumerate("abc", 1)})
    if old is not None:
        put(folder, {"mix.safetensors": old})
    if case.recipe:
        put(folder, {"recipe.yaml": case.recipe})
    put(folder, case.files)
    if case.change is not None:
        case.change(folder)


def tree(folder: Path) -> dict[str, bytes | str | None]:
    """Everything below: content of files, targets of links, None for folders and the like."""
    found: dict[str, bytes | str | None] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        else:
            found[name] = path.read_bytes() if path.is_file() else None
    return found


def run(case: Case, folder: Path, old: bytes | None, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the command says on stderr, all else being checked."""
    prepare(case, folder, old)
    monkeypatch.chdir(folder)
    before = tree(folder)
    with monkeypatch.context() as patch:
        if not case.computed:
            for module in TORCH:  # importing any of them fails, and would show as a bug
                patch.setitem(sys.modules, module, None)
        result = CliRunner().invoke(cli, shlex.split(case.command))
    said = spoken(result.stderr, folder)
    assert result.exit_code == case.code, f"{result.exit_code}\n{said}"
    assert tree(folder) == before
    assert not result.stdout or "--json" in case.command
    return said


def spoken(stderr: str, folder: Path) -> str:
    """A message as golden files hold it: without the lines on progress, which tell the time, and with paths that are
    the same everywhere."""
    lines = [line for line in stderr.splitlines() if not re.match(r"  (hashed|built) +\S+ \wB? ", line)]
    text = "\n".join(lines) + "\n"
    for path in sorted({str(folder.resolve()), str(folder)}, key=len, reverse=True):
        text = text.replace(path, "<here>")
    return re.sub(r"(the safetensors library refuses it: ).*", r"\1<its words>", text)  # they change with its version


def check_golden(name: str, said: str) -> None:
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(said, encoding="utf-8")
    assert said == path.read_text(encoding="utf-8"), f"UPDATE_GOLDEN=1 rewrites {path.name}"


def fits_a_screen(said: str) -> bool:
    lines = said.splitlines()
    return len(lines) <= MAX_LINES and all(len(line) <= MAX_LINE for line in lines)
