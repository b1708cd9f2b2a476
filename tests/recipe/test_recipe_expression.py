"""Expressions: what they parse to, compared with an evaluation that shares no code with the parser."""

from __future__ import annotations

import unicodedata
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recipe_texts import attempt

from mergeflow.recipe import Call, Expression, Instr, parse, parse_comparison, parse_value, spell

VALUES = {
    "a": Fraction(3),
    "b": Fraction(-2, 7),
    "7wlop": Fraction(5, 3),
    "柚子": Fraction(11),
    "Anything-V3.0": Fraction(13, 2),
    "NAI NSFW": Fraction(-1),
}
SPELLED = {"a": "a", "b": "b", "7wlop": "7wlop", "柚子": "柚子"} | {
    "Anything-V3.0": "'Anything-V3.0'",
    "NAI NSFW": '"NAI NSFW"',
}


def evaluate(code: tuple[Instr, ...]) -> Fraction:
    stack: list[Fraction] = []
    for i in code:
        match i.op:
            case "number":
                stack.append(i.value)
            case "name":
                stack.append(VALUES[i.value])
            case "neg":
                stack.append(-stack.pop())
            case "mul" | "div":
                right, left = stack.pop(), stack.pop()
                stack.append(left * right if i.op == "mul" else left / right)
            case "sum":
                operands = stack[-len(i.value) :]
                del stack[-len(i.value) :]
                stack.append(sum((s * x for s, x in zip(i.value, operands, strict=True)), Fraction(0)))
            case _:
                raise AssertionError(i)
    (result,) = stack
    return result


# Trees: (text with all brackets it needs, value, binding strength). 0: a sum, 1: a product, 2: a factor.
Tree = tuple[str, Fraction, int]


def _bracket(tree: Tree, least: int, always: bool) -> str:
    return f"({tree[0]})" if tree[2] < least or always else tree[0]


def _binary(args: tuple[Tree, Tree, str, bool, bool, str]) -> Tree:
    left, right, op, bracket_left, bracket_right, gap = args
    if op in "/÷" and right[1] == 0:
        op = "*"
    level = 0 if op in "+-−－" else 1
    a, b = _bracket(left, level, bracket_left), _bracket(right, level + 1, bracket_right)
    match op:
        case "+":
            value = left[1] + right[1]
        case "-" | "−" | "－":
            value = left[1] - right[1]
        case "*" | "×":
            value = left[1] * right[1]
        case _:
            value = left[1] / right[1]
    return f"{a}{gap}{op}{gap}{b}", value, level


def _unary(args: tuple[Tree, str]) -> Tree:
    tree, sign = args
    return sign + _bracket(tree, 2, False), -tree[1] if sign == "-" else tree[1], 2


decimals = st.decimals(0, 100, allow_nan=False, allow_infinity=False, places=3)
leaves = st.one_of(
    decimals.map(lambda d: (str(d), Fraction(d), 2)),
    st.sampled_from(sorted(VALUES)).map(lambda n: (SPELLED[n], VALUES[n], 2)),
)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.tuples(
            inner, inner, st.sampled_from("+-*/×÷−－"), st.booleans(), st.booleans(), st.sampled_from(["", " ", "\n  "])
        ).map(_binary),
        st.tuples(inner, st.sampled_from("+-")).map(_unary),
    ),
    max_leaves=40,
)


@given(trees)
@settings(max_examples=300, deadline=None)
def test_value_is_that_of_the_tree(tree: Tree) -> None:
    expression = parse(tree[0])
    assert evaluate(expression.code) == tree[1]


@given(trees)
@settings(max_examples=100, deadline=None)
def test_offsets_point_at_the_tokens(tree: Tree) -> None:
    text = tree[0]
    for i in parse(text).code:
        char = text[i.offset]
        match i.op:
            case "number":
                assert char.isdigit()
            case "name":
                assert text.startswith(SPELLED[i.value], i.offset)
            case "neg" | "sum":
                assert char in "+-−－"
            case _:
                assert char in "*/×÷"


def answered(text: str) -> None:
    for read in (parse, parse_value, parse_comparison):
        error = attempt(read, text)
        if error:
            assert error.place is not None
            assert len(str(error)) < 500


@given(st.text(max_size=60))
@settings(max_examples=500, deadline=None)
def test_any_text_parses_or_is_answered(text: str) -> None:
    answered(text)


@given(st.text(alphabet="ab1.e (),+-*/@[]='\"%x:#×（\n", max_size=30))
@settings(max_examples=1000, deadline=None)
def test_near_expressions_parse_or_are_answered(text: str) -> None:
    answered(text)


def ops(expression: Expression) -> list[tuple[str, object]]:
    return [(i.op, i.value) for i in expression.code]


def test_a_chain_of_sums_is_one_instruction() -> None:
    assert ops(parse("a + b - c + d"))[-1] == ("sum", (1, 1, -1, 1))
    assert [op for op, _ in ops(parse("a + (b - c)"))] == ["name", "name", "name", "sum", "sum"]


def test_products_are_left_associative() -> None:
    assert evaluate(parse("12 / 2 * 3").code) == 18
    assert evaluate(parse("12 / 2 / 3").code) == 2


def test_unary_minus_binds_tighter_than_times() -> None:
    assert ops(parse("-a * b")) == [("name", "a"), ("neg", None), ("name", "b"), ("mul", None)]
    assert ops(parse("a - -b")) == [("name", "a"), ("name", "b"), ("neg", None), ("sum", (1, -1))]
    assert ops(parse("--a")) == [("name", "a")]


def test_numbers_are_exact() -> None:
    for text, value in {
        "0.1": Fraction(1, 10), "1e-3": Fraction(1, 1000), ".5": Fraction(1, 2), "1e5": Fraction(100000),
        "2.5E+1": Fraction(25), "1e399": Fraction(10**399), "０．３": Fraction(3, 10), "9" * 40: Fraction(10**40 - 1),
    }.items():  # fmt: skip
        assert ops(parse(text)) == [("number", value)]
        assert parse(text).is_number
    assert parse("-0.3").is_number
    assert not parse("m").is_number
    assert not parse("1 + 1").is_number


def test_names() -> None:
    for text, name in {
        "7wlop": "7wlop", "526mix": "526mix", "_a": "_a", "ﾊﾞｼﾞﾙ": "バジル", "ＮＡＩ": "NAI", "か\u3099": "が",
        "'NAI NSFW'": "NAI NSFW", '"it\'s"': "it's", "＇ａ×ｂ＇": "a×b", "1e": "1e", "x2": "x2", "हि": "हि",
    }.items():  # fmt: skip
        assert ops(parse(text)) == [("name", name)]
    assert parse("b + f(a, k=c) - b * 'a'").names == ("b", "a", "c")


@given(st.text(min_size=1, max_size=12))
@settings(deadline=None)
def test_a_spelled_name_reads_as_itself(raw: str) -> None:
    name = unicodedata.normalize("NFKC", raw)
    if name.isprintable() and name.strip() and not ("'" in name and '"' in name):
        assert ops(parse(spell(name))) == [("name", name)]


def test_twins_of_operators() -> None:
    assert ops(parse("a＋（b － c）　× 0.3 ÷ 2 – d＊e／f")) == ops(parse("a+(b - c) * 0.3 / 2 - d*e/f"))
    assert ops(parse("f（a、b，c）")) == ops(parse("f(a, b, c)"))
    assert ops(parse("a\u00a0+\u00a0b")) == ops(parse("a + b"))


def test_calls_lists_weights_and_keywords() -> None:
    code = ops(parse("ties(nai, [lewd @ 0.5, final @ (1 - k),], density=0.2, elect=count,)"))
    assert code == [
        ("name", "nai"),
        ("name", "lewd"), ("number", Fraction(1, 2)), ("weight", None),
        ("name", "final"), ("number", Fraction(1)), ("name", "k"), ("sum", (1, -1)), ("weight", None),
        ("list", 2),
        ("number", Fraction(1, 5)),
        ("name", "count"),
        ("call", Call("ties", 2, ("density", "elect"))),
    ]  # fmt: skip
    assert ops(parse("f()")) == [("call", Call("f", 0))]
    assert ops(parse("f([])")) == [("list", 0), ("call", Call("f", 1))]
    assert ops(parse("-f(a @ -1) * 2"))[-3:] == [("neg", None), ("number", 2), ("mul", None)]
    assert ops(parse_value("[a, [b]]")) == [("name", "a"), ("name", "b"), ("list", 1), ("list", 2)]
    assert ops(parse_value("a @ m")) == [("name", "a"), ("name", "m"), ("weight", None)]


def test_comments_run_to_the_end_of_the_line() -> None:
    assert ops(parse("a # the base\n + b # and the rest")) == ops(parse("a + b"))
    assert ops(parse("'a # b'")) == [("name", "a # b")]


def test_comparisons_keep_their_own_texts_and_places() -> None:
    comparison = parse_comparison(" 0 <= m <= f(a) ")
    assert [comparison.left.text, *(e.text for _, e in comparison.rest)] == ["0", "m", "f(a)"]
    assert [op for op, _ in comparison.rest] == ["<=", "<="]
    last = comparison.rest[1][1]
    assert last.place(last.code[0].offset).column == 14


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(" + ".join(f"n{i}*0.5" for i in range(100_000)), id="sum"),
        pytest.param("(" * 100_000 + "a" + ")" * 100_000, id="brackets"),
        pytest.param("f(" * 10_000 + "a" + ")" * 10_000, id="calls"),
        pytest.param("f(" + "[" * 10_000 + "a" + "]" * 10_000 + ")", id="lists"),
        pytest.param("-" * 100_000 + "a", id="signs"),
        pytest.param("a" * 1_000_000, id="name"),
        pytest.param("1 " * 2 + "2" * 500_000, id="digits"),
        pytest.param("a" + " " * 500_000 + "$", id="spaces"),
        pytest.param("a " + "#\n" * 200_000 + "+", id="comments"),
        pytest.param("'" * 100_001, id="quotes"),
        pytest.param("x[" * 50_000 + ":", id="slices"),
        pytest.param("(" * 100_000, id="open"),
        pytest.param("1." * 100_000, id="points"),
        pytest.param("-".join("é" * 100_000), id="scripts"),
    ],
)
def test_long_and_deep_expressions(text: str) -> None:
    error = attempt(parse, text)
    assert error is None or len(str(error)) < 600
