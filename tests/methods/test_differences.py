"""Methods over what models learned since another, value by value, against the formulas of the tools that have them."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import mpmath
import numpy as np
import pytest
from method_cases import SHAPES, close, doubles, family, results
from method_oracles import euclidean, multiply, similarity, train
from support.builds import plan, recipe
from support.checkpoints import Model, numbers
from support.exact import FORMATS

from mergeflow.errors import RecipeError
from mergeflow.methods.powers import power
from mergeflow.plan.program import COPY

Array = np.ndarray


def check(folder: Path, code: str, call: str, wanted, steps: float, dtype: str = "float32") -> None:  # type: ignore[no-untyped-def]
    models = family(code, "ab")
    found = results(folder, call, models, dtype)
    for name in SHAPES:
        values = [doubles(models[x][name]) for x in "abo"]
        close(found[name], wanted(*values), steps)


@pytest.mark.parametrize("code", FORMATS)
@pytest.mark.parametrize("m", [0.0, 0.3, 1.0, -2.0])
def test_train_difference(tmp_path: Path, code: str, m: float) -> None:
    check(tmp_path, code, f"train_difference(a, b, o, {m})", lambda a, b, c: train(a, b, c, m), 1)


@pytest.mark.parametrize("code", FORMATS)
@pytest.mark.parametrize(("m", "n"), [(1.0, 1.0), (0.5, 0.3), (2.0, 0.0)])
def test_similarity_add_difference(tmp_path: Path, code: str, m: float, n: float) -> None:
    call = f"similarity_add_difference(a, b, o, {m}, {n})"
    check(tmp_path, code, call, lambda a, b, c: similarity(a, b, c, m, n), 2)


@pytest.mark.parametrize("code", FORMATS)
@pytest.mark.parametrize("m", [0.0, 0.3, 0.5, 1.0])
def test_euclidean_add_difference(tmp_path: Path, code: str, m: float) -> None:
    check(tmp_path, code, f"euclidean_add_difference(a, b, o, {m})", lambda a, b, c: euclidean(a, b, c, m), 1)


@pytest.mark.parametrize("code", FORMATS)
@pytest.mark.parametrize(("m", "n"), [(0.3, 0.5), (0.0, 0.2), (1.0, 1.0), (0.5, 0.0)])
def test_multiply_difference(tmp_path: Path, code: str, m: float, n: float) -> None:
    call = f"multiply_difference(a, b, o, {m}, {n})"
    check(tmp_path, code, call, lambda a, b, c: multiply(a, b, c, m, n), 1)


@pytest.mark.parametrize(
    ("call", "wanted"),
    [("train_difference(a, b, o)", lambda a, b, c: train(a, b, c, 1)),
     ("similarity_add_difference(a, b, o)", lambda a, b, c: similarity(a, b, c, 1, 1)),
     ("euclidean_add_difference(a, b, o, 0.4)", lambda a, b, c: euclidean(a, b, c, 0.4)),
     ("multiply_difference(a, b, o, 0.4)", lambda a, b, c: multiply(a, b, c, 0.4, 0.5))],
)  # fmt: skip
@pytest.mark.parametrize("code", ["F16", "BF16"])
def test_in_half_precision(tmp_path: Path, code: str, call: str, wanted: object) -> None:
    check(tmp_path, code, call, wanted, 1, "")


CALLS = ["train_difference(a, b, o)", "similarity_add_difference(a, b, o)", "euclidean_add_difference(a, b, o, 0.4)",
         "multiply_difference(a, b, o, 0.4)", "tensor_sum(a, b, 0.4)", "clip(a, b, o)",
         "add_difference_clamped(a, b, o)", "o + sign_agreement([a - o, b - o])", "add_perpendicular(a, b, o)",
         "della(o, [a, b], 0.5, 0.2)", "breadcrumbs_ties(o, [a, b], 0.5)", "dare_ties(o, [a, b], 0.5)"]  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_what_is_equal_in_all_stays_as_it_is(tmp_path: Path, call: str) -> None:
    models = family("F16", "ab")
    found = results(tmp_path, call, models)
    assert found["same"] == models["a"]["same"]
    assert found["ids"] == models["o"]["ids"]
    if "sign_agreement" not in call:  # whose zeros count: they are votes for nothing
        (output,) = plan(tmp_path, recipe(call, "a b o ")).outputs
        assert next(w.program for w in output.works if w.name == "same") == COPY


def test_what_a_has_learned_is_not_added_again(tmp_path: Path) -> None:
    a, b, c = ({"x": numbers("F64", v)} for v in ([1, 1, 2, 0], [1, 1, 2, 4], [0, 1, 0, 0]))
    found = results(tmp_path, "train_difference(a, b, c)", {"a": a, "b": b, "c": c})
    assert doubles(found["x"]).tolist() == [1, 1, 2, 0.5 * 1.8 * 4]


def test_missing_tensors(tmp_path: Path) -> None:
    models = family("F32", "ab")
    del models["b"]["row"], models["o"]["two"]
    for call in ("train_difference(a, b, o)", "similarity_add_difference(a, b, o)", "add_perpendicular(a, b, o)"):
        found = results(tmp_path, call, models)
        assert found["row"] == models["a"]["row"]
        assert found["two"] == models["a"]["two"]
    for call in ("euclidean_add_difference(a, b, o, 0.5)", "multiply_difference(a, b, o, 0.5)"):
        assert results(tmp_path, call, models)["row"] == models["o"]["row"]


def test_no_number_stays_none(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    a, b = {"x": numbers("F32", [nan, 1, inf, 1])}, {"x": numbers("F32", [1, nan, 1, 2])}
    models: dict[str, Model] = {"a": a, "b": b, "o": {"x": numbers("F32", [0, 0, 0, 0])}}
    options = "options: { nonfinite: allow }\n"
    for call in (
        "train_difference(a, b, o)",
        "similarity_add_difference(a, b, o)",
        "multiply_difference(a, b, o, 0.5)",
    ):
        found = doubles(results(tmp_path, call, models, more=options)["x"])
        assert np.isnan(found[:2]).all()
        assert np.isfinite(found[3])
    assert doubles(results(tmp_path, "multiply_difference(a, b, o, 0.5)", models, more=options)["x"])[2] == inf


@pytest.mark.parametrize("call", ["euclidean_add_difference(a, b, o, 1.5)", "multiply_difference(a, b, o, -0.1)",
                                  "similarity_add_difference(a, b, o, 1, 2)", "tensor_sum(a, b, 2)"])  # fmt: skip
def test_shares_are_from_0_to_1(tmp_path: Path, call: str) -> None:
    with pytest.raises(RecipeError, match="a number from 0 to 1, not"):
        results(tmp_path, call, family("F32", "ab"))


# -- rows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", FORMATS)
@pytest.mark.parametrize(
    ("m", "n"), [("0.3", "0.5"), ("0.7", "0.5"), ("1", "0"), ("0", "0.3"), ("1/3", "2/3"), ("1", "1")]
)
def test_tensor_sum(tmp_path: Path, code: str, m: str, n: str) -> None:
    models = family(code, "ab")
    found = results(tmp_path, f"tensor_sum(a, b, {m}, {n})", models, "float64")
    share, begin = Fraction(m), Fraction(n)
    for name, shape in SHAPES.items():
        a, b = doubles(models["a"][name]), doubles(models["b"][name])
        rows = shape[0] if shape else 1
        end = math.floor(rows * (share + begin)) if share + begin <= 1 else rows
        taken = set(range(math.floor(rows * begin), end))
        if share + begin > 1:
            taken |= set(range(math.floor(rows * (share + begin - 1))))
        pairs = zip(a.reshape(rows, -1) if a.size else a, b.reshape(rows, -1) if a.size else b, strict=True)
        wanted = np.array([y if i in taken else x for i, (x, y) in enumerate(pairs)]).reshape(a.shape)
        assert np.array_equal(doubles(found[name]), wanted), name


def test_rows_across_tiles(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(1000, 301)), rng.normal(size=(1000, 301))
    models: dict[str, Model] = {"a": {"x": numbers("F32", a)}, "b": {"x": numbers("F32", b)}}
    for m, n, taken in (("0.3", "0.45", range(450, 750)), ("0.7", "0.45", [*range(150), *range(450, 1000)])):
        wanted = a.astype(np.float32)
        wanted[list(taken)] = b.astype(np.float32)[list(taken)]
        assert np.array_equal(doubles(results(tmp_path, f"tensor_sum(a, b, {m}, {n})", models)["x"]), wanted)


# -- powers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", [0.3, 0.5, 1 / 3, 0.999, 1e-9])
def test_powers(exponent: float) -> None:
    rng = np.random.default_rng(3)
    x = np.concatenate([np.exp(rng.uniform(-740, 700, 300)), rng.uniform(0.4, 2.1, 300), [5e-324, 1.0, 0.5, 2.0]])
    with mpmath.workdps(40):
        wanted = [mpmath.mpf(float(v)) ** mpmath.mpf(exponent) for v in x]
        errors = [abs(mpmath.mpf(float(f)) - w) / max(w, mpmath.mpf(2) ** -1022)
                  for f, w in zip(power(x, exponent), wanted, strict=True)]  # fmt: skip
    assert max(errors) < 2.0**-40


def test_powers_at_the_ends() -> None:
    nan, inf = float("nan"), float("inf")
    x = np.array([0.0, 1.0, inf, nan])
    np.testing.assert_array_equal(power(x, 0.5), x)
    np.testing.assert_array_equal(power(x, 1.0), x)
    np.testing.assert_array_equal(power(x, 0.0), [1, 1, 1, nan])
