"""Means that are no sums (medians, the geometric mean, those of directions, by information) against their formulas."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from method_cases import SHAPES, close, doubles, family, results
from method_oracles import Array, geometric, slerp, sphere
from support.checkpoints import Model, numbers
from support.exact import FORMATS

from mergeflow.errors import RecipeError
from mergeflow.methods.middle import weiszfeld

ALLOW = "options: { nonfinite: allow }\n"
WEIGHTS = [(1, 1, 1), (0.2, 0.3, 0.5), (3, 1, 0)]


def listed(weights: Sequence[float]) -> str:
    return ", ".join(f"{name} @ {w}" for name, w in zip("abc", weights, strict=True))


def one(folder: Path, call: str, dtype: str = "", **values: object) -> list[float]:
    models: dict[str, Model] = {name: {"x": numbers("F64", v)} for name, v in values.items()}
    return doubles(results(folder, call, models, dtype, more=ALLOW)["x"]).tolist()


# -- medians -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", FORMATS)
@pytest.mark.parametrize("names", ["a", "ab", "abc", "abcd", "abcde"])
def test_median(tmp_path: Path, code: str, names: str) -> None:
    models = family(code, names)
    found = results(tmp_path, f"median({', '.join(names)})", models, "float32")
    for name in SHAPES:
        wanted = np.median(np.stack([doubles(models[m][name]) for m in names]), axis=0)
        assert np.array_equal(doubles(found[name]), wanted.astype(np.float32))
    assert found["ids"] == models["a"]["ids"]


def test_median_at_its_edges(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    for order in itertools.permutations("abc"):
        found = one(tmp_path, f"median({', '.join(order)})", a=[nan, inf, -0.0], b=[1, 2, 0.0], c=[2, -inf, -0.0])
        np.testing.assert_array_equal(found, [nan, 2, 0])
        assert not np.signbit(found[2])
    with pytest.raises(RecipeError, match="median takes no weights"):
        one(tmp_path, "median(a @ 2, b)", a=[1], b=[2])


def spread(y: Array, points: Sequence[Array], weights: Sequence[float]) -> float:
    return float(sum(w * np.linalg.norm(x - y) for x, w in zip(points, weights, strict=True)))


@pytest.mark.parametrize("code", FORMATS)
@pytest.mark.parametrize("weights", [(1, 1, 1), (0.2, 0.3, 0.4), (3, 1, 1)])
def test_geometric_median(tmp_path: Path, code: str, weights: tuple[float, ...]) -> None:
    models = family(code)
    found = results(tmp_path, f"geometric_median({listed(weights)})", models, "float64")
    rng = np.random.default_rng(3)
    for name in SHAPES:
        points = [doubles(models[m][name]) for m in "abc"]
        got = doubles(found[name])
        size = max((np.abs(x - points[0]).max(initial=0) for x in points), default=0)
        least, slack = spread(got, points, weights), 1e-12 * np.sqrt(got.size) * size
        others = [*points, *(got + size * step * rng.normal(size=got.shape) for step in (0.1, 1e-3, 1e-5))]
        assert all(least <= spread(y, points, weights) + slack for y in others)
        if weights[0] == 3:  # more than half
            assert np.array_equal(got, points[0])
    assert found["ids"] == models["a"]["ids"]


def test_the_geometric_median_of_a_triangle(tmp_path: Path) -> None:
    """Torricelli's point: for an isosceles right triangle it is known; with an angle above 120° it is that corner."""
    q = (3 - np.sqrt(3)) / 6
    found = one(tmp_path, "geometric_median(a, b, c)", a=[1, 1], b=[2, 1], c=[1, 2])
    np.testing.assert_allclose(found, [1 + q, 1 + q], rtol=1e-11)
    assert one(tmp_path, "geometric_median(a, b, c)", a=[0, 0.1], b=[2, 0], c=[-2, 0]) == [0, 0.1]
    np.testing.assert_allclose(one(tmp_path, "geometric_median(a, b)", a=[0, 1], b=[2, 0]), [1, 0.5], rtol=1e-12)
    assert one(tmp_path, "geometric_median(a, b, c)", a=[1, 5], b=[1, 5], c=[9, 9]) == [1, 5]
    assert one(tmp_path, "geometric_median(a)", a=[1, 5]) == [1, 5]


def test_weiszfeld_of_points_in_one_place() -> None:
    assert weiszfeld([[0.0, 0.0], [0.0, 0.0]], [0.25, 0.25, 0.5]) == [1, 0, 0]


# -- the geometric mean ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", FORMATS)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_geometric_mean(tmp_path: Path, code: str, weights: tuple[float, ...]) -> None:
    models = family(code)
    found = results(tmp_path, f"geometric_mean({listed(weights)})", models, "float64")
    for name in SHAPES:
        wanted = geometric([doubles(models[m][name]) for m in "abc"], weights)
        np.testing.assert_allclose(doubles(found[name]), wanted, rtol=2e-14, atol=1e-300)
    assert found["ids"] == models["a"]["ids"]


def test_geometric_mean_at_its_edges(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    a, b = [4, -4, 4, 0, -0.0, nan, inf, 0, -inf, 5e-324, 1e308], [9, -9, -9, 5, -5, 1, 4, inf, -1, 5e-324, 1e-308]
    found = one(tmp_path, "geometric_mean(a, b)", a=a, b=b)
    np.testing.assert_allclose(found, [6, -6, 0, 0, 0, nan, inf, nan, -inf, 5e-324, 1], rtol=1e-15)
    powers = [2.0**e for e in range(-1070, 1023, 7)]
    assert one(tmp_path, "geometric_mean(a, b)", a=powers, b=powers) == powers
    found = one(tmp_path, "geometric_mean(a @ 3, b)", a=[-16, 16], b=[1, -1])
    np.testing.assert_allclose(found, [-8 * np.sqrt(0.5), 8 * np.sqrt(0.5)], rtol=1e-15)
    assert one(tmp_path, "geometric_mean(a, b @ 0)", a=[3.7], b=[nan]) == pytest.approx([3.7], rel=1e-15)
    with pytest.raises(RecipeError, match="weight is a number of at least 0"):
        one(tmp_path, "geometric_mean(a @ 2, b @ -1)", a=[1], b=[2])
    with pytest.raises(RecipeError, match="weights add up to 0"):
        one(tmp_path, "geometric_mean(a @ 1, b @ -1)", a=[1], b=[2])


# -- directions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", FORMATS)
@pytest.mark.parametrize("weights", [(1, 1), (0.3, 0.9)])
def test_nuslerp(tmp_path: Path, code: str, weights: tuple[float, float]) -> None:
    models, t = family(code, "ab"), weights[1] / sum(weights)
    call = f"nuslerp([a @ {weights[0]}, b @ {weights[1]}]"
    plain, apart = (results(tmp_path, call + end, models, "float32") for end in (")", ", base=o)"))
    for name in SHAPES:
        o, a, b = (doubles(models[m][name]) for m in "oab")
        close(plain[name], slerp(a, b, t), 4)
        close(apart[name], o + slerp(a - o, b - o, t), 4)
    assert apart["same"] == models["o"]["same"] or models["o"]["same"].code != "F32"


@pytest.mark.parametrize("code", FORMATS)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("method", ["multislerp", "karcher"])
def test_means_of_directions(tmp_path: Path, code: str, weights: tuple[float, ...], method: str) -> None:
    models = family(code)
    plain = results(tmp_path, f"{method}({listed(weights)})", models, "float32")
    apart = results(tmp_path, f"{method}([{listed(weights)}], base=o)", models, "float32")
    for name in SHAPES:
        o, *points = (doubles(models[m][name]) for m in "oabc")
        close(plain[name], sphere(points, weights, karcher=method == "karcher"), 4)
        close(apart[name], o + sphere([x - o for x in points], weights, karcher=method == "karcher"), 8)
    assert plain["ids"] == models["a"]["ids"]


def test_a_model_without_weight_has_no_say_in_the_direction(tmp_path: Path) -> None:
    """b is opposite to the mean of a and c, which are 120° apart."""
    half = 3**0.5 / 2
    found = one(tmp_path, "karcher(a, b @ 0, c)", a=[1, 0], b=[-0.5, half], c=[-0.5, -half])
    np.testing.assert_allclose(found, [0.5, -half], rtol=1e-12)


@pytest.mark.parametrize("method", ["multislerp", "karcher", "nuslerp"])
def test_directions_at_their_edges(tmp_path: Path, method: str) -> None:
    assert one(tmp_path, f"{method}([a, b])", a=[1, 2], b=[-1, -2]) == [0, 0]
    assert one(tmp_path, f"{method}([a, b @ 3])", a=[0, 0], b=[4, 8]) == [3, 6]
    assert one(tmp_path, f"{method}([a, b])", a=[0, 0], b=[0, -0.0]) == [0, 0]
    assert one(tmp_path, f"{method}([a, b @ 3], base=o)", a=[1, 1], b=[5, 9], o=[1, 1]) == [4, 7]
    np.testing.assert_allclose(one(tmp_path, f"{method}([a, b])", a=[1, 0], b=[0, 1]), np.sqrt([0.5, 0.5]), rtol=1e-15)
    found = one(tmp_path, f"{method}([a, b])", a=[float("inf"), 1], b=[1, 3])
    assert found == [float("inf"), 2]


def test_equal_models_are_copied(tmp_path: Path) -> None:
    models = family("F16")
    for call in ("median(a, a, a)", "karcher(a, b, c)", "multislerp(a, b, c)", "geometric_mean(a, b, c)",
                 "geometric_median(a, b, c)", "nuslerp(a, b)", "model_stock(o, [a, b])", "sce(o, [a, b])",
                 "ram(o, [a, b])", "nearswap(o, a, 0.1)", "karcher([a, b], base=o)"):  # fmt: skip
        assert results(tmp_path, call, models)["same"] == models["a"]["same"], call


def test_how_many_models(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="nuslerp takes two models, not 3"):
        one(tmp_path, "nuslerp([a, a, a])", a=[1])
    many = {name: list(np.random.default_rng(i).normal(size=6)) for i, name in enumerate("abcdefghijkl")}
    found = one(tmp_path, f"karcher({', '.join(many)})", **many)
    np.testing.assert_allclose(found, sphere([np.array(x) for x in many.values()], [1] * 12, karcher=True), rtol=1e-9)


# -- information -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", FORMATS)
def test_fisher(tmp_path: Path, code: str) -> None:
    models = family(code, "abcd")
    for name in "cd":  # squares, as information is
        models[name] = {k: numbers("F32", doubles(t) ** 2) if k != "ids" else t for k, t in models[name].items()}
    found = results(tmp_path, "fisher([a, b @ 2], information=[c, d])", models, "float32")
    for name in SHAPES:
        a, b, f, g = (doubles(models[m][name]) for m in "abcd")
        under = f + 2 * g
        mean = (a * f + 2 * b * g) / np.where(under > 0, under, 1)
        close(found[name], np.where(under > 0, mean, (a + 2 * b) / 3))
    assert found["ids"] == models["a"]["ids"]


def test_fisher_at_its_edges(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    found = one(
        tmp_path, "fisher([a, b], information=[f, g])",
        a=[1, 1, 1, nan, 1e-30], b=[2, 4, 2, 1, 1e-30], f=[0, 0, nan, 1, 1e-40], g=[1, 0, 1, 1, 1e-40],
    )  # fmt: skip
    np.testing.assert_array_equal(found, [2, 2.5, nan, nan, 1e-30])
    np.testing.assert_array_equal(one(tmp_path, "fisher([a], information=[f])", a=[3, inf], f=[2, 0]), [3, inf])
    with pytest.raises(RecipeError, match="as many files of information as models: 1 for 2"):
        one(tmp_path, "fisher([a, b], information=[a])", a=[1], b=[1])
