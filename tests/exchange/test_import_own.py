"""Recipe → output's metadata → recipe is lossless: what is imported from an output builds the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from safetensors.torch import load_file
from support.tiny_models import SD1_BLOCKS, write_model

import mergeflow
from mergeflow.build.settings import Settings
from mergeflow.errors import IntegrityError, MissingInput, RecipeError
from mergeflow.exchange.read import read
from mergeflow.recipe import loads

RECIPES = {
    "sum": "a + (b - c) * 0.3",
    "share": "a * 1/3 + b * 2/3",
    "soup": "average(a, b, c)",
    "copy": "b",
    "difference": "b - c",
    "free": "linear([a @ 0.7, b @ 0.4], normalize=false)",
    "scaled": "scale(a, 1.05)",
    "half": "{ from: a*0.5 + b*0.5, dtype: bfloat16 }",
    "like": "{ from: a + (b - c), like: c }",
    "only": "{ from: a*0.5 + b*0.5, metadata: { modelspec.title: 'a title, with \"quotes\"', note: 'two\\nlines' } }",
    "missing": "a*0.5 + few*0.5",
    "profile": "weighted_sum(a, b, k)",
    "rounded": "r + (c - a) * 0.5",
    "ties": "ties(a, [b, c @ 0.5], density=0.3)",
    "ties-profile": "ties(a, [b, c], density=d)",
    "dare": "dare(a, [b, c], density=0.5, scale=0.7)",
    "slerp": "slerp(a, b, 0.3, norm=lerp)",
    "around": "a + sum_sign([ties_trim(b - a, 0.2), c - a]) * 0.5 + (b - r) * 0.1",
    "stock": "model_stock(a, b, c)",
    "median": "median(a, b, c)",
    "perpendicular": "add_perpendicular(a, b, c, 0.7)",
    "theirs": "a + mergekit_elect([mergekit_trim(s, 0.3, gamma=0.05) @ 0.3, b - a], dtype=float16, scale=0.7)",
    "theirs-linear": "mergekit_linear([a @ 0.3, b], dtype=float16, normalize=false)",
    "theirs-mean": "a + mergekit_mean([s @ 0.3, mergekit_trim(b - a, 0.5)], dtype=float16)",
    "theirs-ram": "a + mergekit_ram_plus([s, c - a], dtype=float16, epsilon=0.5)",
    "theirs-nearswap": "mergekit_nearswap(a, b, k, dtype=float16)",
}
TEXT = """mergeflow: 1
sources: { a: a.safetensors, b: b.safetensors, c: c.safetensors, few: few.safetensors }
params:
  k: { default: 0.3, "*attn*": 0.5, strange.name: 0, "/mlp$/": 1 }
  d: { default: 0.3, "*attn*": 0.6 }
steps:
  r: { expr: a*0.25 + b*0.75, round: float16 }
  s: { expr: c - a, round: float16 }
outputs:
"""
NAMES = ("strange.name", "x.attn.0", "x.attn.1", "mlp", "深い層/重み")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, name in enumerate(("a", "b", "c", "few")):
        random = np.random.default_rng(seed)
        tensors = {n: random.standard_normal((4, 6)).astype(np.float16) for n in NAMES[: 3 if name == "few" else None]}
        save_file({**tensors, "steps": np.array([seed], np.int64)}, tmp_path / f"{name}.safetensors")
    return tmp_path


def build(folder: Path, text: str, out: str) -> None:
    settings = Settings(output_root=folder / out, memo=folder / "memo")
    with mergeflow.Project(loads(text, folder=folder), settings) as project:
        project.build()


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "np") as file:
        return dict(file.metadata())


@pytest.mark.parametrize(
    ("name", "suffix"),
    [*((name, "safetensors") for name in RECIPES), ("sum", "ckpt"), ("ties", "ckpt"), ("like", "ckpt")],
)
def test_lossless(folder: Path, name: str, suffix: str) -> None:
    build(folder, f"{TEXT}  mix.{suffix}: {RECIPES[name]}\noptions: {{ seed: 5 }}\n", "first")
    made = folder / "first" / f"mix.{suffix}"
    found = read(made)
    build(folder, found.text, "second")
    again = folder / "second" / f"mix.{suffix}"
    if suffix == "safetensors":
        first, second = metadata(made), metadata(again)
        assert json.loads(second["mergeflow"]) == json.loads(first["mergeflow"])
        assert second == first
    assert again.read_bytes() == made.read_bytes()


def test_the_policy_of_a1111(folder: Path) -> None:
    steps = "steps: { s: { expr: a + (b - c) * 0.3, round: float16 } }"
    sources = "sources: { a: a.safetensors, b: b.safetensors, c: c.safetensors }"
    text = f"mergeflow: 1\n{sources}\n{steps}\noutputs: {{ mix.safetensors: {{ from: 'weighted_sum(s, b, 0.45)', dtype: float16 }} }}\n"  # noqa: E501
    build(folder, text + "options: { policy: a1111 }\n", "first")
    found = read(folder / "first" / "mix.safetensors")
    build(folder, found.text, "second")
    assert (folder / "second/mix.safetensors").read_bytes() == (folder / "first/mix.safetensors").read_bytes()


def test_sources_are_found_by_their_models(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere, under other names, in another container: it is the tensors that count."""
    build(folder, f"{TEXT}  mix.safetensors: {RECIPES['sum']}\n", "first")
    found = read(folder / "first" / "mix.safetensors").text
    models, empty = folder / "models" / "old", folder / "empty"
    models.mkdir(parents=True)
    empty.mkdir()
    for name in "abc":
        (folder / f"{name}.safetensors").rename(models / f"{name} (1).safetensors")
    torch.save(load_file(models / "b (1).safetensors"), models / "renamed.ckpt")
    (models / "b (1).safetensors").unlink()
    monkeypatch.setenv("MERGEFLOW_MODELS", str(folder / "models"))
    settings = Settings(output_root=folder / "second", memo=folder / "memo")
    with mergeflow.Project(loads(found, folder=empty), settings) as project:
        project.build()
    assert (folder / "second/mix.safetensors").read_bytes() == (folder / "first/mix.safetensors").read_bytes()


def test_a_source_that_is_nowhere_is_named_by_its_digest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(folder, f"{TEXT}  mix.safetensors: {RECIPES['sum']}\n", "first")
    found = read(folder / "first" / "mix.safetensors").text
    monkeypatch.setenv("MERGEFLOW_MODELS", str(folder / "nowhere"))
    (folder / "b.safetensors").unlink()
    with pytest.raises(
        MissingInput, match=r"x_[0-9a-f]{10} is not here, and no file .* has the digest b3:[0-9a-f]{12}…"
    ):
        build(folder, found, "second")


def test_a_file_with_another_model_is_refused(folder: Path) -> None:
    """A path that is there is taken, and what it holds is compared."""
    source = f"{{ path: a.safetensors, hash: 'b3:{'0' * 64}' }}"
    text = f"mergeflow: 1\nsources: {{ a: {source} }}\noutputs: {{ mix.safetensors: a }}\n"
    with pytest.raises(IntegrityError, match="its model's digest is b3:"):
        build(folder, text, "first")


def test_an_embedded_recipe_is_its_text(folder: Path) -> None:
    text = f"{TEXT}  mix.safetensors: {{ from: a + (b - c) * 0.3, embed: recipe }}\n"
    build(folder, text, "first")
    assert read(folder / "first" / "mix.safetensors").text == text


@pytest.mark.parametrize(
    ("graph", "why"),
    [
        ("{}", "damaged"),
        ("[" * 100_000, "damaged"),
        ('{"schema":"mergeflow/graph/9"}', "does not read"),
        ('{"schema":"mergeflow/graph/1","primary":"b3:DIGEST","forms":[],"form":3}', "damaged"),
        ('{"schema":"mergeflow/graph/1","primary":"b3:DIGEST","forms":[{"terms":[["1","b3:DIGEST"]],"over":"0"}],"form":0}', "damaged"),  # noqa: E501
        ('{"schema":"mergeflow/graph/2","primary":"b3:DIGEST","forms":[{"apply":"no_such","version":1,"to":[]},{"terms":[["1","apply 0"]],"over":"1"}],"form":1}', "no_such"),  # noqa: E501
    ],
)  # fmt: skip
def test_a_damaged_graph_is_an_error(tmp_path: Path, graph: str, why: str) -> None:
    save_file(
        {"a": np.zeros(2, np.float32)}, tmp_path / "mix.safetensors", {"mergeflow": graph.replace("DIGEST", "0" * 64)}
    )
    with pytest.raises(RecipeError, match=why):
        read(tmp_path / "mix.safetensors")


def test_block_weights_come_back_by_block(tmp_path: Path) -> None:
    """As a list where most blocks differ; a tensor that is not as its block has a line of its own."""
    for name in "ab":
        write_model(tmp_path / f"{name}.safetensors", SD1_BLOCKS, seed=name)
    text = """mergeflow: 1
sources: { a: a.safetensors, b: b.safetensors }
params: { k: { preset: GRAD_V, BASE: 0.3, "*attn1*": 0.9 } }
outputs: { mix.safetensors: "weighted_sum(a, b, k)" }
"""
    build(tmp_path, text, "first")
    found = read(tmp_path / "first/mix.safetensors")
    recipe = loads(found.text)
    listed = recipe.params["k"].listed
    assert listed is not None
    assert listed.mbw is not None
    assert listed.mbw.startswith("1,0.9166666667,")
    assert sum("attn1" in entry.selector for entry in recipe.params["k"].profile) == 3
    build(tmp_path, found.text, "second")
    assert (tmp_path / "second/mix.safetensors").read_bytes() == (tmp_path / "first/mix.safetensors").read_bytes()
