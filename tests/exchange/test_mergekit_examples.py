"""Configurations of mergekit as its users write them: imported, planned and built on tiny language models, and against
formulas in float64. That mergekit makes the same of them is shown by `tests/peers`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file
from support.mergekit_examples import EXAMPLES, LAYERS, MODELS, REFUSED, write_models

import mergeflow
from mergeflow.build.settings import Settings
from mergeflow.errors import RecipeError
from mergeflow.exchange.read import read

Models = dict[str, np.ndarray]
NEAR = {"float16": 6e-4, "bfloat16": 4e-3, "float32": 2e-7}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("examples")
    write_models(found)
    for name, text in EXAMPLES.items():
        (found / f"{name}.yml").write_text(text)
    return found


def built(folder: Path, name: str, *, faithful: bool) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    found = read(folder / f"{name}.yml", faithful=faithful)
    recipe = folder / f"{name}.yaml"
    recipe.write_text(found.text)
    settings = Settings(output_root=folder / f"out{faithful}", memo=folder / "memo")
    with mergeflow.load(recipe, settings=settings) as project:
        project.build()
    return load_file(folder / f"out{faithful}" / f"{name}.safetensors"), found.losses


def along(values: list[float], tensor: str) -> float:
    """A gradient at a tensor's layer; before and after the layers it is at its start."""
    if ".layers." not in tensor:
        return values[0]
    return float(np.interp(int(tensor.split(".")[2]) / (LAYERS - 1), np.linspace(0, 1, len(values)), values))


def linear(m: dict[str, Models], t: str) -> np.ndarray:
    return (m["chat"][t] + 0.3 * m["code"][t] + 0.5 * m["maths"][t]) / 1.8


def slerp(m: dict[str, Models], t: str) -> np.ndarray:
    share = along([0, 0.5, 0.3, 0.7, 1], t) if "self_attn" in t else 0.5
    share = along([1, 0.5, 0.7, 0.3, 0], t) if "mlp" in t else share
    a, b = m["base"][t], m["chat"][t]
    cosine = (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())
    if abs(cosine) > 0.9995:
        return (1 - share) * a + share * b
    angle = np.arccos(cosine)
    return (np.sin((1 - share) * angle) * a + np.sin(share * angle) * b) / np.sin(angle)


def filters(m: dict[str, Models], t: str) -> np.ndarray:
    weight = 0.9 if "q_proj" in t else along([0.2, 0.6], t) if "mlp" in t else 0.4
    return m["base"][t] + 0.9 * (weight * (m["chat"][t] - m["base"][t]) + 0.25 * (m["code"][t] - m["base"][t]))


def negative(m: dict[str, Models], t: str) -> np.ndarray:
    return m["chat"][t] - 0.4 * (m["code"][t] - m["base"][t])


def ties(m: dict[str, Models], t: str) -> np.ndarray:
    base, parts, weights = m["base"][t], [], []
    settings = (
        ("chat", along([1, 0.7, 0.1], t), 1.0),
        ("code", 0.5, along([0, 0.3, 0.7, 1], t)),
        ("maths", 0.33, 0.5 if "mlp" in t else 0.2),
    )
    for name, density, weight in settings:
        delta = m[name][t] - base
        least = np.sort(np.abs(delta).ravel())[-max(1, int(density * delta.size))]
        parts.append(np.where(np.abs(delta) >= least, delta, 0) * weight)
        weights.append(weight)
    sign = np.where(sum(parts) >= 0, 1, -1)
    agree = [(np.sign(x) == sign) for x in parts]
    over = sum(w * yes for w, yes in zip(weights, agree, strict=True))
    found = base + sum(x * yes for x, yes in zip(parts, agree, strict=True)) / np.where(over == 0, 1, over)
    return np.where(sum(parts) == 0, np.nan, found)  # no sign is elected: mergekit takes the positive ones, others none


def documents(m: dict[str, Models], t: str) -> np.ndarray:
    first = 0.6 * m["chat"][t] + 0.4 * m["code"][t]
    return m["base"][t] + 0.7 * (first - m["base"][t]) + 0.5 * (m["maths"][t] - m["base"][t])


FORMULAS: dict[str, Callable[[dict[str, Models], str], np.ndarray]] = {
    "linear": linear, "gradient-slerp": slerp, "filters": filters, "negative": negative, "ties": ties,
    "documents": documents,
}  # fmt: skip


@pytest.mark.parametrize("faithful", [False, True])
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example(folder: Path, name: str, faithful: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    found, losses = built(folder, name, faithful=faithful)
    models = {
        x: {k: v.astype(np.float64) for k, v in load_arrays(folder / x / "model.safetensors").items()} for x in MODELS
    }
    assert found.keys() == models["base"].keys()
    dtype = next(iter(found.values())).dtype
    assert f"{dtype}".removeprefix("torch.") in EXAMPLES[name]
    if name in FORMULAS:
        for tensor, t in found.items():
            wanted = FORMULAS[name](models, tensor)
            assert np.nanmax(np.abs(t.double().numpy() - wanted)) <= NEAR[f"{dtype}".removeprefix("torch.")], tensor
    reduced = name in ("gradient-slerp", "model_stock", "fusion")
    assert any("cannot be promised" in loss for loss in losses) is (faithful and reduced)
    assert any("random masks" in loss for loss in losses) is (name == "dare_ties")


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    text, why = REFUSED[name]
    (tmp_path / f"{name}.yml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        read(tmp_path / f"{name}.yml")
    assert why in str(caught.value)
    assert caught.value.hint == "mergekit itself does that"
    assert caught.value.place is not None
    assert caught.value.place.line
