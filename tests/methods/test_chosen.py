"""Model Stock, SCE, RAM and bounded differences against their formulas."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from method_cases import SHAPES, close, doubles, family, results
from method_oracles import sce, stock
from support.builds import HEAD, made, made_elsewhere
from support.checkpoints import Model, numbers, related, weights, write
from support.exact import FORMATS

from mergeflow.errors import RecipeError
from mergeflow.plan import place

ALLOW = "options: { nonfinite: allow }\n"


def one(folder: Path, call: str, dtype: str = "", **values: object) -> list[float]:
    models: dict[str, Model] = {name: {"x": numbers("F64", v)} for name, v in values.items()}
    return doubles(results(folder, call, models, dtype, more=ALLOW)["x"]).tolist()


# -- Model Stock -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", FORMATS)
@pytest.mark.parametrize("names", ["ab", "abc", "abcd"])
def test_model_stock(tmp_path: Path, code: str, names: str) -> None:
    models = family(code, names)
    found = results(tmp_path, f"model_stock(o, {', '.join(names)})", models, "float32")
    for name in SHAPES:
        base = doubles(models["o"][name])
        close(found[name], base + stock([doubles(models[m][name]) - base for m in names]), 4)
    assert found["ids"] == models["o"]["ids"]


def test_model_stock_at_its_edges(tmp_path: Path) -> None:
    zeros = [0.0, 0.0]
    assert one(tmp_path, "model_stock(o, a, b)", o=zeros, a=[1, 2], b=[-1, -2]) == [0, 0]
    assert one(tmp_path, "model_stock(o, a, b)", o=zeros, a=[1, 0], b=[0, 1]) == [0, 0]
    assert one(tmp_path, "model_stock(o, a, b)", o=zeros, a=[3, 0], b=[5, 0]) == [4, 0]
    three = one(tmp_path, "model_stock(o, a, b, c)", o=zeros, a=[3, 0], b=[6, 0], c=zeros)
    np.testing.assert_allclose(three, stock([np.array(x) for x in ([3, 0], [6, 0], zeros)]), rtol=1e-15)
    assert one(tmp_path, "model_stock(o, a, b)", o=zeros, a=[float("inf"), 2], b=[1, 4]) == [float("inf"), 3]
    with pytest.raises(RecipeError, match="two models or more"):
        one(tmp_path, "model_stock(o, a)", o=[0], a=[1])
    with pytest.raises(RecipeError, match="takes no weights"):
        one(tmp_path, "model_stock(o, [a @ 2, a])", o=[0], a=[1])


# -- SCE ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", FORMATS)
@pytest.mark.parametrize(
    ("options", "select"), [("", "1"), ("select=0.4", "2/5"), ("select=0.01", "1/100"), ("normalize=false", "1")]
)
def test_sce(tmp_path: Path, code: str, options: str, select: str) -> None:
    models = family(code)
    found = results(tmp_path, f"sce(o, [a, b, c]{', ' * bool(options)}{options})", models, "float32")
    for name in SHAPES:
        base = doubles(models["o"][name])
        deltas = [doubles(models[m][name]) - base for m in "abc"]
        close(found[name], base + sce(deltas, Fraction(select), normalize=not options.startswith("norm")))
    assert found["ids"] == models["o"]["ids"]


def test_sce_at_its_edges(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    o = [0.0] * 4
    assert one(tmp_path, "sce(o, a, b)", o=o, a=[1, 2, 0, 3], b=[-1, -2, 0, -3]) == o
    assert one(tmp_path, "sce(o, [a, b], select=0.5)", o=o, a=[1, 2, 3, 4], b=[1, 2, 3, 4]) == o
    assert one(tmp_path, "sce(o, [a, b], select=0.5)", o=o, a=[1, 2, 3, 4], b=o) == [0, 0, 3, 4]
    assert one(tmp_path, "sce(o, [a, b], select=0.25)", o=o, a=[1, 4, 4, 4], b=o) == [0, 4, 4, 4]
    assert one(tmp_path, "sce(o, [a, b], select=0)", o=o, a=[1, 4, 4, 4], b=o) == o
    found = one(tmp_path, "sce(o, a, b)", o=o, a=[nan, inf, inf, 1], b=[1, 1, -inf, 3])
    np.testing.assert_array_equal(found, [nan, inf, nan, 2])
    np.testing.assert_array_equal(
        one(tmp_path, "sce(o, [a, b], select=0.25)", o=o, a=[nan, 1, 1, 1], b=[1, 2, 3, 4]), [nan, 0, 0, 0]
    )
    assert one(tmp_path, "sce(o, [a])", o=o, a=[1, 2, 3, 4]) == [1, 2, 3, 4]


# -- RAM and bounds ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", FORMATS)
@pytest.mark.parametrize("epsilon", ["0.00001", "0.005", "0"])
def test_ram(tmp_path: Path, code: str, epsilon: str) -> None:
    models = family(code)
    found = results(tmp_path, f"ram(o, [a, b, c], epsilon={epsilon}, scale=0.5)", models, "float32")
    for name in SHAPES:
        base = doubles(models["o"][name])
        deltas = np.stack([doubles(models[m][name]) - base for m in "abc"])
        active = np.abs(deltas) > float(epsilon)
        wanted = np.sum(np.where(active, deltas, 0), axis=0) / np.maximum(active.sum(axis=0), 1)
        close(found[name], base + 0.5 * wanted)
    assert found["ids"] == models["o"]["ids"]


def test_ram_at_its_edges(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    found = one(tmp_path, "ram(o, [a, b], epsilon=0.5)", o=[0] * 5, a=[nan, inf, 0.5, 1, 1], b=[1, 1, 0.4, 0.1, 3])
    np.testing.assert_array_equal(found, [nan, inf, 0, 1, 2])


@pytest.mark.parametrize("code", FORMATS)
@pytest.mark.parametrize("t", ["0", "0.004", "100"])
def test_nearswap(tmp_path: Path, code: str, t: str) -> None:
    models = family(code, "ab")
    found = results(tmp_path, f"nearswap(a, b, {t})", models, "float32")
    for name in SHAPES:
        a, b = (doubles(models[m][name]) for m in "ab")
        far = np.abs(b - a)
        share = np.minimum(1, float(t) / np.where(far > 0, far, 1))
        close(found[name], np.where(far > 0, a * (1 - share) + b * share, a), 2)
    assert found["ids"] == models["a"]["ids"]


def test_limit_at_its_edges(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    found = one(tmp_path, "limit(a - o, 2)", o=[0] * 6, a=[nan, inf, -inf, 1, -2.5, -0.0])
    np.testing.assert_array_equal(found, [nan, 2, -2, 1, -2, 0])
    with pytest.raises(RecipeError, match="most is a number of at least 0"):
        one(tmp_path, "limit(a - o, -1)", o=[0], a=[1])


# -- one sequence of bytes ---------------------------------------------------------------------------------------------

CALLS = {
    "median": "median(o, a, b)", "geometric": "geometric_mean(o, a @ 2, b)", "torricelli": "geometric_median(o, a, b)",
    "nuslerp": "nuslerp([a, b @ 2], base=o)", "multislerp": "multislerp([o, a, b @ 0.5])",
    "karcher": "karcher([a, b], base=o)", "stock": "model_stock(o, a, b)", "sce": "sce(o, [a, b], select=0.3)",
    "ram": "ram(o, a, b)", "near": "nearswap(a, b, 0.001)", "fisher": "fisher([a, b], information=[o, a])",
    "nested": "o + limit(ties_trim(karcher(a, b) - o, 0.3), 0.002) + (model_stock(o, a, b) - o)",
}  # fmt: skip
ALL = (
    HEAD
    + "sources: { o: models/o.safetensors, a: models/a.safetensors, b: models/b.safetensors }\n"
    + "options: { nonfinite: allow }\noutputs:\n"
    + "".join(f"  {name}.safetensors: {call}\n" for name, call in CALLS.items())
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(17)
    base: Model = {"large": weights(rng, "F16", (300_001,)), "f32": weights(rng, "F32", (300, 301)),
                   "e4m3": weights(rng, "F8_E4M3", (501,)), "one": weights(rng, "F16", ())}  # fmt: skip
    where = tmp_path_factory.mktemp("chosen") / "models"
    write(where / "o.safetensors", base)
    for name in "ab":
        write(where / f"{name}.safetensors", {k: related(rng, t) for k, t in base.items()})
    return where


@pytest.fixture(scope="module")
def reference(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return made(tmp_path_factory.mktemp("reference"), folder, ALL, jobs=1)


@pytest.mark.parametrize(("jobs", "keep"), [(2, place.KEEP), (2, 0), (1, 900_000)])
def test_threads_and_operands_kept(
    tmp_path: Path, folder: Path, reference: dict[str, str], monkeypatch: pytest.MonkeyPatch, jobs: int, keep: int
) -> None:
    monkeypatch.setattr(place, "KEEP", keep)
    assert made(tmp_path, folder, ALL, jobs=jobs) == reference


def test_vector_units(tmp_path: Path, folder: Path, reference: dict[str, str]) -> None:
    plain = {"ATEN_CPU_CAPABILITY": "default", "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512_SKX"}
    assert made_elsewhere(tmp_path, folder, ALL, **plain) == reference


def test_missing_tensors(tmp_path: Path) -> None:
    """Of models the first's is kept; of differences those that are there are merged, Model Stock counting all."""
    models = family("F32", "ab")
    del models["b"]["row"]
    for call in ("median(a, b)", "karcher(a, b)", "geometric_mean(a, b)", "fisher([a], information=[b])"):
        assert results(tmp_path, call, models)["row"] == models["a"]["row"], call
    o, a = (doubles(models[m]["row"]) for m in "oa")
    close(results(tmp_path, "ram(o, a, b)", models)["row"], o + np.where(np.abs(a - o) > 1e-5, a - o, 0))
    close(results(tmp_path, "karcher([a, b], base=o)", models)["row"], o + (a - o) * 0.5)
    close(results(tmp_path, "model_stock(o, a, b)", models)["row"], o + stock([a - o, np.zeros_like(a)]))
