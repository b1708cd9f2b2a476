"""Trimming, dropping, rescaling, against the formulas; and what a mask depends on."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from method_cases import SHAPES, close, doubles, family, results
from method_oracles import mask, trim
from support.checkpoints import Model, numbers, weights
from support.exact import FORMATS
from support.masks import philox_32

from mergeflow.errors import RecipeError
from mergeflow.methods import masks


@pytest.mark.parametrize("code", FORMATS)
@pytest.mark.parametrize("density", ["0", "0.01", "0.2", "0.5", "1"])
def test_trim_keeps_the_largest(tmp_path: Path, code: str, density: str) -> None:
    models = family(code, "a")
    found = results(tmp_path, f"ties_trim(a - o, {density})", models, "float64")
    for name in SHAPES:
        delta = doubles(models["a"][name]) - doubles(models["o"][name])
        assert np.array_equal(doubles(found[name]), trim(delta, Fraction(density))), name
    assert found["ids"] == models["a"]["ids"]


def one(**values: object) -> Model:
    return {name: numbers("F32", v) for name, v in values.items()}


def test_all_equals_of_the_smallest_kept_are_kept(tmp_path: Path) -> None:
    a = one(x=[3, -1, 1, 1, 0, 0, 0, 0, 0, -1], zeros=[0, 0, 5, 0], flat=[2, -2, 2, -2])
    o = one(x=[0] * 10, zeros=[0] * 4, flat=[0] * 4)
    found = results(tmp_path, "ties_trim(a - o, 0.2)", {"a": a, "o": o})
    assert doubles(found["x"]).tolist() == [3, -1, 1, 1, 0, 0, 0, 0, 0, -1]
    assert doubles(found["zeros"]).tolist() == [0, 0, 5, 0]
    assert doubles(found["flat"]).tolist() == [2, -2, 2, -2]


def test_nan_is_larger_than_any_number(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    a = one(x=[nan, 1, -inf, 2, 0, 0, 0, 0, 0, 0], y=[nan, -nan, inf, 5, 1, 0, 0, 0, 0, 0])
    o = one(x=[0] * 10, y=[0] * 10)
    options = "options: { nonfinite: allow }\n"
    for density, x, y in (("0.1", [nan] + [0] * 9, [nan, nan] + [0] * 8), ("0.3", [nan, 0, -inf, 2] + [0] * 6, None)):
        found = results(tmp_path, f"ties_trim(a - o, {density})", {"a": a, "o": o}, more=options)
        np.testing.assert_array_equal(doubles(found["x"]), x)
        if y is not None:
            np.testing.assert_array_equal(doubles(found["y"]), y)
        assert {b for b in np.frombuffer(found["y"].data, np.uint32) if b > 0x7F800000 and b < 0x80000000} == {
            0x7FC00000
        }


# -- dropping -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", ["0.5", "0.3", "1/3", "1", "1/70000"])
@pytest.mark.parametrize("code", ["F16", "F64"])
def test_the_mask_is_philox(tmp_path: Path, density: str, code: str) -> None:
    rng = np.random.default_rng(1)
    o: Model = {"w": weights(rng, code, (20, 31)), "v": weights(rng, code, (5,))}
    a: Model = {"w": weights(rng, code, (20, 31)), "v": weights(rng, code, (5,))}
    found = results(tmp_path, f"dare_drop(a - o, {density}, rescale=none, seed=7)", {"a": a, "o": o}, "float64")
    for name in ("w", "v"):
        delta = (doubles(a[name]) - doubles(o[name])).reshape(-1)
        kept = mask(delta.size, Fraction(density), name, seed=7)
        assert np.array_equal(doubles(found[name]).reshape(-1), np.where(kept, delta, 0.0))


@pytest.mark.parametrize(
    ("counter", "key", "wanted"),
    [
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)  # fmt: skip
def test_the_published_answers_of_philox(
    counter: tuple[int, ...], key: tuple[int, ...], wanted: tuple[int, ...]
) -> None:
    """Those that come with Random123, its authors' library."""
    assert tuple(philox_32(counter, key)) == wanted


def test_a_chance_of_less_than_a_byte() -> None:
    density, n = Fraction(1, 1 << 17), 1 << 20
    found = np.flatnonzero(masks.mask(bytes(range(32)), density, 0, n))
    assert 1 <= found.size <= 30  # 8 are expected
    for begin in (0, 7, 4096, 999_999):
        piece = masks.mask(bytes(range(32)), density, begin, 5000)
        assert np.array_equal(np.flatnonzero(piece) + begin, found[(found >= begin) & (found < begin + 5000)])


@pytest.mark.parametrize("code", FORMATS)
@pytest.mark.parametrize("rescale", ["expected", "l1", "none"])
def test_dare_over_models(tmp_path: Path, code: str, rescale: str) -> None:
    models = family(code, "ab")
    found = results(tmp_path, f"dare(o, [a, b @ 0.5], 0.3, rescale={rescale})", models, "float32")
    for name in SHAPES:
        base = doubles(models["o"][name])
        wanted = base.copy()
        for stream, (model, weight) in enumerate((("a", 1.0), ("b", 0.5))):
            delta = doubles(models[model][name]) - base
            kept = np.where(mask(delta.size, Fraction(3, 10), name, stream=stream).reshape(delta.shape), delta, 0.0)
            left, whole = np.abs(kept).sum(), np.abs(delta).sum()
            factor = {"expected": 1 / 0.3, "l1": whole / left if left else 1.0, "none": 1.0}[rescale]
            wanted += weight * factor * kept
        close(found[name], wanted)


def drops(folder: Path, models: dict[str, Model], call: str, options: str = "") -> Model:
    return results(folder, call, models, "float64", more=options)


def test_what_a_mask_depends_on(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    o: Model = {"w": numbers("F32", np.zeros(200)), "u": numbers("F32", np.zeros(200))}
    a: Model = {"w": numbers("F32", np.ones(200)), "u": numbers("F32", np.ones(200))}
    first = drops(tmp_path, {"a": a, "o": o}, "dare_drop(a - o, 0.5)")
    assert first["w"] != first["u"]
    more = {"0": weights(rng, "F32", (999,)), **dict(reversed(a.items())), "z": weights(rng, "F32", (3,))}
    base = {**{k: numbers("F32", np.zeros(t.shape)) for k, t in more.items()}}
    again = drops(tmp_path, {"a": more, "o": base}, "dare_drop(a - o, 0.5)")
    assert all(again[name] == first[name] for name in first)
    for call, options in (
        ("dare_drop(a - o, 0.5, stream=1)", ""),
        ("dare_drop(a - o, 0.5, seed=1)", ""),
        ("dare_drop(a - o, 0.5)", "options: { seed: 1 }\n"),
    ):
        assert drops(tmp_path, {"a": a, "o": o}, call, options)["w"] != first["w"]
    given = drops(tmp_path, {"a": a, "o": o}, "dare_drop(a - o, 0.5, seed=1)")
    assert drops(tmp_path, {"a": a, "o": o}, "dare_drop(a - o, 0.5)", "options: { seed: 1 }\n") == given
    assert drops(tmp_path, {"a": a, "o": o}, "dare_drop(a - o, 0.5, seed=1)", "options: { seed: 9 }\n") == given


def test_the_expectation_is_the_difference(tmp_path: Path) -> None:
    n = 200_000
    o: Model = {"w": numbers("F32", np.zeros(n))}
    a: Model = {"w": numbers("F32", np.ones(n))}
    found = doubles(drops(tmp_path, {"a": a, "o": o}, "dare_drop(a - o, 0.1)")["w"])
    assert set(np.unique(found)) == {0.0, 10.0}
    assert abs(found.mean() - 1) < 5 * (0.9 / 0.1 / n) ** 0.5  # five standard errors, the same every time


def test_a_density_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="a number above 0 and at most 1, not 0"):
        drops(tmp_path, family("F32", "a"), "dare_drop(a - o, 0)")
