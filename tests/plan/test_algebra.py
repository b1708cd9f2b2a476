"""Equal expressions are one expression: one key, and the same bytes. Unequal ones are not."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.builds import HEAD, build, plan, recipe, sha256, write_models
from support.checkpoints import Model, weights, write

from mergeflow.errors import RecipeError

NAMES = "abcd"
Delta = tuple[Fraction, str, str]  # k·(x − y)


def some_models(codes: str = "F16 F16 F16 F16") -> dict[str, Model]:
    rng = np.random.default_rng(21)
    return {
        name: {"w": weights(rng, code, (301,)), "v": weights(rng, code, (7, 3))}
        for name, code in zip(NAMES, codes.split(), strict=True)
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("algebra")
    write_models(path, some_models())
    return path


def recipe_of(expressions: list[str], steps: dict[str, str] | None = None, dtype: str = "float16") -> str:
    lines = [HEAD, "sources:\n", *(f"  {n}: {n}.safetensors\n" for n in NAMES)]
    if steps:
        lines += ["steps:\n", *(f"  {name}: {text!r}\n" for name, text in steps.items())]
    lines += ["outputs:\n"]
    lines += [f"  out{i}.safetensors: {{ from: {text!r}, dtype: {dtype} }}\n" for i, text in enumerate(expressions)]
    return "".join(lines)


def keys(folder: Path, *args: object) -> list[str]:
    return [o.key for o in plan(folder, recipe_of(*args)).outputs]  # type: ignore[arg-type]


def hashes(folder: Path, *args: object) -> list[str]:
    result = build(folder, recipe_of(*args), force=True)  # type: ignore[arg-type]
    return [sha256(o.target) for o in result.outputs]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_three_ways_to_write_one_sum(folder: Path, dtype: str) -> None:
    ways = ["(a + (b - c)) + (d - b)", "(a + (d - b)) + (b - c)", "a + d - c"]
    assert len(set(keys(folder, ways, None, dtype))) == 1
    assert len(set(hashes(folder, ways, None, dtype))) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a + (b - c) * 0.3", "add_difference(a, b, c, 0.3)"),
        ("a + (b - c)", "add_difference(a, b, c)"),
        ("a*0.7 + b*0.3", "weighted_sum(a, b, 0.3)"),
        ("a + (b - a)*0.3", "weighted_sum(a, b, 0.3)"),
        ("a*0.5 + b*0.25 + c*0.25", "triple_sum(a, b, c, 0.25, 0.25)"),
        ("(a*0.9 + b*0.1)*0.5 + c*0.5", "sum_twice(a, b, c, 0.1, 0.5)"),
        ("a/3 + b/3 + c/3", "average([a, b, c])"),
        ("a*0.25 + b*0.75", "linear([a @ 1, b @ 3])"),
        ("a + 0.5*(b - a) + 0.5*(c - a)", "task_arithmetic(a, [b, c], 0.5)"),
        ("a + (b - c)*0.3", "a + (b - c)*(0.1 + 0.2)"),
        ("a + (b - c)*0.3", "a + 3*(b - c)/10"),
        ("a + (b - c)*0.3", "(b - c)*0.3 + a"),
        ("a + (b - c)*0.3", "a - (c - b)*0.3"),
        ("a + (b - c)*0.3", "a + b*0.3 - c*0.3"),
        ("a + (b - c)*0.3", "a + subtract(b, c)*0.3"),
        ("a + (b - c)", "a + (b - d) + (d - c)"),
        ("a", "a + (b - b)"),
        ("a*1.0", "scale(a, 1)"),
        ("scale(a*0.5 + b, 2)", "linear([a, b @ 2], normalize=false)"),
    ],
)
def test_methods_are_their_formulas(folder: Path, one: str, other: str) -> None:
    first, second = keys(folder, [one, other])
    assert first == second
    assert len(set(hashes(folder, [one, other]))) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a + (b - c)*0.3", "a + (b - c)*0.30000000000000001"),
        ("a + (b - c)*0.3", "a + (b - c)/3"),
        ("a + (b - c)", "a + (c - b)"),
        ("a + (b - c)", "b + (a - c)"),  # another primary
        ("a + (b - c)", "a + (b - d)"),
        ("a", "b"),
    ],
)
def test_other_sums_have_other_keys(folder: Path, one: str, other: str) -> None:
    first, second = keys(folder, [one, other])
    assert first != second


def fractions() -> st.SearchStrategy[Fraction]:
    tenths = st.integers(-30, 30).map(lambda n: Fraction(n, 10))
    return st.one_of(tenths, st.sampled_from([Fraction(1, 3), Fraction(1), Fraction(-1), Fraction(7, 8)]))


def deltas() -> st.SearchStrategy[list[Delta]]:
    one = st.tuples(fractions(), st.sampled_from(NAMES), st.sampled_from(NAMES))
    return st.lists(one, min_size=0, max_size=4)


def number(k: Fraction) -> str:
    return f"({k.numerator}/{k.denominator})" if k.denominator != 1 else f"({k.numerator})"


class Writer:
    """Writes a + Σ k·(x − y) in some way or other, all of them equal."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data
        self.steps: dict[str, str] = {}

    def pick(self, n: int) -> int:
        return self._data.draw(st.integers(0, n - 1))

    def rewrite(self, items: list[Delta]) -> list[Delta]:
        items = list(items)
        for _ in range(self.pick(4)):
            what = self.pick(5)
            if what == 0:
                z = NAMES[self.pick(4)]
                items.append((self._data.draw(fractions()), z, z))
            elif what == 1:
                k, x, y = self._data.draw(fractions()), NAMES[self.pick(4)], NAMES[self.pick(4)]
                items += [(k, x, y), (k, y, x)]
            elif items:
                k, x, y = items.pop(self.pick(len(items)))
                if what == 2:
                    part = self._data.draw(fractions())
                    items += [(part, x, y), (k - part, x, y)]
                elif what == 3:
                    z = NAMES[self.pick(4)]
                    items += [(k, x, z), (k, z, y)]
                else:
                    items.append((-k, y, x))
        return self._data.draw(st.permutations(items))

    def named(self, text: str) -> str:
        if self.pick(3):
            return text
        name = f"step{len(self.steps)}"
        self.steps[name] = text
        return name

    def delta(self, item: Delta) -> str:
        k, x, y = item
        ways = [
            f"{number(k)}*({x} - {y})",
            f"({x} - {y})*{number(k)}",
            f"({x}*{number(k)} - {number(k)}*{y})",
            f"-({y} - {x})*{number(k)}",
            f"subtract({x}, {y})*{number(k)}",
            f"({x} - {y})/{number(1 / k)}" if k else f"0*({x} - {y})",
        ]
        return self.named(ways[self.pick(len(ways))])

    def model(self, items: list[Delta]) -> str:
        text = "a"
        while items:
            what, item = self.pick(5), items[0]
            if what == 0:
                text, items = f"({text} + {self.delta(item)})", items[1:]
            elif what == 1:
                text, items = f"({self.delta(item)} + {text})", items[1:]
            elif what == 2:
                k, x, y = item
                text, items = f"add_difference({text}, {x}, {y}, {number(k)})", items[1:]
            elif what == 3 and text == "a" and item[2] == "a":
                text, items = f"weighted_sum(a, {item[1]}, {number(item[0])})", items[1:]
            else:  # several at once, under one number
                n, by = 1 + self.pick(len(items)), Fraction(1 + self.pick(5), 1 + self.pick(5))
                inner = " + ".join(self.delta((k / by, x, y)) for k, x, y in items[:n])
                text, items = f"({text} + ({inner})*{number(by)})", items[n:]
            text = self.named(text)
        return text


@settings(max_examples=50)
@given(deltas(), st.data())
def test_rewriting_by_the_laws_of_a_ring_changes_nothing(folder: Path, items: list[Delta], data: st.DataObject) -> None:
    plain = "a" + "".join(f" + {number(k)}*({x} - {y})" for k, x, y in items)
    writer = Writer(data)
    texts = [plain, *(writer.model(writer.rewrite(items)) for _ in range(2))]
    assert len(set(keys(folder, texts, writer.steps))) == 1, (texts, writer.steps)
    assert len(set(hashes(folder, texts, writer.steps))) == 1


def shares(items: list[Delta]) -> dict[str, Fraction]:
    total = {"a": Fraction(1)}
    for k, x, y in items:
        total[x] = total.get(x, Fraction(0)) + k
        total[y] = total.get(y, Fraction(0)) - k
    return {m: s for m, s in total.items() if s}


@settings(max_examples=100)
@given(deltas(), deltas())
def test_keys_are_equal_exactly_when_the_shares_are(folder: Path, one: list[Delta], other: list[Delta]) -> None:
    texts = ["a" + "".join(f" + {number(k)}*({x} - {y})" for k, x, y in items) for items in (one, other)]
    first, second = keys(folder, texts)
    assert (first == second) == (shares(one) == shares(other))


def test_one_changed_element_changes_the_key_and_a_copied_file_does_not(tmp_path: Path) -> None:
    models = some_models()
    write_models(tmp_path, models)
    expression = "a + (b - c)*0.3"
    before = plan(tmp_path, recipe(expression)).outputs[0].key
    t = models["b"]["w"]
    models["b"]["w"] = t._replace(data=t.data[:-1] + bytes([t.data[-1] ^ 1]))
    write(tmp_path / "b.safetensors", models["b"])
    changed = plan(tmp_path, recipe(expression)).outputs[0].key
    assert changed != before
    models["b"]["w"] = t
    write(tmp_path / "other name.safetensors", dict(reversed(models["b"].items())), {"note": "the same tensors"})
    text = recipe(expression).replace("b: b.safetensors", "b: other name.safetensors")
    assert plan(tmp_path, text).outputs[0].key == before


def test_an_unused_change_of_content_changes_nothing(tmp_path: Path) -> None:
    """d cancels out: what it holds does not matter."""
    models = some_models()
    write_models(tmp_path, models)
    text = recipe("a + (b - d) + (d - c)", NAMES)
    before = plan(tmp_path, text).outputs[0].key
    write(tmp_path / "d.safetensors", {n: t._replace(data=bytes(len(t.data))) for n, t in models["d"].items()})
    assert plan(tmp_path, text).outputs[0].key == before


def test_equal_files_under_two_names_are_one_term(tmp_path: Path) -> None:
    """The VAE that all models share: a + (b - c)*0.3 is then a copy of a's, whatever the rounding would do."""
    models = some_models()
    models["c"]["v"] = models["b"]["v"]
    write_models(tmp_path, models)
    build(tmp_path, recipe("a + (b - c)*0.3"))
    p = plan(tmp_path, recipe("a + (b - c)*0.3"))
    work = {w.name: w for w in p.outputs[0].works}
    assert work["v"].program == -1
    assert work["w"].program >= 0
    assert len(work["v"].reads) == 1


@pytest.mark.parametrize("codes", ["F16 F32 BF16 F64", "F32 F16 F16 F16"])
def test_mixed_dtypes_obey_the_same_laws(tmp_path: Path, codes: str) -> None:
    write_models(tmp_path, some_models(codes))
    ways = ["(a + (b - c)*0.3) + (d - b)*0.3", "a + (d - c)*0.3", "0.1*(d - c) + a + 0.2*d - c*0.2"]
    for dtype in ("float16", "float32", "float64"):
        assert len(set(keys(tmp_path, ways, None, dtype))) == 1
        assert len(set(hashes(tmp_path, ways, None, dtype))) == 1


def test_asserted_equalities(folder: Path) -> None:
    text = recipe("a + (b - c)*0.3", NAMES, more="assert: ['a + (b - d)*0.3 + (d - c)*0.3 == a + 3*(b - c)/10']\n")
    assert plan(folder, text).notes == ()
    wrong = text.replace("3*(b - c)/10", "(b - c)*0.31")
    with pytest.raises(RecipeError, match="the assertion does not hold"):
        plan(folder, wrong)


KERNELS = {
    "two methods, in another order": (
        "a + (ties(a, [b, c], density=0.2) - a)*0.5 + (slerp(a, d, t=0.3) - a)",
        "(slerp(a, d, t=0.3) - a) + a + (ties(a, [b, c], density=0.2) - a)*0.5",
    ),
    "the same method twice, told apart by arguments": (
        "ties(a, [b], density=0.2)*0.5 + ties(a, [b], density=0.7)*0.5",
        "ties(a, [b], density=0.7)/2 + ties(a, [b], density=0.2)/2",
    ),
    "methods of methods": (
        "slerp(ties(a, [b, c], density=0.2), d, t=0.5)*0.5 + ties(a, [b, c], density=0.2)*0.5",
        "ties(a, [c, b], density=0.2)*0.5 + slerp(ties(a, [c, b], density=0.2), d, t=0.5)*0.5",
    ),
    "one method, once and in two halves": (
        "slerp(a, b, t=0.5)*0.5 + slerp(a, b, t=0.5)*0.5",
        "slerp(a, b, t=0.5)",
    ),
}
OTHERS = {
    "shares that changed places": (
        "ties(a, [b], density=0.2)*0.6 + ties(a, [b], density=0.7)*0.4",
        "ties(a, [b], density=0.2)*0.4 + ties(a, [b], density=0.7)*0.6",
    ),
    "the operands of a method whose order counts": ("slerp(a, b, t=0.3)", "slerp(b, a, t=0.3)"),
    "inner methods that changed places": (
        "slerp(ties(a, [b], density=0.2), ties(a, [c], density=0.2), t=0.3)",
        "slerp(ties(a, [c], density=0.2), ties(a, [b], density=0.2), t=0.3)",
    ),
}


def _asserts(folder: Path, left: str, right: str) -> bool:
    try:
        plan(folder, recipe("a", NAMES, more=f"assert: ['{left} == {right}']\n"))
    except RecipeError as error:
        assert "the assertion does not hold" in error.message  # noqa: PT017  # any other is a mistake of the test
        return False
    return True


@pytest.mark.parametrize(("left", "right"), KERNELS.values(), ids=KERNELS)
def test_assertions_know_sums_of_methods_in_any_order(folder: Path, left: str, right: str) -> None:
    """What they say is what keys say."""
    assert _asserts(folder, left, right)
    assert len(set(keys(folder, [left, right]))) == 1


@pytest.mark.parametrize(("left", "right"), OTHERS.values(), ids=OTHERS)
def test_assertions_tell_methods_apart(folder: Path, left: str, right: str) -> None:
    assert not _asserts(folder, left, right)
    assert len(set(keys(folder, [left, right]))) == 2
