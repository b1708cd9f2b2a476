"""Outputs that are written together need room together: which are made, which are not, and what is said of them."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.builds import HEAD, build, parts
from support.checkpoints import weights, write
from support.commands import run

from mergeflow.errors import ResourceError

FREE = "mergeflow.formats.parts._free_space"
SIZE = 404_096  # of each output: a page of header, 100,000 float32
NAMES = ("x", "y", "z")
RECIPE = (
    HEAD
    + "sources: { a: a.safetensors, b: b.safetensors }\noutputs:\n"
    + "".join(f"  {name}.safetensors: a*0.{i} + b*(1 - 0.{i})\n" for i, name in enumerate(NAMES, 1))
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, name in enumerate("ab"):
        write(tmp_path / f"{name}.safetensors", {"w": weights(np.random.default_rng(seed), "F32", (100_000,))})
    time.sleep(0.03)
    return tmp_path


def there(folder: Path) -> set[str]:
    return {name for name in NAMES if (folder / f"{name}.safetensors").exists()}


def test_room_for_each_alone_is_not_enough(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FREE, lambda folder: 2 * SIZE)
    with pytest.raises(ResourceError, match=r"z\.safetensors: needs 404 KB, .* 808 KB free, 808 KB of it for what is"):
        build(folder, RECIPE)
    assert not there(folder)
    assert not parts(folder)


@pytest.mark.parametrize(("free", "made"), [(3 * SIZE, "xyz"), (3 * SIZE - 1, "xy"), (SIZE, "x"), (SIZE - 1, "")])
def test_those_that_fit_are_made(folder: Path, monkeypatch: pytest.MonkeyPatch, free: int, made: str) -> None:
    monkeypatch.setattr(FREE, lambda folder: free)
    result = build(folder, RECIPE, keep_going=True)
    assert there(folder) == set(made)
    for output in result.outputs:
        name = Path(output.path).stem
        assert output.built is (name in made)
        if name not in made:
            assert isinstance(output.error, ResourceError)
            assert output.error.message.startswith(f"{output.target}: needs 404 KB, the disk has")
    for i, name in enumerate(NAMES, 1):
        if name in made:
            a, b = (load_file(folder / f"{source}.safetensors")["w"].astype(np.float64) for source in "ab")
            right = (a * i + b * (10 - i)) / 10
            assert np.array_equal(load_file(folder / f"{name}.safetensors")["w"], right.astype(np.float32))
    assert not parts(folder)


def test_what_is_replaced_frees_nothing_yet(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old files go when the new ones are complete, and all are complete at the same time."""
    build(folder, RECIPE)
    old = {name: (folder / f"{name}.safetensors").read_bytes() for name in NAMES}
    monkeypatch.setattr(FREE, lambda folder: SIZE)
    result = build(folder, RECIPE.replace("0.", "0.5"), keep_going=True)
    assert [output.built for output in result.outputs] == [True, False, False]
    assert [name for name in NAMES if (folder / f"{name}.safetensors").read_bytes() == old[name]] == ["y", "z"]


def test_the_line_names_the_file_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FREE, lambda folder: SIZE)
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    monkeypatch.chdir(folder)
    result = run("build", "recipe.yaml", "-k", exit_code=7)
    lines = [line for line in result.stderr.splitlines() if "failed:" in line]
    assert [line.count("y.safetensors") + line.count("z.safetensors") for line in lines] == [1, 1]
    assert "404 KB of it for what is written together with it" in lines[0]
