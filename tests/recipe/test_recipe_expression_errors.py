"""What a wrong expression is answered with: the place, the sentence, the correction."""

from __future__ import annotations

import pytest

from mergeflow.errors import RecipeError
from mergeflow.recipe import parse, parse_comparison

CASES = {
    # text: (column, part of the message, part of the hint)
    "30% * a": (1, "30% is not a number", "write 0.3"),
    "a * 7.5%": (5, "7.5% is not a number", "write 0.075"),
    "a * 0,3": (5, "0,3 is not a number", "write 0.3"),
    "a, b": (2, "a comma stands between arguments", ""),
    "a x 0.7": (3, "x is a name, not an operator", "write a * 0.7"),
    "(a + b) X c": (9, "X is a name, not an operator", "write *"),
    "a (b - c)": (3, "no operator between a and this bracket", "write a * (b - c)"),
    "0.3(b - c)": (4, "no operator between 0.3 and this bracket", "write 0.3 * (b - c)"),
    "(a)(b)": (4, "no operator between ) and this bracket", "write ) * (b)"),
    "a[0:16]": (2, "layer slices like [0:16] are not in this version", "profile"),
    "a[3]": (2, "layer slices", "profile"),
    "(a + b": (1, "this bracket is not closed", ""),
    "f(a, [b)": (8, ") stands where ] is needed (opened at 1:6)", ""),
    "a + b)": (6, "this ) closes nothing", ""),
    ")": (1, "this ) closes nothing", ""),
    "(": (1, "this bracket is not closed", ""),
    "()": (1, "there is nothing between these brackets", ""),
    "": (1, "the expression is empty", ""),
    "  # only a comment": (1, "the expression is empty", ""),
    "a b": (3, "no operator between a and b", "quote it: 'a b'"),
    "2 a": (3, "no operator between 2 and a", "2 * a"),
    "'a' 'b'": (5, "no operator between 'a' and 'b'", ""),
    "a ** 2": (3, "there are no powers", "write x * x"),
    "a ^ 2": (3, "^ means nothing", "no powers"),
    "a == b": (3, "== compares, which only a line of assert: does", ""),
    "a <= b": (3, "<= compares", ""),
    "a = b": (3, "= gives an argument", ""),
    "a != b": (3, "!= compares", ""),
    "Anything-V3.0 + b": (1, 'Anything-V3.0 reads as "Anything" minus "V3.0"', "quote it: 'Anything-V3.0'"),
    "a + mix.v2": (5, "mix.v2 is not a plain word", "quote it: 'mix.v2'"),
    "a * 1.5abc": (5, "1.5abc is not a plain word", ""),
    "0x10": (1, "numbers are decimal", "write 16"),
    "1_000": (1, "digits are not grouped with _", "write 1000"),
    "1e400": (1, "1e400 is out of range", ""),
    "1e-400": (1, "1e-400 is out of range", ""),
    "1e999999999": (1, "out of range", ""),
    "1" * 41: (1, "at most 40 digits, this one has 41", ""),
    "0." + "1" * 40: (1, "at most 40 digits, this one has 41", ""),
    "a * 1.": (5, "1. ends in a point", "write 1.0 or 1"),
    "1.2.3": (1, "1.2.3 is neither a number nor a name", ""),
    "_": (1, "_ is neither", ""),
    "½ * a": (1, "½ is neither", ""),
    "a +": (3, "a value is missing after +", ""),
    "* a": (1, "a value is missing before *", ""),
    "f(a,, b)": (5, "a value is missing before ,", ""),
    "f(k=)": (5, "a value is missing before )", ""),
    "f(k=1, a)": (9, "a plain argument stands after one with a name", ""),
    "f(k=1, k=2)": (8, "k is given twice", ""),
    "[a, b]": (1, "a list can only be an argument", ""),
    "f(2 * [a])": (7, "a list can only be an argument", ""),
    "f([a] + b)": (7, "nothing can be done to a list", ""),
    "f(a @ 0.5 * 2)": (11, "after a weight", "x @ (1 - k)"),
    "a @ 0.5": (3, "a weight (@) stands in a list or an argument only", ""),
    "f((a @ 0.5))": (6, "a weight (@)", ""),
    "'abc": (1, "this quote is not closed", "end the name with '"),
    "a + ''": (5, "no name between these quotes", ""),
    "a + “b”": (5, "“ means nothing", "straight quotes"),
    "ties(a, {b: 0.5})": (9, "{ means nothing", "[a @ 0.5, b @ 0.5]"),
    "a; b": (2, "; means nothing", ""),
    "a・b": (2, "・ means nothing", ""),
    "a * k.OUT": (5, "k.OUT is not a plain word", ""),
}  # fmt: skip


@pytest.mark.parametrize("text", CASES)
def test_answer(text: str) -> None:
    column, message, hint = CASES[text]
    with pytest.raises(RecipeError) as caught:
        parse(text)
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.place is not None
    assert (caught.value.place.line, caught.value.place.column) == (1, column)


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("a = b", 3, "= is not a comparison"),
        ("a != b", 3, "!= is not a comparison"),
        ("a + b", 1, "an assertion compares"),
        ("a ==", 5, "the expression is empty"),
        ("a == b c", 8, "no operator between b and c"),
        ("(a == b)", 4, "== compares"),
    ],
)
def test_answer_to_a_comparison(text: str, column: int, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_comparison(text)
    assert message in caught.value.message
    assert caught.value.place is not None
    assert caught.value.place.column == column


def test_places_count_lines() -> None:
    with pytest.raises(RecipeError) as caught:
        parse("a +\n  b $ c")
    assert str(caught.value.place) == "2:5"


def test_the_excerpt_of_a_huge_expression_is_short() -> None:
    with pytest.raises(RecipeError) as caught:
        parse("a + " * 250_000 + "$" + " + a" * 10)
    place = caught.value.place
    assert place is not None
    assert place.column == 1_000_001
    assert "$" in place.text
    assert len(place.text) <= 82
    assert place.text.startswith("…")
