"""What YAML does silently, one trap at a time; limits; and the place of every character of a scalar."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from recipe_texts import HEAD, SMALL, answer, attempt, check

from mergeflow.errors import RecipeError
from mergeflow.recipe import load, loads, nodes
from mergeflow.recipe.places import SourceText
from mergeflow.recipe.yamltext import decode


def test_scalars_stay_text() -> None:
    recipe = loads(
        HEAD
        + "name: Yes\ndescription: 1:30\nnote: 0x1F\n"
        + "sources:\n  no: { path: 2024-01-01, hash: 01234567 }\n  on: { path: 1e3, hash: 925997e9 }\n"
        + "params:\n  t: 1e-3\n"
    )
    assert (recipe.name, recipe.description, recipe.note) == ("Yes", "1:30", "0x1F")
    assert recipe.sources["no"].hash == "01234567"
    assert recipe.sources["no"].path == "2024-01-01"
    assert recipe.sources["on"].hash == "925997e9"
    assert str(recipe.params["t"].value.code[0].value) == "1/1000"


def test_flow_commas_split_a_call() -> None:
    check(
        HEAD + "steps:\n  x: { expr: slerp(a, b, 0.5), vae: v }\n",
        "3:23",
        "inside { } YAML splits at commas",
        'quote the text: expr: "slerp(a, b, 0.5)"',
    )
    check(
        HEAD + "steps:\n  x: { method: f, models: [slerp(a, b), c] }\n",
        "3:28",
        "inside { } and [ ] YAML splits at commas, and this bracket is not closed",
        "slerp(a",
    )
    check(HEAD + "params:\n  k: { mbw: 1,0.9,0.7, BASE: 0 }\n", "3:15", "inside { } YAML splits at commas")


def test_a_colon_needs_its_space() -> None:
    check(HEAD + "params:\n  k: { BASE:0, IN00:0.3 }\n", "3:8", "BASE:0 has no space after its colon", "write BASE: 0")
    check(HEAD + "params:\n  k: { a }\n", "3:8", "a has no value")


def test_braces_inside_an_expression() -> None:
    check(HEAD + "steps:\n  x: ties(base, {a: 0.5}, density=0.2)\n", "3:19", "a second colon", "[a @ 0.5]")


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (r'"C:\new\anything.ckpt"', "U+0007"),
        (r'"C:\new.ckpt"', "contains a line break"),
        (r'"C:\tmp.ckpt"', "contains a tab"),
        (r'"C:\0.ckpt"', "U+0000"),
        (r'"C:\models\x.ckpt"', "begins an escape"),
        (r'"\ud800"', "begins an escape"),
        (r'"x\u0085y"', "contains U+0085"),
    ],
)
def test_escapes_in_paths(typed: str, message: str) -> None:
    error = answer(HEAD + f"sources:\n  a: {typed}\n")
    assert message in error.message
    assert "use / in paths, or single quotes" in error.hint
    assert error.place.line == 3


def test_the_same_path_in_single_quotes() -> None:
    assert loads(HEAD + "sources:\n  a: 'C:\\new\\anything.ckpt'\n").sources["a"].path == "C:\\new\\anything.ckpt"


def test_values_that_begin_with_a_bracket_or_quote() -> None:
    check(HEAD + "sources:\n  p: [Lah] Mysterious.ckpt\n", "3:12", "text after the closing bracket", "quotes")
    check(HEAD + "steps:\n  x: 'Any V3' + b\n", "3:15", "text after the closing quote", "double quotes")
    check(HEAD + 'steps:\n  x: "Any V3" + b\n', "3:15", "text after the closing quote", "single quotes")
    check(HEAD + "outputs:\n  {s}-x.safetensors: a\n", "3:3", "a key is one word", "begins with {")


@pytest.mark.parametrize("char", "%@`")
def test_values_that_begin_with_an_indicator(char: str) -> None:
    check(HEAD + f"steps:\n  x: {char}a\n", "3:6", f"YAML lets no text begin with {char}", f"'{char}…'")


def test_values_that_begin_with_a_star_or_a_dash() -> None:
    check(HEAD + "params:\n  k: { *.attn1.*: 0.5 }\n", "3:9", "YAML reads * and &", "'*.attn1.*'")
    check(HEAD + "steps:\n  x: *foo\n", "3:6", "YAML reads *foo as an alias", "quoted")
    check(HEAD + "steps:\n  x: - a\n", "3:6", "YAML reads - here as the beginning of a list")


def test_an_anchor_that_swallows_text() -> None:
    check(HEAD + "steps:\n  x: &a + b\n", "3:6", "YAML reads &a as an anchor", "quote")


def test_aliases_work() -> None:
    recipe = loads(HEAD + "sources: { a: &p x.ckpt, b: *p }\nparams:\n  k: &k { default: 0, OUT: 1 }\n  l: *k\n")
    assert recipe.sources["b"].path == "x.ckpt"
    assert recipe.params["l"].profile[0].selector == "OUT"


def test_keys_are_given_once() -> None:
    check(HEAD + "sources: { a: x, b: y }\nsources: {}\n", "3:1", "the key sources is given twice, first in line 2")
    check(HEAD + "params:\n  m: 1\n  m: 2\n", "4:3", "the key m is given twice, first in line 3")


def test_two_spellings_of_one_name_are_one_name() -> None:
    check(HEAD + "params:\n  m: 1\n  ｍ: 2\n", "4:3", "m is the name of two things")


def test_tags_merge_keys_and_question_marks() -> None:
    check(HEAD + "name: !!python/object:os.system x\n", "2:7", "YAML tags")
    check(HEAD + "name: !x y\n", "2:7", "YAML tags")
    check(HEAD + "sources: !!map {}\n", "2:10", "YAML tags")
    check(HEAD + "params: &p { m: 1 }\nsteps:\n  <<: *p\n", "4:3", "merge keys")
    check(HEAD + "? name\n: x\n", "2:3", "without ?")
    check(HEAD + "[a]: x\n", "2:1", "a key is one word")
    check(HEAD + "? [a]\n: x\n", "2:3", "a key is one word")


def test_comments_end_values() -> None:
    check(HEAD + "steps:\n  x: ties(a, [b, c], # two\n    density=0.2)\n", "4:5", "YAML cannot read", "a comment")


def test_indentation() -> None:
    check(HEAD + "sources:\n\ta: x\n", "3:1", "indented with a tab", "spaces")
    check(HEAD + "sources:\n  a: x\n b: y\n", "4:2", "YAML cannot read this line", "indentation")
    check(HEAD + "name: x\nab\n", "3:1", "this line is no key: value")


def test_quotes_and_brackets_that_never_close() -> None:
    check(HEAD + "name: 'x\nnote: y\n", "2:7", "a quote is opened here")
    check(HEAD + "name: [a, b\n", "2:7", "this bracket is opened here and never closed")


def test_documents() -> None:
    check(SMALL + "---\n" + SMALL, "5:1", "a recipe is one YAML document")
    for empty in ("", "# nothing\n", "~", "---\n"):
        assert "the recipe is empty" in answer(empty).message
    check("- a\n", "1:1", "a recipe is a mapping")
    check("hello", "1:1", "a recipe is a mapping")
    assert loads("%YAML 1.1\n---\n" + SMALL).outputs
    assert loads("\ufeff" + SMALL.replace("\n", "\r\n")).outputs


def test_control_characters() -> None:
    check(HEAD + "name: a\x01b\n", "2:8", "control character U+0001")
    check(HEAD + "name: a\ud800b\n", "2:8", "control character U+D800")


def test_nulls_where_something_is_needed() -> None:
    check(HEAD + "name:\n", "2:6", "name has no value")
    check(HEAD + "sources:\n  a:\n", "3:5", "the source a has no value")
    check(HEAD + "steps:\n  a: ~\n", "3:6", "the step a has no value", "quote")
    check(HEAD + "outputs:\n  a.safetensors:\n", "3:17", "the output a.safetensors has no value")
    assert loads(HEAD + "sources:\nsteps:\nparams:\noutputs:\n").sources == {}


# Limits


def test_depth() -> None:
    assert loads(HEAD + "x-deep: " + "[" * 38 + "]" * 38).extras
    assert "more than 40 deep" in answer(HEAD + "x-deep: " + "[" * 100_000).message
    chain = "x-0: &a0 [a]\n" + "".join(f"x-{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 60))
    assert "more than 40 deep" in answer(HEAD + chain).message


def test_alias_bombs() -> None:
    text = HEAD + "x-0: &a0 [a, a, a, a, a, a, a, a, a, a]\n"
    for i in range(1, 12):
        text += f"x-{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n"
    assert "expand to more than 10,000 nodes" in answer(text).message
    check(HEAD + "x-0: &a [*a]\n", "2:10", "nothing is anchored as &a")
    long = HEAD + f"steps:\n  s: &s {'a + ' * 200_000}a\n" + "".join(f"  s{i}: *s\n" for i in range(5000))
    assert "expand to more than 10,000 nodes" in answer(long).message


def test_sizes(tmp_path: Path) -> None:
    assert "at most 1,000,000" in answer(HEAD + "note: " + "a" * 1_000_001).message
    big = tmp_path / "big.yaml"
    big.write_bytes(b"#" * ((16 << 20) + 1))
    with pytest.raises(RecipeError, match="larger than 16 MB"):
        load(big)


def test_encodings(tmp_path: Path) -> None:
    for data, message, place in (
        (b"mergeflow: 1\nname: \xe9\n", "the file is not UTF-8 text", "2:7"),
        (SMALL.encode("utf-16"), "UTF-16", ""),
        (b"PK\x03\x04\x00\x01", "control character", "1:3"),
    ):
        path = tmp_path / "bad.yaml"
        path.write_bytes(data)
        with pytest.raises(RecipeError, match=message) as caught:
            load(path)
        assert str(caught.value.place) == f"{path}{':' if place else ''}{place}"


@pytest.mark.slow
def test_ten_thousand_steps() -> None:
    steps = "".join(f"  s{i}: s{i - 1} + (a - b) * 0.{i}\n" for i in range(1, 10_000))
    text = SMALL + "steps:\n  s0: a\n" + steps
    assert len(loads(text).steps) == 10_000


# Places


@given(
    st.sampled_from(["plain", "single", "double", "literal", "folded", "flow"]),
    st.lists(st.text(alphabet="ab柚+*'()é", min_size=1, max_size=6), min_size=1, max_size=8),
    st.lists(st.sampled_from([" ", "  ", "\n", "\n\n"]), min_size=8, max_size=8),
)
@settings(max_examples=400, deadline=None)
def test_every_character_of_a_scalar_has_its_place(style: str, words: list[str], gaps: list[str]) -> None:
    words = [f"x{word}" for word in words]
    body = words[0] + "".join(gap + word for gap, word in zip(gaps, words[1:], strict=False))
    if style == "single":
        body = body.replace("'", "''")
    indented = body.replace("\n", "\n    ")
    text = {
        "plain": f"k: {indented}\nz: 1\n",
        "single": f"k: '{indented}'\nz: 1\n",
        "double": f'k: "{indented}"\nz: 1\n',
        "literal": f"k: |  # why\n    {indented}\nz: 1\n",
        "folded": f"k: >-\n    {indented}\nz: 1\n",
        "flow": f"k: {{ s: {indented} }}\nz: 1\n",
    }[style]
    node = nodes.compose(SourceText("f", text)).items["k"][1]
    if isinstance(node, nodes.Mapping):
        node = node.items["s"][1]
    assert isinstance(node, nodes.Scalar)
    lines = text.split("\n")
    found = []
    for at, char in enumerate(node.value):
        if not char.isspace():
            place = node.place(at)
            assert lines[place.line - 1][place.column - 1] == char
            found.append((place.line, place.column))
    assert found == sorted(set(found))


@pytest.mark.parametrize(
    ("yaml_text", "place"),
    [
        ("x: a + $b", "3:10"),
        ("x: &k a + $b\n  y: *k", "3:13"),
        ("x: 'it''s' + $b", None),
        ("x: '\"it''s\" + $b'", "3:17"),
        ("x: |\n    a +\n      $b", "5:7"),
        ("x: >-\n    a +\n    $b", "5:5"),
        ("x: a +\n\n    b +\n    $b", "6:5"),
        ('x: "a +\n    $b"', "4:5"),
        ('x: "a\\x20+ $b"', "3:6"),
        ("x: { expr: a + $b }", "3:18"),
        ("x: { method: f, k: [a, b + $b] }", "3:30"),
        ("x: { method: f, models: { a: 1, b: 2 * $b } }", "3:42"),
    ],
)
def test_errors_in_expressions_point_into_the_file(yaml_text: str, place: str | None) -> None:
    error = answer(HEAD + f"steps:\n  {yaml_text}\n")
    if place:
        assert "$ means nothing" in error.message
        assert str(error.place) == f"mix.yaml:{place}"


def test_places_of_instructions_in_composed_lists() -> None:
    text = HEAD + "steps:\n  x:\n    method: ties\n    models:\n      a: 0.5\n      'b c': { weight: 1 - m }\n"
    models = loads(text, "mix.yaml").steps["x"].arguments["models"]
    places = {str(i.value): str(models.place(i.offset)) for i in models.code if i.op in ("name", "number")}
    assert places == {
        "a": "mix.yaml:6:7", "1/2": "mix.yaml:6:10", "b c": "mix.yaml:7:7", "1": "mix.yaml:7:24", "m": "mix.yaml:7:28",
    }  # fmt: skip


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_read_or_answered(data: bytes) -> None:
    error = attempt(lambda: nodes.compose(decode(b"mergeflow: 1\n" + data, "f")))
    assert error is None or error.place is not None


@given(st.text(alphabet="ab:-?[]{},&*#!|>'\"%@` \n\t1\\", max_size=40))
@settings(max_examples=1500, deadline=None)
def test_near_yaml_is_read_or_answered(text: str) -> None:
    error = attempt(loads, HEAD + "steps:\n  " + text + "\n")
    assert error is None or error.place is not None


def test_the_reader_without_libyaml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "_LOADER", yaml.SafeLoader)
    assert loads(SMALL).steps == {}
    check(HEAD + "sources:\n\ta: x\n", "3:1", "indented with a tab")
    assert "escape" in answer(HEAD + 'name: "C:\\models"\n').message
