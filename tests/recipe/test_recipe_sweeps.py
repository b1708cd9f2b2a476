"""Sweeps as they are written: lists, ranges, labels, names of outputs, and what --set makes of them."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipe_texts import HEAD, attempt

from mergeflow.errors import RecipeError
from mergeflow.recipe import Param, loads
from mergeflow.recipe.template import Format, fill_text, read_format, unfit_for_a_name


def sweep(text: str, **overrides: str) -> list[Param]:
    return list(loads(f"{HEAD}params:\n  s: {{ sweep: {text} }}\n", overrides=overrides).params["s"].sweep)


def numbers(text: str) -> list[Fraction]:
    """The values of a range; a plain number is one instruction."""
    found = []
    for value in sweep(text):
        (instr,) = value.value.code
        assert Fraction(value.value.text) == instr.value
        found.append(instr.value)
    return found


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("{ from: 0, to: 1, by: 0.25 }", "0 1/4 1/2 3/4 1"),
        ("{ from: 0, to: 0.3, by: 0.1 }", "0 1/10 1/5 3/10"),  # in floats 3 * 0.1 > 0.3
        ("{ from: 0.1, to: 0.5, by: 0.2 }", "1/10 3/10 1/2"),
        ("{ from: 0, to: 1, by: 0.3 }", "0 3/10 3/5 9/10"),
        ("{ from: 1, to: 0, by: -0.5 }", "1 1/2 0"),
        ("{ from: -0.5, to: 0.5, by: 0.5 }", "-1/2 0 1/2"),
        ("{ from: 2, to: 2, by: 1 }", "2"),
        ("{ from: 1e-3, to: 3e-3, by: '.001' }", "1/1000 1/500 3/1000"),
    ],
)
def test_ranges_are_exact_and_include_their_end(text: str, values: str) -> None:
    assert numbers(text) == [Fraction(value) for value in values.split()]


@given(st.decimals(-9, 9, places=3), st.integers(1, 50), st.decimals("0.001", 2, places=3))
def test_a_range_of_n_steps_has_n_plus_one_values(low: Decimal, steps: int, by: Decimal) -> None:
    high = low + steps * by
    found = numbers(f"{{ from: {low}, to: {high}, by: {by} }}")
    assert found == [Fraction(low) + i * Fraction(by) for i in range(steps + 1)]
    assert found[-1] == Fraction(high)


def test_a_range_has_at_most_a_thousand_values() -> None:
    assert len(numbers("{ from: 1, to: 1000, by: 1 }")) == 1000
    with pytest.raises(RecipeError, match=r"has 1,001 values; at most 1,000 are read"):
        sweep("{ from: 0, to: 1, by: 0.001 }")
    with pytest.raises(RecipeError, match=r"has 1,001 values; at most 1,000 are read"):
        sweep(str(list(range(1001))))


def test_lists_and_labels() -> None:
    assert [(v.label, v.value.text) for v in sweep("[0, m / 2, nai]")] == [(None, "0"), (None, "m / 2"), (None, "nai")]
    labelled = sweep("{ '': 1.0, _half: 0.5, '30': { default: 0.3 }, soft: { preset: COSINE, BASE: s } }")
    assert [(v.label, v.is_profile) for v in labelled] == [("", False), ("_half", False), ("30", True), ("soft", True)]
    assert [e.text for v in labelled for e in v.expressions] == ["1.0", "0.5", "0.3", "s"]
    assert labelled[3].listed.preset == "COSINE"
    (one,) = loads(HEAD + "params: { s: { sweep: [0.5] } }\n").params.values()
    assert (one.value, one.is_profile) == (None, False)


# -- names of outputs ----------------------------------------------------------------------------------------------


def test_a_name_in_pieces() -> None:
    recipe = loads(HEAD + "outputs:\n  'x\\{s}-{ t:.2f}{{b}}.safetensors': a\n  plain.safetensors: a\n")
    swept, plain = (output.template for output in recipe.outputs.values())
    assert swept.text == "x/{s}-{ t:.2f}{{b}}.safetensors"
    assert [(p.name, p.format, p.offset) for p in swept.placeholders] == [("s", None, 2), ("t", Format(0, 2), 6)]
    assert swept.filled(lambda p: p.name.upper()) == "x/S-T{b}.safetensors"
    assert (plain.placeholders, plain.filled(lambda p: "")) == ((), "plain.safetensors")


@given(st.decimals(-1000, 1000, places=6), st.integers(0, 12), st.integers(0, 8))
def test_decimals_are_those_of_python(value: Decimal, width: int, decimals: int) -> None:
    """Decimal rounds to nearest even too; a zero has no sign here."""
    rounded = value.quantize(Decimal(1).scaleb(-decimals))
    shown = format(abs(rounded) if rounded == 0 else rounded, f"0{width}.{decimals}f" if width else f".{decimals}f")
    assert Format(width, decimals).text(Fraction(value)) == shown


@pytest.mark.parametrize(
    ("spec", "value", "text"),
    [
        (".2f", "0", "0.00"), (".2f", "1", "1.00"), (".1f", "1/4", "0.2"), (".1f", "7/20", "0.4"), (".0f", "5/2", "2"),
        ("05.2f", "1/4", "00.25"), ("05.2f", "-1/4", "-0.25"), ("06.2f", "-1/4", "-00.25"), ("02.0f", "7", "07"),
        (".2f", "-1/1000", "0.00"), (".3f", "1/3", "0.333"), (".10f", "1/3", "0.3333333333"),
    ],
)  # fmt: skip
def test_decimals(spec: str, value: str, text: str) -> None:
    form = read_format(spec)
    assert form is not None
    assert form.text(Fraction(value)) == text


@pytest.mark.parametrize("spec", ["", "f", "d", "2f", ".2", ".2e", "5.2f", "005.2f", ".123f", "0.2f ", "<05.2f", "!r"])
def test_other_forms_are_not_read(spec: str) -> None:
    assert read_format(spec) is None


def test_text_keeps_the_braces_that_are_no_sweeps() -> None:
    text = '{"prompt": "{girl}, {s}", "s": {s:.1f}, {s:x} {{s}} {s.__class__} {0}'
    filled = fill_text(text, {"s"}, lambda p: "0.25" if p.format is None else p.format.text(Fraction(1, 4)))
    assert filled == '{"prompt": "{girl}, 0.25", "s": 0.2, {s:x} {0.25} {s.__class__} {0}'


def test_characters_that_files_cannot_have() -> None:
    assert [unfit_for_a_name(text) for text in ("a b-柚_1.5", "a/b", "a\\b", "x:", "a\tb")] == [
        "",
        "/",
        "\\",
        ":",
        "U+0009",
    ]


@given(st.text(alphabet="ab{}s:.2f/", max_size=20))
def test_any_name_is_read_or_refused(name: str) -> None:
    error = attempt(loads, HEAD + f"outputs:\n  '{name}.safetensors': a\n")
    assert error is None or error.place is not None


# -- --set ---------------------------------------------------------------------------------------------------------

LABELLED = "{ soft: 0.2, hard: { preset: COSINE }, flat: 0.5 }"


@pytest.mark.parametrize(
    ("written", "given_as", "values"),
    [
        ("[0, 0.5]", "0.3", [(None, "0.3")]),
        ("[0, 0.5]", "[0.1,0.2]", [(None, "0.1"), (None, "0.2")]),
        ("[0, 0.5]", " [ (1 + 1) * m, 'a, b' ] ", [(None, "(1 + 1) * m"), (None, "'a, b'")]),
        (LABELLED, "flat", [("flat", "0.5")]),
        (LABELLED, "0.7", [(None, "0.7")]),
        (LABELLED, "[flat, soft, 1]", [("flat", "0.5"), ("soft", "0.2"), (None, "1")]),
    ],
)
def test_set(written: str, given_as: str, values: list[tuple[str | None, str]]) -> None:
    assert [(v.label, v.value.text) for v in sweep(written, s=given_as)] == values


def test_set_makes_a_sweep_of_a_number() -> None:
    param = loads(HEAD + "params: { m: 0.3 }\n", overrides={"m": "[0, 1]"}).params["m"]
    assert [v.value.text for v in param.sweep] == ["0", "1"]
    (chosen,) = sweep(LABELLED, s="hard")
    assert chosen.listed.preset == "COSINE"


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("[0, 1", "--set:1:3", "this list is not closed"),
        ("[0, 1] * 2", "--set:1:3", "* 2 stands after the end of the list"),
        ("[]", "--set:1:4", "the expression is empty"),
        ("[0, 30%]", "--set:1:7", "30% is not a number here"),
        ("0:1:0.5", "--set:1:3", "is a range of numbers"),
        (f"[{', '.join('1' * 1001)}]", "--set:1:3", "from one to 1,000 values, not 1,001"),
    ],
)
def test_what_set_refuses(text: str, place: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        sweep("[0, 1]", s=text)
    assert message in caught.value.message
    assert str(caught.value.place) == place


def test_the_blocks_of_a_sweep_cannot_be_set() -> None:
    with pytest.raises(RecipeError, match="s is a sweep, which has no blocks"):
        loads(f"{HEAD}params: {{ s: {{ sweep: [0, 1] }} }}\n", overrides={"s.OUT05": "1"})


def test_included_sweeps_must_agree(tmp_path) -> None:
    (tmp_path / "common.yaml").write_text(HEAD + "params: { s: { sweep: { x: 0, y: 1 } } }\n")
    text = HEAD + "include: [common.yaml]\nparams: { s: { sweep: { %s } } }\n"
    assert len(loads(text % "x: 0, y: 1", folder=tmp_path).params["s"].sweep) == 2
    with pytest.raises(RecipeError, match="the param s is declared differently"):
        loads(text % "x: 0, z: 1", folder=tmp_path)
