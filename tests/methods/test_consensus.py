"""Sign election, TIES and slerp against the formulas, and what happens at their edges."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import mpmath
import numpy as np
import pytest
from method_cases import SHAPES, close, doubles, family, results
from method_oracles import elect, slerp, trim
from support.checkpoints import Model, numbers
from support.exact import FORMATS

from mergeflow.methods.spherical import shares


@pytest.mark.parametrize("code", FORMATS)
@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ("", (1, 1, 1)),
        ("elect=count", (1, 1, 1)),
        ("normalize=false", (1, 0.5, 0.25)),
        ("density=0.5, scale=0.7", (0.3, 2, 1)),
        ("elect=count, normalize=false", (1, -0.5, 2)),
        ("normalize=true", (1, -0.5, 0)),
    ],
)
def test_ties(tmp_path: Path, code: str, options: str, weights: tuple[float, ...]) -> None:
    models = family(code)
    listed = ", ".join(f"{name} @ {w}" for name, w in zip("abc", weights, strict=True))
    found = results(tmp_path, f"ties(o, [{listed}]{', ' if options else ''}{options})", models, "float32")
    density = Fraction(1, 2) if "density" in options else Fraction(1, 5)
    for name in SHAPES:
        base = doubles(models["o"][name])
        kept = [trim(doubles(models[m][name]) - base, density) for m in "abc"]
        merged = elect(kept, weights, by_count="count" in options, mean="normalize=false" not in options)
        close(found[name], base + (0.7 if "scale" in options else 1) * merged)
    assert found["ids"] == models["o"]["ids"]


@pytest.mark.parametrize("code", ["F16", "BF16"])
def test_ties_in_half_precision(tmp_path: Path, code: str) -> None:
    models = family(code)
    found = results(tmp_path, "ties(o, [a, b, c])", models)
    for name in SHAPES:
        base = doubles(models["o"][name])
        wanted = base + elect([trim(doubles(models[m][name]) - base, Fraction(1, 5)) for m in "abc"], [1, 1, 1])
        close(found[name], wanted)
        assert name != "same" or found[name] == models["o"][name]


def deltas(folder: Path, call: str, **values: list[float]) -> list[float]:
    """A call over differences a, b, c given outright, in float64."""
    zeros = numbers("F64", np.zeros(len(next(iter(values.values())))))
    models: dict[str, Model] = {name: {"x": numbers("F64", v)} for name, v in values.items()}
    return doubles(results(folder, call, {**models, "o": {"x": zeros}}, "float64")["x"]).tolist()


def test_the_sign_is_that_of_the_weighed_sum(tmp_path: Path) -> None:
    for weights, wanted in (((1, 1), -1.5), ((0.9, 0.1), 1.0)):
        call = f"sum_sign([(a - o) @ {weights[0]}, (b - o) @ {weights[1]}])"
        assert deltas(tmp_path, call, a=[1.0], b=[-1.5]) == [wanted]


def test_sum_and_count(tmp_path: Path) -> None:
    given = {"a": [10.0, 1, 0, 2], "b": [-1.0, -1, 0, 2], "c": [-1.0, 0, 3, -5]}
    listed = "[a - o, b - o, c - o]"
    assert deltas(tmp_path, f"sum_sign({listed})", **given) == [10, 0, 3, -5]
    assert deltas(tmp_path, f"sum_sign({listed}, elect=count)", **given) == [-1, 0, 3, 2]
    assert deltas(tmp_path, f"sum_sign({listed}, normalize=false)", **given) == [10, 0, 3, -5]
    assert deltas(tmp_path, f"sum_sign({listed}, elect=count, normalize=false)", **given) == [-2, 0, 3, 4]


def test_no_number_stays_none(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    found = deltas(tmp_path, "sum_sign([a - o, b - o])", a=[nan, inf, inf, -inf], b=[1.0, 1, -inf, -2])
    np.testing.assert_array_equal(found, [nan, inf, nan, -inf])


# -- slerp ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", FORMATS)
@pytest.mark.parametrize(("t", "norm"), [("0.3", "own"), ("0.5", "lerp"), ("0", "own"), ("1.25", "lerp")])
def test_slerp(tmp_path: Path, code: str, t: str, norm: str) -> None:
    models = family(code, "ab")
    found = results(tmp_path, f"slerp(a, b, {t}, norm={norm})", models, "float32")
    for name in SHAPES:
        a, b = doubles(models["a"][name]), doubles(models["b"][name])
        close(found[name], slerp(a, b, float(t), lengths=norm == "lerp"), 4)
    assert found["ids"] == models["a"]["ids"]


def test_equal_tensors_are_copied(tmp_path: Path) -> None:
    models = family("F16", "ab")
    assert results(tmp_path, "slerp(a, b, 0.3)", models)["same"] == models["a"]["same"]
    assert results(tmp_path, "slerp(a, a*0.5 + a*0.5, 0.3)", models) == models["a"]


def test_where_there_is_no_angle(tmp_path: Path) -> None:
    a: Model = {"zero": numbers("F64", [0, 0]), "opposite": numbers("F64", [1, 2]), "along": numbers("F64", [1, 2])}
    b: Model = {"zero": numbers("F64", [4, 8]), "opposite": numbers("F64", [-1, -2]), "along": numbers("F64", [2, 4])}
    found = results(tmp_path, "slerp(a, b, 0.25)", {"a": a, "b": b})
    assert {name: doubles(t).tolist() for name, t in found.items()} == {
        "zero": [1, 2], "opposite": [0.5, 1], "along": [1.25, 2.5]
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_opposite_tensors_of_one_value(tmp_path: Path, seed: int) -> None:
    """Rounding leaves a cosine beside −1: no angle to take shares of thousands from."""
    x, y = np.random.default_rng(seed).uniform(0.1, 3, 2)
    a, b = {"x": numbers("F64", [x])}, {"x": numbers("F64", [-y])}
    found = doubles(results(tmp_path, "slerp(a, b, 0.25)", {"a": a, "b": b}, "float64")["x"])
    np.testing.assert_allclose(found, [0.75 * x - 0.25 * y], rtol=0, atol=1e-15)


def test_linear_above(tmp_path: Path) -> None:
    a, b = {"x": numbers("F64", [1, 0.1])}, {"x": numbers("F64", [1, 0.11])}
    found = results(tmp_path, "slerp(a, b, 0.5, lerp_above=0.9995)", {"a": a, "b": b})
    assert doubles(found["x"]).tolist() == [1.0, 0.5 * 0.1 + 0.5 * 0.11]


@pytest.mark.parametrize("cosine", [0.1, -0.9, 0.999999, 1 - 2**-52, -1 + 2**-50, 0.0])
@pytest.mark.parametrize("t", [Fraction(3, 10), Fraction(-5, 4), Fraction(1, 3), Fraction(121, 3)])
def test_the_shares_are_the_nearest_doubles(cosine: float, t: Fraction) -> None:
    with mpmath.workdps(80):
        angle = mpmath.acos(mpmath.mpf(cosine))
        share = mpmath.mpf(t.numerator) / t.denominator
        wanted = [float(mpmath.sin(x * angle) / mpmath.sin(angle)) for x in (1 - share, share)]
    found = shares(1.0, 1.0, cosine, t, Fraction(1), mix_lengths=False)
    assert [math.ulp(w) >= abs(f - w) for f, w in zip(found, wanted, strict=True)] == [True, True]
    assert list(found) == wanted
