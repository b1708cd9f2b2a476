"""Every element of a merge against exact arithmetic on fractions, for every dtype, shape and kind of coefficient."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import exact
from support.builds import build, merged, recipe, write_models
from support.checkpoints import Model, Tensor, any_bits, cast, numbers, read, related, weights
from support.exact import BF16, E4M3, E5M2, F16, F32, F64, FORMATS, Format, accepts, doubles, halves_of_sum, linear

from mergeflow.executor.device import KERNELS_VARIABLE


@pytest.fixture(params=["compiled", pytest.param("torch", marks=pytest.mark.slow)], autouse=True)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KERNELS_VARIABLE, request.param)


CODES = list(FORMATS)
SHAPES = ((0,), (1,), (2,), (99,), (), (3, 2, 3, 3), (2, 0, 3))
THIRD, TENTH = Fraction(1, 3), Fraction(1, 10)


def check(
    models: dict[str, Model], found: Model, shares: dict[str, Fraction], to: str | None, compute: Format | None = None
) -> tuple[int, int]:
    """All tensors of the first model as Σ share·x; (elements checked, those that had to be exactly right)."""
    checked = certain = 0
    first = next(iter(models.values()))
    assert found.keys() == first.keys()
    for name, primary in first.items():
        out = FORMATS[to or primary.code]
        assert (found[name].code, found[name].shape) == (out.code, primary.shape)
        columns = [exact.values(FORMATS[models[m][name].code], models[m][name].data) for m in shares]
        c = compute or (F32 if out.size <= 2 else F64)
        for i, got in enumerate(exact.values(out, found[name].data)):
            terms = [(share, column[i]) for share, column in zip(shares.values(), columns, strict=True)]
            assert all(x is not None for _, x in terms)
            e = linear(terms, c, out)  # type: ignore[arg-type]
            assert accepts(e, out, got), (name, i, terms, got, e, c.code, out.code)
            checked += 1
            certain += e.certain
    return checked, certain


def some_models(rng: np.random.Generator, count: int, n: int = 33, *, bits: bool = False) -> dict[str, Model]:
    """Models whose tensors have every shape and, together, every combination of two dtypes."""
    make = any_bits if bits else weights
    models: dict[str, Model] = {name: {} for name in "abcdefgh"[:count]}
    for i, code in enumerate(CODES):
        for j, other in enumerate(CODES):
            for k, model in enumerate(models.values()):
                model[f"t.{code}.{other}"] = make(rng, (code, other, CODES[(i + j) % 6])[k % 3], (n,))
    for i, shape in enumerate(SHAPES):
        for k, model in enumerate(models.values()):
            model[f"shape {i}"] = make(rng, CODES[(i + k) % 6], shape)
    return models


@pytest.mark.parametrize("to", [None, *CODES])
def test_the_classic_expression_over_all_mixtures_of_dtypes(tmp_path: Path, to: str | None) -> None:
    models = some_models(np.random.default_rng(1), 3)
    found = merged(tmp_path, "a + (b - c) * 0.3", models, dtype=FORMATS[to].label if to else "")
    shares = {"a": Fraction(1), "b": 3 * TENTH, "c": -3 * TENTH}
    checked, certain = check(models, found, shares, to)
    assert checked > 1200
    assert certain > checked / 5  # the exact bound is not a corner case


@pytest.mark.parametrize("to", CODES)
def test_any_bit_pattern_is_a_number_like_any_other(tmp_path: Path, to: str) -> None:
    """Subnormals, the largest numbers, results that overflow or vanish."""
    rng, f = np.random.default_rng(2), FORMATS[to]
    models = {m: {f"t.{i}": any_bits(rng, to, (200,)) for i in range(3)} for m in "abc"}
    for model in models.values():  # products by 10 must not leave the compute dtype's range
        for name, t in model.items():
            if f in (F64, F32, BF16):
                bits = np.frombuffer(t.data, f.unsigned)
                top = f.unsigned(1 << (8 * f.size - 2))
                model[name] = Tensor(t.code, t.shape, (bits & ~(top >> f.unsigned(4))).tobytes())
    found = merged(tmp_path, "a + (b - c) * 0.3", models, more="options: { nonfinite: allow }\n")
    check(models, found, {"a": Fraction(1), "b": 3 * TENTH, "c": -3 * TENTH}, to)


def decimals() -> st.SearchStrategy[Fraction]:
    return st.one_of(
        st.integers(-12, 12).map(lambda n: Fraction(n, 10)),
        st.integers(-3000, 3000).map(lambda n: Fraction(n, 1000)),
        st.decimals(-3, 3, places=5).map(Fraction),
        st.decimals(-2, 2, places=18).map(Fraction),
        st.sampled_from([THIRD, Fraction(2, 7), Fraction(1), Fraction(-1), Fraction(1, 2), Fraction(123457, 3)]),
    )


@settings(max_examples=15)
@given(
    st.lists(decimals(), min_size=1, max_size=4),
    st.sampled_from([None, *CODES]),
    st.integers(0, 1 << 32),
)
def test_random_linear_expressions(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[Fraction], to: str | None, seed: int
) -> None:
    """The last share makes the sum 1, so that it is a model."""
    folder = tmp_path_factory.mktemp("random")
    shares = dict(zip("abcde", [*drawn, 1 - sum(drawn, Fraction(0))], strict=False))
    models = some_models(np.random.default_rng(seed), len(shares), n=5)
    text = " + ".join(f"{m} * ({s.numerator}) / {s.denominator}" for m, s in shares.items())
    found = merged(folder, text, models, dtype=FORMATS[to].label if to else "")
    used = {m: s for m, s in shares.items() if s}
    if len(used) > 1:
        check(models, found, used, to)


@pytest.mark.parametrize(
    ("expression", "shares"),
    [
        ("a / 3 + b / 3 + c / 3", {"a": THIRD, "b": THIRD, "c": THIRD}),
        ("a + (b - c) * 0.3333333333333333333333", {"b": Fraction("0.3333333333333333333333")}),
        ("a + (b - c) * 0.123456789", {"b": Fraction("0.123456789")}),
        ("a + (b - c) * 16777217", {"b": Fraction(16777217)}),
        ("a + (b - c) * 1000000.5", {"b": Fraction("1000000.5")}),
        ("a + (b - c) * 0.00000000000000000001", {"b": Fraction(1, 10**20)}),
        ("a * 98765432109876543210 - b * 98765432109876543209", {}),
    ],
)
@pytest.mark.parametrize("to", ["F16", "F32", "F64"])
def test_coefficients_that_need_dividing_or_rounding(
    tmp_path: Path, expression: str, shares: dict[str, Fraction], to: str
) -> None:
    rng = np.random.default_rng(3)
    models = {m: {"w": weights(rng, to, (500,), 1e-3)} for m in "abc"}
    if not shares:
        shares = {"a": Fraction(98765432109876543210), "b": -Fraction(98765432109876543209)}
    elif len(shares) == 1:
        shares = {"a": Fraction(1), "b": shares["b"], "c": -shares["b"]}
    found = merged(tmp_path, expression, models, more="options: { nonfinite: allow }\n")
    check(models, found, shares, to)


def fine_tunes(seed: int, n: int) -> dict[str, Model]:
    rng = np.random.default_rng(seed)
    base = weights(rng, "F16", (n,))
    return {"a": {"w": related(rng, base)}, "b": {"w": related(rng, base)}, "c": {"w": base}}


def test_no_element_of_a_million_is_wrong_in_float16(tmp_path: Path) -> None:
    models = fine_tunes(4, 1_000_003)
    found = merged(tmp_path, "a + (b - c) * 0.3", models)
    a, b, c = (doubles(F16, models[m]["w"].data) for m in "abc")
    wanted = halves_of_sum([(10, a), (3, b), (-3, c)], 10)
    assert np.count_nonzero(doubles(F16, found["w"].data) != wanted) == 0


@pytest.mark.parametrize(
    ("expression", "terms", "divisor"),
    [
        ("weighted_sum(a, b, 0.45)", [(11, "a"), (9, "b")], 20),
        ("a + (b - c) * 1.0", [(1, "a"), (1, "b"), (-1, "c")], 1),
        ("average(a, b, c)", [(1, "a"), (1, "b"), (1, "c")], 3),
        ("a*0.125 + b*0.875", [(1, "a"), (7, "b")], 8),
        ("a*0.001 + b*0.999", [(1, "a"), (999, "b")], 1000),
    ],
)
def test_other_everyday_merges_are_exact_in_float16(
    tmp_path: Path, expression: str, terms: list[tuple[int, str]], divisor: int
) -> None:
    models = fine_tunes(5, 200_001)
    found = merged(tmp_path, expression, models)
    wanted = halves_of_sum([(n, doubles(F16, models[m]["w"].data)) for n, m in terms], divisor)
    assert np.count_nonzero(doubles(F16, found["w"].data) != wanted) == 0


@pytest.mark.parametrize("terms", [(6667, 3333, 0), (10000, 3333, -3333)])
def test_four_decimals_are_exact_in_float64_and_nearly_so_in_float32(
    tmp_path: Path, terms: tuple[int, int, int]
) -> None:
    """A sum over 10,000 can need more than 24 bits, and its quotient can fall on the middle of two float16 numbers."""
    models = fine_tunes(12, 300_000)
    columns = [doubles(F16, models[m]["w"].data) for m in "abc"]
    wanted = halves_of_sum(list(zip(terms, columns, strict=True)), 10_000)
    text = " + ".join(f"{m}*{n}/10000" for m, n in zip("abc", terms, strict=True))
    found = merged(tmp_path, text, models, more="options: { compute: float64 }\n")
    assert np.count_nonzero(doubles(F16, found["w"].data) != wanted) == 0
    got = doubles(F16, merged(tmp_path, text, models)["w"].data)
    wrong = np.flatnonzero(got != wanted)
    assert len(wrong) < 1e-3 * len(got)
    assert (np.abs(got - wanted)[wrong] <= 2.0**-10 * np.abs(wanted)[wrong]).all()


def test_the_fast_oracle_agrees_with_fractions() -> None:
    rng = np.random.default_rng(6)
    x, y = any_bits(rng, "F16", (3000,)), any_bits(rng, "F16", (3000,))
    fast = halves_of_sum([(3, doubles(F16, x.data)), (5, doubles(F16, y.data))], 10)
    for i, (p, q) in enumerate(zip(exact.values(F16, x.data), exact.values(F16, y.data), strict=True)):
        assert Fraction(float(fast[i])) == exact.rounded(F16, (3 * p + 5 * q) / 10)  # type: ignore[operator]


@pytest.mark.parametrize("n", [65_535, 65_536, 65_537, 1_048_575, 1_048_576, 1_048_577, 2_100_000])
def test_sizes_around_tiles_and_units(tmp_path: Path, n: int) -> None:
    """A tile is 65,536 elements, a digest's chunk 1 MiB, a unit 2 MiB of output."""
    models = fine_tunes(n, n)
    found = merged(tmp_path, "a + (b - c) * 0.3", models)
    a, b, c = (doubles(F16, models[m]["w"].data) for m in "abc")
    wanted = halves_of_sum([(10, a), (3, b), (-3, c)], 10)
    assert np.count_nonzero(doubles(F16, found["w"].data) != wanted) == 0


@pytest.mark.parametrize("code", ["F32", "F64", "BF16", "F8_E4M3", "F8_E5M2"])
def test_large_tensors_of_other_dtypes(tmp_path: Path, code: str) -> None:
    """Over a unit's end, with a second tensor behind; numbers are multiples of 1/16, so numpy's sums are exact."""
    f = FORMATS[code]
    n = (2 << 20) // f.size + 70_001
    rng = np.random.default_rng(7)
    whole = rng.integers(-8, 9, (3, n)).astype(np.float64)
    data = {v: cast(f, np.array([v])) for v in np.unique(whole)}
    table = b"".join(data[v] for v in sorted(data))
    steps = np.frombuffer(table, f.unsigned)
    models = {
        m: {"w": Tensor(code, (n,), steps[whole[i].astype(int) + 8].tobytes()), "x": weights(rng, code, (77,))}
        for i, m in enumerate("abc")
    }
    found = merged(tmp_path, "a + (b - c) * 0.5", models)
    total = whole[0] + (whole[1] - whole[2]) / 2
    got = doubles(f, found["w"].data)
    if f.mantissa >= 5:
        assert (got == total).all()
    else:
        distinct = {v: float(exact.rounded(f, Fraction(v))) for v in np.unique(total).tolist()}  # type: ignore[arg-type]
        assert (got == np.vectorize(distinct.get)(total)).all()
    small = {m: {"x": model["x"]} for m, model in models.items()}
    check(small, {"x": found["x"]}, {"a": Fraction(1), "b": Fraction(1, 2), "c": -Fraction(1, 2)}, code)


@pytest.mark.parametrize("to", [F16, BF16, E4M3, E5M2])
def test_float64_sums_are_rounded_once(tmp_path: Path, to: Format) -> None:
    """a + b lies just beside the middle of two numbers of the result's dtype, so close that float32 would say it is
    the middle, and the tie would then go to the wrong side; and results around overflow and underflow."""
    a, b = [], []
    for e in (0, 1, -3, 1 - to.bias, to.bias - 1, 2 - to.bias - to.mantissa):
        step = exact.ulp(to, exact.power(e))
        for k in range(4):
            number = exact.power(e) + k * step
            for side in (1, -1, 0):
                for sign in (1, -1):
                    a.append(float(sign * (number + step / 2)))
                    b.append(float(sign * side * step / (1 << 35)))
    for edge in (to.largest, exact.power(to.lowest) / 2):
        step = exact.ulp(to, edge)
        a += [float(edge + step / 2)] * 3
        b += [float(step / (1 << 35)), float(-step / (1 << 35)), 0.0]
    models = {
        "a": {"w": numbers("F64", a)},
        "b": {"w": numbers("F64", b)},
        "c": {"w": numbers("F64", np.zeros(len(a)))},
    }
    text = "options: { compute: float64, nonfinite: allow }\n"
    found = merged(tmp_path, "a + (b - c)", models, dtype=to.label, more=text)
    shares = {"a": Fraction(1), "b": Fraction(1), "c": Fraction(-1)}
    checked, certain = check(models, found, shares, to.code, F64)
    assert checked == certain == len(a)


@pytest.mark.parametrize("compute", [F32, F64])
@pytest.mark.parametrize("to", CODES)
def test_the_compute_dtype_is_the_recipes_to_choose(tmp_path: Path, compute: Format, to: str) -> None:
    models = some_models(np.random.default_rng(8), 3, n=7)
    text = f"options: {{ compute: {compute.label} }}\n"
    found = merged(tmp_path, "a*0.2 + b*0.5 + c*0.3", models, dtype=FORMATS[to].label, more=text)
    check(models, found, {"a": TENTH * 2, "b": TENTH * 5, "c": TENTH * 3}, to, compute)


def test_the_oracle_decodes_and_encodes_every_pattern() -> None:
    for f in (F16, BF16, E4M3, E5M2):
        for bits in range(0, 1 << (8 * f.size), 1 if f.size == 1 else 7):
            value = exact.decode(f, bits)
            if value:
                assert exact.encode(f, value) == bits
    assert exact.values(F16, np.float16([1.5, -2e-7, 65504]).tobytes()) == [
        Fraction(3, 2), Fraction(float(np.float16(-2e-7))), Fraction(65504),
    ]  # fmt: skip
    assert exact.rounded(E4M3, Fraction(464)) == 448
    assert exact.rounded(E4M3, Fraction(465)) is None


def test_many_terms_with_one_answer(tmp_path: Path) -> None:
    """Forty models in one sum: the integers still fit, so the mean of float16 numbers is the right one."""
    rng = np.random.default_rng(9)
    names = [f"m{i}" for i in range(40)]
    models = {name: {"w": weights(rng, "F16", (300,))} for name in names}
    write_models(tmp_path, models)
    build(tmp_path, recipe(f"average([{', '.join(names)}])", " ".join(names)))
    check(models, read(tmp_path / "mix.safetensors"), dict.fromkeys(names, Fraction(1, 40)), "F16")
