"""Methods in recipes: what composes, cancels and is left out; keys; and the same bytes whatever the machine does."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from method_cases import doubles, family, results
from method_oracles import mask, trim
from support.builds import HEAD, build, made, made_elsewhere, plan, project, recipe, sha256, write_models
from support.checkpoints import Model, metadata, numbers, read, related, weights, write

from mergeflow.cli.explain import preimage
from mergeflow.errors import RecipeError
from mergeflow.methods import sparse
from mergeflow.plan import place
from mergeflow.plan.program import COPY, ZERO

TIES = "ties(o, [a, b, c], density=0.3)"
LONG = "o + sum_sign([ties_trim(c - o, 0.3), ties_trim(a - o, 0.3), ties_trim(b - o, 0.3)])"


@pytest.fixture(scope="module")
def models() -> dict[str, Model]:
    return family("F16")


def test_the_definition_is_the_method(tmp_path: Path, models: dict[str, Model]) -> None:
    """Its parts, the models in any order, steps in between: one file."""
    made = []
    for i, (expression, steps) in enumerate([
        (TIES, ""), (LONG, ""), ("ties(o, [c, b @ 1, a], 0.3)", ""),
        ("o + all", ("steps:\n  half: ties_trim(a - o, 0.3)\n"
                     "  all: sum_sign([ties_trim(b - o, 0.3), half, ties_trim(c - o, 0.3)])\n")),
        ("x", "steps: { x: { method: ties, base: o, models: [a, b, c], density: 0.3, elect: sum } }\n"),
    ]):  # fmt: skip
        folder = tmp_path / str(i)
        folder.mkdir()
        write_models(folder, models)
        build(folder, recipe(expression, "o a b c ", more=steps))
        made.append(sha256(folder / "mix.safetensors"))
    assert len(set(made)) == 1


@pytest.mark.parametrize(
    "expression",
    [f"{TIES} - ({LONG}) + a", f"a + ({TIES} - o)*0.5 - ({LONG} - o)*0.5", "a + dare_drop(b - b, 0.5)",
     "a + sum_sign([ties_trim(b - b, 0.2), (c - c) @ 2])", "slerp(a, a, 0.3)"],
)  # fmt: skip
def test_equal_results_cancel(tmp_path: Path, models: dict[str, Model], expression: str) -> None:
    assert results(tmp_path, expression, models) == models["a"]
    (output,) = plan(tmp_path, recipe(expression, "o a b c ")).outputs
    assert {work.program for work in output.works} == {COPY}


def test_a_delta_of_equals_is_zero(tmp_path: Path, models: dict[str, Model]) -> None:
    write_models(tmp_path, models)
    (output,) = plan(tmp_path, recipe("ties_trim(a - o, 0.2)", "o a ")).outputs
    assert next(w.program for w in output.works if w.name == "same") == ZERO


def test_differences_from_files_and_rounding(tmp_path: Path, models: dict[str, Model]) -> None:
    write_models(tmp_path, models)
    text = recipe("a - o", "o a ", dtype="float32", out="delta")
    build(tmp_path, text)
    steps = "steps: { d: { expr: 'dare_drop(delta, 0.5)', round: float16 } }\n"
    build(tmp_path, recipe("o + ties_trim(d, 0.5)", "o delta ", more=steps, dtype="float32"))
    found, raw = read(tmp_path / "mix.safetensors"), read(tmp_path / "delta.safetensors")
    for name, t in raw.items():
        if t.code == "F32":
            delta = doubles(t)
            kept = mask(delta.size, Fraction(1, 2), name).reshape(delta.shape)
            rounded = np.where(kept, delta * 2, 0).astype(np.float16).astype(np.float64)
            wanted = doubles(models["o"][name]) + trim(rounded, Fraction(1, 2))
            assert np.array_equal(doubles(found[name]), wanted.astype(np.float32))


def test_missing_tensors(tmp_path: Path) -> None:
    models = family("F32")
    del models["a"]["row"], models["b"]["row"], models["a"]["conv"]
    found = results(tmp_path, TIES, models)
    without = {name: dict(model) for name, model in models.items()}
    assert results(tmp_path, "ties(o, [c], density=0.3)", without)["row"] == found["row"]
    assert results(tmp_path, "ties(o, [b, c], density=0.3)", without)["conv"] == found["conv"]
    del models["c"]["row"]
    assert results(tmp_path, TIES, models)["row"] == models["o"]["row"]
    assert results(tmp_path, "slerp(o, a, 0.3)", models)["row"] == models["o"]["row"]
    assert results(tmp_path, "dare(o, [a], 0.3)", models)["row"] == models["o"]["row"]


def test_a_wide_first_convolution(tmp_path: Path) -> None:
    """The method runs on the channels that all have."""
    rng = np.random.default_rng(8)
    name = "model.diffusion_model.input_blocks.0.0.weight"
    wide, narrow = weights(rng, "F16", (8, 9, 3, 3)), weights(rng, "F16", (8, 4, 3, 3))
    others: dict[str, Model] = {n: {name: related(rng, narrow)} for n in "ab"}
    found = results(tmp_path, "i + ties_trim(a - b, 0.3)", {"i": {name: wide}, **others}, "float32")
    delta = doubles(others["a"][name]) - doubles(others["b"][name])
    wanted = doubles(wide)
    wanted[:, :4] += trim(delta, Fraction(3, 10))
    assert np.array_equal(doubles(found[name]), wanted.astype(np.float32))
    with pytest.raises(RecipeError, match="channels"):
        results(tmp_path, "a + ties_trim(i - b, 0.3)", {"i": {name: wide}, **others})


def test_params_by_tensor(tmp_path: Path) -> None:
    models = family("F32")
    more = "params: { d: { default: 0.2, conv: 0.7 } }\n"
    found = results(tmp_path, "ties(o, [a, b], density=d)", models, more=more)
    assert found["conv"] == results(tmp_path, "ties(o, [a, b], density=0.7)", models)["conv"]
    assert found["row"] == results(tmp_path, "ties(o, [a, b], density=0.2)", models)["row"]
    with pytest.raises(RecipeError, match="density is a number from 0 to 1, not 2"):
        results(tmp_path, "ties(o, [a, b], density=d)", models, more=more.replace("0.7", "2"))


# -- keys and what a file says ---------------------------------------------------------------------------------------


def keys(folder: Path, text: str) -> dict[str, str]:
    (output,) = plan(folder, text).outputs
    return {work.name: work.key for work in output.works}


def test_what_is_in_a_key(tmp_path: Path, models: dict[str, Model]) -> None:
    write_models(tmp_path, models)
    text = recipe("o + dare_drop(ties_trim(a - o, 0.2), 0.5)", "o a ")
    with project(tmp_path, text) as p:
        planned = p.plan()
        said, key = preimage(planned, planned.outputs[0], "row")
    assert key == keys(tmp_path, text)["row"]
    lines = said.splitlines()
    assert lines[:4] == ["mergeflow tensor key", "numerics 1", "compute float32", "out float16"]
    assert len(lines) == 7
    before = keys(tmp_path, text)
    unchanged = {"same", "ids", "none"}
    for other in ("options: { seed: 1 }\n", ""):
        changed = text.replace("0.2", "0.25") if not other else text + other
        after = keys(tmp_path, changed)
        assert {name for name in before if before[name] == after[name]} == unchanged
    seedless = recipe("ties(o, [a], density=0.2)", "o a ")
    assert keys(tmp_path, seedless) == keys(tmp_path, seedless + "options: { seed: 1 }\n")


@pytest.mark.parametrize("call", ["dare(o, [a], density=0.2{})", "della_linear(o, [a], density=0.5, epsilon=0.2{})"])
def test_a_seed_is_one_wherever_it_is_said(tmp_path: Path, models: dict[str, Model], call: str) -> None:
    """The masks are the same, so the keys are, and what the file says of itself."""
    write_models(tmp_path, models)
    said = recipe(call.format(", seed=5"), "o a ")
    option = recipe(call.format(""), "o a ") + "options: { seed: 5 }\n"
    assert keys(tmp_path, said) == keys(tmp_path, option) != keys(tmp_path, said.replace("seed=5", "seed=6"))
    assert plan(tmp_path, said).outputs[0].key == plan(tmp_path, option).outputs[0].key
    assert plan(tmp_path, said + "options: { seed: 9 }\n").outputs[0].key == plan(tmp_path, said).outputs[0].key


def test_why_it_is_built_again(tmp_path: Path, models: dict[str, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    write_models(tmp_path, models)
    text = recipe("dare(o, [a], density=0.2)", "o a ")
    build(tmp_path, text)
    assert plan(tmp_path, text).outputs[0].reason == "it is up to date"
    assert plan(tmp_path, text + "options: { seed: 5 }\n").outputs[0].reason == "the seed changed: 0 → 5"
    newer = replace(sparse.DROP, kernel=replace(sparse.DROP.kernel, version=3))
    monkeypatch.setattr(sparse, "DROP", newer)
    assert plan(tmp_path, text).outputs[0].reason == "the method dare_drop changed: version 2 → version 3"


def test_what_a_file_says_of_itself(tmp_path: Path, models: dict[str, Model]) -> None:
    results(tmp_path, "ties(o, [a, b @ 0.5])", models)
    graph = json.loads(metadata(tmp_path / "mix.safetensors")["mergeflow"])
    assert graph["schema"] == "mergeflow/graph/2"
    calls = [form for form in graph["forms"] if "apply" in form]
    assert [c["apply"] for c in calls] == ["ties_trim", "ties_trim", "sum_sign"]
    assert calls[0]["density"] == "1/5"
    assert [weight for weight, _ in calls[-1]["to"]] == ["1", "1/2"]
    assert calls[-1]["elect"] == "sum"
    terms = graph["forms"][graph["form"]]["terms"]
    assert f"apply {graph['forms'].index(calls[-1])}" in [name for _, name in terms]


# -- one sequence of bytes -------------------------------------------------------------------------------------------

OUTPUTS = ["ties", "dare", "l1", "slerp", "lerp", "f32", "nested"]
ALL = (
    HEAD
    + """sources: { o: models/o.safetensors, a: models/a.safetensors, b: models/b.safetensors }
options: { nonfinite: allow }
outputs:
  ties.safetensors: ties(o, [a, b @ 0.3], density=0.2)
  dare.safetensors: dare(o, [a, b], density=0.3)
  l1.safetensors: dare(o, [a, b], density=0.3, rescale=l1)
  slerp.safetensors: slerp(a, b, 0.3)
  lerp.safetensors: slerp(o, b, 0.7, norm=lerp)
  f32.safetensors: { from: "ties(o, [a, b], elect=count)", dtype: float32 }
  nested.safetensors: { from: "o + match_l1(ties_trim(dare_drop(a - o, 0.5), 0.4), b - o)", dtype: bfloat16 }
"""
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(13)
    base: Model = {"large": weights(rng, "F16", (1_500_001,)), "bf16": weights(rng, "BF16", (70_003,)),
                   "f32": weights(rng, "F32", (300, 401)), "f64": weights(rng, "F64", (9_999,)),
                   "e4m3": weights(rng, "F8_E4M3", (501,)), "one": weights(rng, "F16", ()),
                   "bad": numbers("F16", [float("nan"), float("inf"), 1, -2, 3, -float("inf")] * 9)}  # fmt: skip
    where = tmp_path_factory.mktemp("same") / "models"
    write(where / "o.safetensors", base)
    for name in "ab":
        write(where / f"{name}.safetensors", {k: related(rng, t) if k != "bad" else numbers(
            "F16", rng.normal(size=54)) for k, t in base.items()})  # fmt: skip
    return where


@pytest.fixture(scope="module")
def reference(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return made(tmp_path_factory.mktemp("reference"), folder, ALL, jobs=1)


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [2, 8])
def test_threads(tmp_path: Path, folder: Path, reference: dict[str, str], jobs: int) -> None:
    assert made(tmp_path, folder, ALL, jobs=jobs) == reference


@pytest.mark.parametrize("keep", [0, 5_000_000, 7_000_000])
def test_operands_kept_or_read_again(
    tmp_path: Path, folder: Path, reference: dict[str, str], monkeypatch: pytest.MonkeyPatch, keep: int
) -> None:
    monkeypatch.setattr(place, "KEEP", keep)
    assert made(tmp_path, folder, ALL, jobs=2) == reference


def test_the_order_of_tensors_and_sizes_of_units(
    tmp_path: Path, folder: Path, reference: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, "TILE", 5000)
    monkeypatch.setattr(place, "UNIT", 1 << 20)
    shuffled = tmp_path / "shuffled"
    for name in "oab":
        write(shuffled / f"{name}.safetensors", dict(reversed(read(folder / f"{name}.safetensors").items())))
    assert made(tmp_path / "x", shuffled, ALL, jobs=2) == reference


def test_little_memory(tmp_path: Path, folder: Path, reference: dict[str, str]) -> None:
    least = 270_000_000
    assert made(tmp_path, folder, ALL, memory=least) == reference


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [{"ATEN_CPU_CAPABILITY": "default", "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512_SKX"},
     {"ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "1"}],
    ids=["default", "avx2"],
)  # fmt: skip
def test_vector_units(tmp_path: Path, folder: Path, reference: dict[str, str], environment: dict[str, str]) -> None:
    assert made_elsewhere(tmp_path, folder, ALL, **environment) == reference
