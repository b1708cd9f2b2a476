"""Breadcrumbs, DELLA and what is made of them and of DARE, against the papers; and one file for one definition."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from method_cases import SHAPES, close, doubles, family, results
from method_oracles import band, dared, elect, thinned
from support.builds import made, made_elsewhere, project, recipe
from support.checkpoints import Model, numbers, related, weights, write
from support.exact import FORMATS

from mergeflow.errors import RecipeError
from mergeflow.plan import place

Array = np.ndarray


@pytest.mark.parametrize("code", FORMATS)
@pytest.mark.parametrize(("density", "gamma"), [("0.5", "0.01"), ("0.3", "0.2"), ("1", "0"), ("0", "0"), ("0.9", "0.5"),
                                                ("0.01", "0.99"), ("1", "1")])  # fmt: skip
def test_breadcrumbs_trim(tmp_path: Path, code: str, density: str, gamma: str) -> None:
    models = family(code, "a")
    found = results(tmp_path, f"breadcrumbs_trim(a - o, {density}, {gamma})", models, "float64")
    for name in SHAPES:
        delta = doubles(models["a"][name]) - doubles(models["o"][name])
        assert np.array_equal(doubles(found[name]), band(delta, Fraction(density), Fraction(gamma))), name


def given(folder: Path, call: str, *values: float) -> list[float]:
    models: dict[str, Model] = {"a": {"x": numbers("F32", values)}, "o": {"x": numbers("F32", [0] * len(values))}}
    return doubles(results(folder, call, models, more="options: { nonfinite: allow }\n")["x"]).tolist()


def test_breadcrumbs_at_its_edges(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    call = "breadcrumbs_trim(a - o, 0.2, 0.2)"
    assert given(tmp_path, call, 1, -1, 1, 1, -1, 1, 1, 1, 1, 1) == [1, -1, 1, 1, -1, 1, 1, 1, 1, 1]
    assert given(tmp_path, call, 9, 9, 5, -5, 4, 3, 3, 0, 0, 0) == [0, 0, 5, -5, 0, 0, 0, 0, 0, 0]
    assert given(tmp_path, call, nan, -inf, 5, -4, 3, 2, 1, 0, 0, 0) == [0, 0, 5, -4, 0, 0, 0, 0, 0, 0]
    assert given(tmp_path, call, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0) == [0] * 10
    found = given(tmp_path, "breadcrumbs_trim(a - o, 0.5, 0)", nan, 1, inf, 0)
    np.testing.assert_array_equal(found, [nan, 0, inf, 0])


@pytest.mark.parametrize("rescale", [False, True])
def test_breadcrumbs_over_models(tmp_path: Path, rescale: bool) -> None:
    models = family("F16", "ab")
    options = f"0.4, gamma=0.1, scale=0.7, rescale={str(rescale).lower()}"
    linear = results(tmp_path, f"breadcrumbs(o, [a, b @ 0.5], {options})", models, "float32")
    voted = results(tmp_path, f"breadcrumbs_ties(o, [a, b @ 0.5], {options}, normalize=false)", models, "float32")
    mean = results(tmp_path, f"breadcrumbs_ties(o, [a, b @ 0.5], {options})", models, "float32")
    for name in SHAPES:
        o = doubles(models["o"][name])
        kept = []
        for x in "ab":
            delta = doubles(models[x][name]) - o
            part = band(delta, Fraction(2, 5), Fraction(1, 10))
            under = np.abs(part).sum()
            kept.append(part * (np.abs(delta).sum() / under if rescale and under else 1.0))
        close(linear[name], o + 0.7 * (kept[0] + 0.5 * kept[1]), 2)
        close(voted[name], o + 0.7 * elect(kept, [1, 0.5], mean=False), 2)
        close(mean[name], o + 0.7 * elect(kept, [1, 0.5]), 2)


# -- DELLA ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", FORMATS)
@pytest.mark.parametrize(("density", "epsilon"), [(0.5, 0.4), (0.3, 0.0), (1.0, 0.0), (0.75, 0.5)])
@pytest.mark.parametrize("rescale", ["expected", "none", "l1"])
def test_della_drop(tmp_path: Path, code: str, density: float, epsilon: float, rescale: str) -> None:
    models = family(code, "a")
    call = f"della_drop(a - o, {density}, {epsilon}, rescale={rescale}, seed=7, stream=2)"
    found = results(tmp_path, call, models, "float32")
    for name in SHAPES:
        delta = doubles(models["a"][name]) - doubles(models["o"][name])
        close(found[name], thinned(delta, density, epsilon, rescale, name, seed=7, stream=2), 2)


def test_larger_values_are_kept_more_often(tmp_path: Path) -> None:
    n = 100_000
    o: Model = {"w": numbers("F32", np.zeros(n))}
    a: Model = {"w": numbers("F32", np.arange(1, n + 1))}
    kept = doubles(results(tmp_path, "della_drop(a - o, 0.5, 0.8, rescale=none)", {"a": a, "o": o})["w"]) != 0
    for tenth, share in enumerate(kept.reshape(10, -1).mean(axis=1)):
        assert abs(share - (0.1 + 0.08 * (tenth + 0.5))) < 5 * 0.5 / (n / 10) ** 0.5
    whole = doubles(results(tmp_path, "della_drop(a - o, 0.5, 0.8)", {"a": a, "o": o})["w"])
    assert abs(whole.sum() / (n * (n + 1) / 2) - 1) < 0.02


@pytest.mark.parametrize(
    ("density", "epsilon", "chance"), [("0.9", "0.3", "from 0.75 to 1.05"), ("0.1", "0.2", "from 0 ")]
)
def test_chances_are_chances(tmp_path: Path, density: str, epsilon: str, chance: str) -> None:
    models = family("F32", "a")
    with pytest.raises(RecipeError, match=f"above 0 and at most 1, and they go {chance}"):
        results(tmp_path, f"della_drop(a - o, {density}, {epsilon})", models)
    more = f"params: {{ d: {{ default: {density}, row: 0.5 }} }}\n"
    with pytest.raises(RecipeError, match="a number above 0 and at most 1, not"):
        results(tmp_path, f"della_drop(a - o, d, {epsilon})", models, more=more)


def test_nothing_to_rank(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    assert given(tmp_path, "della_drop(a - o, 0.5, 0.2)", 0, 0, 0) == [0, 0, 0]
    np.testing.assert_array_equal(given(tmp_path, "della_drop(a - o, 1, 0)", nan, inf, 2), [nan, inf, 2])


@pytest.mark.parametrize("code", ["F16", "BF16", "F64"])
@pytest.mark.parametrize("rescale", ["expected", "l1"])
def test_dropped_and_elected(tmp_path: Path, code: str, rescale: str) -> None:
    models = family(code, "ab")
    made = {
        name: results(tmp_path, f"{name}(o, [a, b @ 0.5], {options}, scale=0.7, rescale={rescale})", models, "float32")
        for name, options in (("della", "0.5, 0.4"), ("della_linear", "0.5, 0.4"), ("dare_ties", "0.5"))
    }
    same = f"(o, [a, b @ 0.5], 0.5, scale=0.7, rescale={rescale})"
    assert results(tmp_path, "dare_linear" + same, models) == results(tmp_path, "dare" + same, models)
    for name in SHAPES:
        o = doubles(models["o"][name])
        deltas = [doubles(models[x][name]) - o for x in "ab"]
        dropped = dared(deltas, Fraction(1, 2), rescale, name)
        kept = [thinned(d, 0.5, 0.4, rescale, name, stream=i) for i, d in enumerate(deltas)]
        close(made["della"][name], o + 0.7 * elect(kept, [1, 0.5]), 2)
        close(made["della_linear"][name], o + 0.7 * (kept[0] + 0.5 * kept[1]), 2)
        close(made["dare_ties"][name], o + 0.7 * elect(dropped, [1, 0.5]), 2)


DEFINITIONS = {
    "breadcrumbs(o, [a, b @ 0.5], 0.3)": "o + breadcrumbs_trim(a - o, 0.3) + breadcrumbs_trim(b - o, 0.3, 0.01)*0.5",
    "breadcrumbs_ties(o, [a, b], 0.3, rescale=true)":
        "o + sum_sign([match_l1(breadcrumbs_trim(a - o, 0.3), a - o), match_l1(breadcrumbs_trim(b - o, 0.3), b - o)])",
    "della(o, [a, b @ 2], 0.3, 0.1)":
        "o + sum_sign([della_drop(a - o, 0.3, 0.1), della_drop(b - o, 0.3, 0.1, stream=1) @ 2])",
    "della_linear(o, [a, b], 0.3, 0.1)": "o + della_drop(a - o, 0.3, 0.1) + della_drop(b - o, 0.3, 0.1, stream=1)",
    "dare_ties(o, [a, b], 0.3)": "o + sum_sign([dare_drop(a - o, 0.3), dare_drop(b - o, 0.3, stream=1)])",
    "add_difference_clamped(a, b, o, 0.5)": "clip(a + (b - o)*0.5, a, b)",
    "add_perpendicular(a, b, o, 0.5)": "a + 0.5*perpendicular_component(a - o, b - o)",
}  # fmt: skip


@pytest.mark.parametrize("call", DEFINITIONS)
def test_the_definition_is_the_method(tmp_path: Path, call: str) -> None:
    """On normal forms: nothing is computed."""
    for name in "oab":
        write(tmp_path / f"{name}.safetensors", family("F16")[name])
    more = f"steps: {{ one: '{call}', other: '{DEFINITIONS[call]}' }}\nassert: [one == other]\n"
    with project(tmp_path, recipe("one", "o a b ", more=more)) as p:
        p.plan()


# -- one sequence of bytes ------------------------------------------------------------------------------------------

CALLS = ["breadcrumbs(o, [a, b], 0.3)", "breadcrumbs_ties(o, [a, b], 0.3, rescale=true)", "della(o, [a, b], 0.5, 0.3)",
         "della_linear(o, [a, b @ 0.3], 0.5, 0.3, rescale=l1)", "dare_ties(o, [a, b], 0.5)", "clip(o, a, b)",
         "o + sign_agreement([a - o, (b - o) @ 0.3])", "add_perpendicular(a, b, o)", "train_difference(a, b, o)",
         "similarity_add_difference(a, b, o)", "euclidean_add_difference(a, b, o, 0.3)",
         "multiply_difference(a, b, o, 0.3)", "tensor_sum(a, b, 0.3, 0.8)"]  # fmt: skip
ALL = "".join([
    "mergeflow: 1\nsources: { o: models/o.safetensors, a: models/a.safetensors, b: models/b.safetensors }\n",
    "options: { nonfinite: allow }\noutputs:\n",
    *(f"  {i}.safetensors: {call}\n" for i, call in enumerate(CALLS)),
    *(f"  {i}-32.safetensors: {{ from: '{call}', dtype: float32 }}\n" for i, call in enumerate(CALLS)),
])  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(17)
    base: Model = {"large": weights(rng, "F16", (301, 1001)), "bf16": weights(rng, "BF16", (70_003,)),
                   "f64": weights(rng, "F64", (9_999,)), "e4m3": weights(rng, "F8_E4M3", (501,)),
                   "zeros": numbers("F16", np.zeros(33)),
                   "bad": numbers("F16", [float("nan"), float("inf"), 1, -2, 3, -float("inf")] * 9)}  # fmt: skip
    where = tmp_path_factory.mktemp("same") / "models"
    write(where / "o.safetensors", base)
    for name in "ab":
        tuned = {k: numbers("F16", -rng.normal(size=54)) if k == "bad" else related(rng, t) for k, t in base.items()}
        write(where / f"{name}.safetensors", tuned)
    return where


@pytest.fixture(scope="module")
def reference(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    found = made(tmp_path_factory.mktemp("reference"), folder, ALL, jobs=1)
    assert len(set(found.values())) == 2 * len(CALLS)
    return found


@pytest.mark.slow
def test_threads_and_operands_read_again(
    tmp_path: Path, folder: Path, reference: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert made(tmp_path / "two", folder, ALL, jobs=2) == reference
    monkeypatch.setattr(place, "KEEP", 0)
    assert made(tmp_path / "again", folder, ALL, jobs=2) == reference


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [{"ATEN_CPU_CAPABILITY": "default", "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512_SKX"},
     {"ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "1"}],
    ids=["default", "avx2"],
)  # fmt: skip
def test_vector_units(tmp_path: Path, folder: Path, reference: dict[str, str], environment: dict[str, str]) -> None:
    assert made_elsewhere(tmp_path, folder, ALL, **environment) == reference
