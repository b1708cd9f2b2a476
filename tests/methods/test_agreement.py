"""Clipping, agreement of signs and perpendicular parts against their formulas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from method_cases import SHAPES, close, doubles, family, results
from method_oracles import agreement
from support.checkpoints import Model, numbers
from support.exact import FORMATS

from mergeflow.errors import RecipeError


@pytest.mark.parametrize("code", FORMATS)
def test_clip(tmp_path: Path, code: str) -> None:
    models = family(code)
    found = results(tmp_path, "clip(o, a, b, c)", models, "float64")
    for name in SHAPES:
        o, *bounds = (doubles(models[x][name]) for x in "oabc")
        wanted = np.minimum(np.maximum(o, np.minimum.reduce(bounds)), np.maximum.reduce(bounds))
        assert np.array_equal(doubles(found[name]), wanted)
    assert found["ids"] == models["o"]["ids"]


@pytest.mark.parametrize("code", FORMATS)
@pytest.mark.parametrize("m", [1.0, 0.3, -2.0])
def test_add_difference_clamped(tmp_path: Path, code: str, m: float) -> None:
    models = family(code)
    found = results(tmp_path, f"add_difference_clamped(a, b, c, {m})", models, "float32")
    for name in SHAPES:
        a, b, c = (doubles(models[x][name]) for x in "abc")
        close(found[name], np.clip(a + (b - c) * m, np.minimum(a, b), np.maximum(a, b)))


def one(folder: Path, call: str, dtype: str = "", **values: object) -> list[float]:
    models: dict[str, Model] = {name: {"x": numbers("F32", v)} for name, v in values.items()}
    found = results(folder, call, models, dtype, more="options: { nonfinite: allow }\n")
    return doubles(found["x"]).tolist()


def test_clip_at_its_edges(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    found = one(tmp_path, "clip(x, a, b)", x=[nan, 5, inf, 1, -0.0], a=[0, nan, 1, 0, 0], b=[1, 1, 2, inf, -0.0])
    np.testing.assert_array_equal(found, [nan, nan, 2, 1, 0])
    with pytest.raises(RecipeError, match="two bounds or more"):
        one(tmp_path, "clip(x, a)", x=[1], a=[2])
    with pytest.raises(RecipeError, match="no weights"):
        one(tmp_path, "clip(x, [a @ 2, x])", x=[1], a=[2])


@pytest.mark.parametrize("code", FORMATS)
@pytest.mark.parametrize("weights", [(1, 1, 1), (0.3, 2, 1), (1, -0.5, 0), (1, 0, 0)])
def test_sign_agreement(tmp_path: Path, code: str, weights: tuple[float, ...]) -> None:
    models = family(code)
    listed = ", ".join(f"({x} - o) @ {w}" for x, w in zip("abc", weights, strict=True))
    found = results(tmp_path, f"sign_agreement([{listed}])", models, "float32")
    for name in SHAPES:
        deltas = [doubles(models[x][name]) - doubles(models["o"][name]) for x in "abc"]
        close(found[name], agreement(deltas, list(weights)))


def test_zeros_and_no_numbers_in_a_vote(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    call = "sign_agreement([a - o, b - o])"
    zeros = [0] * 6
    found = one(tmp_path, call, a=[0, 2, -2, nan, inf, inf], b=[1, 4, 4, 1, 3, -inf], o=zeros)
    np.testing.assert_array_equal(found, [0, 3, 0, nan, inf, 0])
    assert one(tmp_path, "sign_agreement([(a - o) @ 0])", a=[1, 2], o=[0, 0]) == [0, 0]
    assert one(tmp_path, "sign_agreement([a - o, b - o])", a=[1, 2], b=[0, 0], o=[0, 0]) == [0, 0]


@pytest.mark.parametrize("code", FORMATS)
def test_perpendicular_component(tmp_path: Path, code: str) -> None:
    models = family(code, "ab")
    found = results(tmp_path, "perpendicular_component(a - o, b - o)", models, "float64")
    added = results(tmp_path, "add_perpendicular(a, b, o, 0.7)", models, "float32")
    for name in SHAPES:
        o = doubles(models["o"][name])
        p, q = doubles(models["a"][name]) - o, doubles(models["b"][name]) - o
        wanted = q - p * (np.sum(p * q) / np.sum(p * p)) if np.any(p) else q
        got = doubles(found[name])
        assert np.allclose(got, wanted, rtol=0, atol=1e-14 * np.abs(q).max(initial=0))
        assert abs(np.sum(got * p)) <= 1e-13 * np.sqrt(np.sum(p * p) * np.sum(q * q))
        close(added[name], doubles(models["a"][name]) + 0.7 * wanted)


def test_perpendicular_to_nothing(tmp_path: Path) -> None:
    assert one(tmp_path, "perpendicular_component(a - o, b - o)", a=[0, 0], b=[1, 2], o=[0, 0]) == [1, 2]
    assert one(tmp_path, "perpendicular_component(a - o, b - o)", a=[1, 2], b=[0, 0], o=[0, 0]) == [0, 0]
    assert one(tmp_path, "perpendicular_component(a - o, b - o)", a=[1, 2], b=[2, 4], o=[0, 0]) == [0, 0]
