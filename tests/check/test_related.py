"""The warning that models share no training history: from samples, without opening a tensor."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mergeflow.build.api import load
from mergeflow.formats.many import ReadFiles
from mergeflow.formats.scan import SAMPLE
from mergeflow.plan.related import cosine
from mergeflow.sources.identify import SAMPLE_BYTES

NOTE = "share no training history"


def recipe(folder: Path, sources: dict[str, Path], expression: str, extra: str = "") -> Path:
    lines = [f"  {name}: {{ path: '{path}'{extra if name == 'x' else ''} }}" for name, path in sources.items()]
    text = "\n".join(["mergeflow: 1", "sources:", *lines, "outputs:", f"  out.safetensors: {expression}", ""])
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    return folder / "recipe.yaml"


def notes(path: Path) -> list[str]:
    with load(path) as project:
        (output,) = project.plan().outputs
        return [warning for warning in output.warnings if NOTE in warning]


def test_the_samples_are_as_long_as_the_scan_makes_them() -> None:
    assert SAMPLE * np.dtype(np.float32).itemsize == SAMPLE_BYTES


def test_relatives_are_not_warned_of(sd15: dict[str, Path], tmp_path: Path) -> None:
    sources = {name.lower(): sd15[name] for name in "ABC"}
    assert notes(recipe(tmp_path, sources, "a + (b - c) * 0.3")) == []


def test_strangers_are(sd15: dict[str, Path], tmp_path: Path) -> None:
    sources = {"a": sd15["A"], "b": sd15["B"], "x": sd15["stranger"]}
    (line,) = notes(recipe(tmp_path, sources, "a * 0.4 + x * 0.4 + b * 0.2"))
    assert line.startswith("x and a share no training history (the cosine of their weights is 0.0")
    assert line.endswith("the merge will be noise")


def test_no_tensor_is_opened(sd15: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = recipe(tmp_path, {"a": sd15["A"], "x": sd15["stranger"]}, "a * 0.5 + x * 0.5")
    with load(path) as project:
        facts = [project.facts(i) for i in (0, 1)]
    monkeypatch.setattr(ReadFiles, "read_into", None)
    began = time.perf_counter()
    assert abs(cosine(*facts)) < 0.05
    assert time.perf_counter() - began < 0.2  # usually 2 ms
    assert cosine(facts[0], facts[0]) == pytest.approx(1)


def test_deltas_and_donors_are_not_compared(sd15: dict[str, Path], tmp_path: Path) -> None:
    sources = {"a": sd15["A"], "x": sd15["stranger"]}
    assert notes(recipe(tmp_path, sources, "a + x * 0.5", ", kind: delta")) == []
    path = recipe(tmp_path, sources, "baked")
    path.write_text(path.read_text() + "steps: { baked: { expr: a, replace: { vae: x } } }\n")
    assert notes(path) == []


def test_statistics_of_models_are_not_compared_with_them(sd15: dict[str, Path], tmp_path: Path) -> None:
    sources = {"a": sd15["A"], "b": sd15["B"], "x": sd15["stranger"]}
    assert notes(recipe(tmp_path, sources, "fisher([a, b], information=[x, x]) * 0.5 + a * 0.5")) == []
    (line,) = notes(recipe(tmp_path, sources, "fisher([a, x], information=[b, b])"))
    assert line.startswith("x and a ")


def test_what_mergeflow_wrote_has_no_samples(sd15: dict[str, Path], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = recipe(tmp_path, {"a": sd15["A"], "x": sd15["stranger"]}, "a * 0.5 + x * 0.5")
    with load(path) as project:
        project.build()
    again = tmp_path / "again"
    again.mkdir()
    monkeypatch.chdir(again)
    sources = {"a": sd15["A"], "x": tmp_path / "out.safetensors"}
    assert notes(recipe(again, sources, "a * 0.5 + x * 0.5")) == []


def test_few_values_prove_nothing(tmp_path: Path) -> None:
    for seed, name in enumerate("ax"):
        random = np.random.default_rng(seed)
        save_file({f"w{i}": random.standard_normal((8, 8)) for i in range(7)}, tmp_path / name)
    sources = {"a": tmp_path / "a", "x": tmp_path / "x"}
    assert notes(recipe(tmp_path, sources, "a * 0.5 + x * 0.5")) == []


def test_names_of_other_tools_are_found(sd15: dict[str, Path], tmp_path: Path) -> None:
    text = "cond_stage_model.transformer.text_model."
    renamed = {name.replace(text, text.removesuffix("text_model.")): t for name, t in load_file(sd15["B"]).items()}
    save_file(renamed, tmp_path / "nai.safetensors")
    path = recipe(tmp_path, {"a": sd15["A"], "x": tmp_path / "nai.safetensors"}, "a * 0.5 + x * 0.5")
    with load(path) as project:
        assert cosine(project.facts(0), project.facts(1)) > 0.99
