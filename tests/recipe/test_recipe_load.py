"""Files: includes, what is missing, overrides of the command line, and the recipe of a single merge."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from recipe_texts import HEAD, SMALL, attempt

from mergeflow.errors import MissingInput, RecipeError, UnknownName
from mergeflow.recipe import find_recipe, from_command, load, loads, spell


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / f"{name}.yaml"
        path.write_text(HEAD + text, encoding="utf-8")


def failure(path: Path) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        load(path)
    return caught.value


def test_a_recipe_knows_its_file(tmp_path: Path) -> None:
    path = tmp_path / "柚子 mix.yaml"
    path.write_text(SMALL, encoding="utf-8")
    recipe = load(path)
    assert (recipe.path, recipe.files, recipe.text) == (path, (path,), SMALL)
    assert recipe.sources["a"].folder == tmp_path


def test_a_missing_recipe(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="there is no recipe"):
        load(tmp_path / "no.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        load(tmp_path)
    loop = tmp_path / "loop.yaml"
    loop.symlink_to(loop)
    with pytest.raises(RecipeError, match="cannot be read"):
        load(loop)


def test_includes_bring_sources_and_params(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    write(tmp_path / "lib", base="sources: { a: a.ckpt }\nparams: { m: 0.3 }\nsteps: { s: a }\n")
    write(tmp_path, main="include: lib\\base.yaml\nsources: { b: b.ckpt }\nsteps: { s: a + b }\n")
    recipe = load(tmp_path / "main.yaml")
    assert recipe.include == ("lib/base.yaml",)
    assert {name: s.folder for name, s in recipe.sources.items()} == {"a": tmp_path / "lib", "b": tmp_path}
    assert list(recipe.params) == ["m"]
    assert recipe.steps["s"].expr.text == "a + b"
    assert [f.name for f in recipe.files] == ["main.yaml", "base.yaml"]


def test_the_same_content_may_come_twice(tmp_path: Path) -> None:
    write(
        tmp_path,
        base="sources: { a: a.ckpt, l: [x, y] }\nparams: { k: { default: 0.30, OUT: 1 } }\n",
        left="include: base.yaml\n",
        right="include: [base.yaml]\nsources: { a: { path: ./a.ckpt, note: again } }\n",
        main="include: [left.yaml, right.yaml]\nparams: { k: { OUT: 1, default: 0.3 } }\n",
    )
    assert list(load(tmp_path / "main.yaml").sources) == ["a", "l"]


@pytest.mark.parametrize(
    ("base", "main", "what"),
    [
        ("sources: { a: a.ckpt }", "sources: { a: b.ckpt }", "the source a is declared differently"),
        ("sources: { a: [x, y] }", "sources: { a: [x, z] }", "the source a is declared differently"),
        ("params: { m: 0.3 }", "params: { m: 0.4 }", "the param m is declared differently"),
        ("params: { m: 0.3 }", "params: { m: { default: 0.3 } }", "the param m is declared differently"),
        ("sources: { m: x }", "params: { m: 0.4 }", "m is the name of two things"),
        ("sources: { m: x }", "steps: { m: a }", "m is the name of two things"),
    ],
)
def test_other_content_under_the_same_name(tmp_path: Path, base: str, main: str, what: str) -> None:
    write(tmp_path, base=base, main=f"include: base.yaml\n{main}")
    error = failure(tmp_path / "main.yaml")
    assert what in error.message
    assert f"{tmp_path / 'base.yaml'}:2:" in error.message
    assert str(error.place).startswith(f"{tmp_path / 'main.yaml'}:3:")


def test_includes_that_go_wrong(tmp_path: Path) -> None:
    write(
        tmp_path, a="include: b.yaml\n", b="include: a.yaml\n", self="include: self.yaml\n", none="include: no.yaml\n"
    )
    error = failure(tmp_path / "a.yaml")
    assert "include each other: a.yaml -> b.yaml -> a.yaml" in error.message
    assert str(error.place) == f"{tmp_path / 'b.yaml'}:2:10"
    assert "include each other" in failure(tmp_path / "self.yaml").message
    with pytest.raises(MissingInput) as caught:
        load(tmp_path / "none.yaml")
    assert str(caught.value.place) == f"{tmp_path / 'none.yaml'}:2:10"


def test_includes_have_a_depth(tmp_path: Path) -> None:
    for i in range(40):
        write(tmp_path, **{f"r{i}": f"include: r{i + 1}.yaml\n" if i < 39 else "sources: { a: x }\n"})
    assert "more than 32 deep" in failure(tmp_path / "r0.yaml").message
    assert list(load(tmp_path / "r8.yaml").sources) == ["a"]


def test_many_ways_to_one_include_are_read_once(tmp_path: Path) -> None:
    for i in range(30):
        write(
            tmp_path, **{f"r{i}": f"include: [r{i + 1}.yaml, ./r{i + 1}.yaml]\n" if i < 29 else "sources: { a: x }\n"}
        )
    assert list(load(tmp_path / "r0.yaml").sources) == ["a"]


def test_find_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"there is no recipe\.yaml") as caught:
        find_recipe(tmp_path)
    write(tmp_path, one="", two="")
    with pytest.raises(RecipeError) as caught:
        find_recipe(tmp_path)
    assert caught.value.hint == "name one of one.yaml, two.yaml"
    write(tmp_path, recipe="")
    assert find_recipe(tmp_path) == tmp_path / "recipe.yaml"
    with pytest.raises(RecipeError):
        find_recipe(tmp_path / "nowhere")


# --set and --source

KNOBS = SMALL + "params:\n  m: 0.3\n  k: { default: 0, OUT05: 0.5, layers.1: 1 }\n  a.b: 2\n"


def test_set_a_param() -> None:
    recipe = loads(KNOBS, overrides={"m": "0.25", "a.b": "1/3"})
    assert recipe.params["m"].value.code[0].value == Fraction(1, 4)
    assert recipe.params["a.b"].value.text == "1/3"
    assert recipe.overrides == ("m=0.25", "a.b=1/3")
    assert loads(KNOBS, overrides={"k": "0.5"}).params["k"].profile == ()


def test_set_a_selector() -> None:
    recipe = loads(KNOBS, overrides={"k.OUT05": "0.7", "k.layers.1": "2", "k.IN": "3", "m.OUT": "4", "a.b.IN": "5"})
    assert [(e.selector, e.numbers[0].text) for e in recipe.params["k"].profile] == [
        ("OUT05", "0.7"), ("layers.1", "2"), ("IN", "3"),
    ]  # fmt: skip
    m = recipe.params["m"]
    assert (m.value, m.default.text, m.profile[0].numbers[0].text) == (None, "0.3", "4")
    assert recipe.params["a.b"].profile[0].selector == "IN"
    assert loads(KNOBS, overrides={"k.default": "9"}).params["k"].default.text == "9"


def test_set_a_preset_or_a_list() -> None:
    listed = loads(KNOBS, overrides={"k.preset": "COSINE", "k.blocks": "sd1", "k.BASE": "0"}).params["k"]
    assert (listed.listed.preset, listed.listed.mbw, listed.listed.blocks) == ("COSINE", None, "sd1")
    assert listed.profile[-1].selector == "BASE"
    assert str(listed.listed.place).startswith("--set")
    other = loads(KNOBS, overrides={"k.preset": "COSINE", "k.blocks": "sd1", "k.mbw": "1,0,1"}).params["k"]
    assert (other.listed.preset, other.listed.mbw, other.listed.blocks) == (None, "1,0,1", "sd1")
    number = loads(KNOBS, overrides={"m.preset": "COSINE"}).params["m"]
    assert (number.value, number.default.text, number.listed.preset) == (None, "0.3", "COSINE")


def test_source_override() -> None:
    text = HEAD + f"sources: {{ a: {{ path: a, sha256: {'0' * 64}, kind: delta, arch: sd1 }} }}\n"
    recipe = loads(text, folder=Path("/x"), source_overrides={"a": "other\\b.ckpt"})
    source = recipe.sources["a"]
    assert (source.path, source.sha256, source.kind, source.arch) == ("other/b.ckpt", None, "delta", "sd1")
    assert source.folder == Path()
    assert recipe.overrides == ("a=other/b.ckpt",) or recipe.overrides == ("a=other\\b.ckpt",)


@pytest.mark.parametrize(
    ("overrides", "sources", "place", "message"),
    [
        ({"mm": "1"}, {}, "--set:1:4", "no param is called mm"),
        ({"x.OUT": "1"}, {}, "--set:1:7", "no param is called x.OUT"),
        ({"m": "30%"}, {}, "--set:1:3", "30% is not a number"),
        ({"m": "0:1:0.5"}, {}, "--set:1:3", "a range of numbers"),
        ({"m": ""}, {}, "--set:1:3", "the expression is empty"),
        ({"k.": "1"}, {}, "--set:1:4", "names no block"),
        ({}, {"bb": "x"}, "--source:1:4", "no source is called bb"),
        ({}, {"a": "hf:x/y"}, "--source:1:3", "Hugging Face"),
    ],
)
def test_overrides_that_go_wrong(overrides: dict[str, str], sources: dict[str, str], place: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        loads(KNOBS, overrides=overrides, source_overrides=sources)
    assert message in caught.value.message
    assert str(caught.value.place) == place


def test_an_unknown_override_names_the_nearest() -> None:
    with pytest.raises(UnknownName) as caught:
        loads(SMALL + "params: { strength: 1 }\n", overrides={"strengthh": "2"})
    assert "did you mean strength?" in caught.value.hint


# mergeflow merge


def test_a_merge_becomes_a_recipe() -> None:
    names = {"a": "anything.safetensors", "b": "My Model.ckpt", "c": "柚子: 1.ckpt", "m": "0.3"}
    recipe = from_command("a + (b - c) * m", names, "out/mix.safetensors", "fp16")
    assert recipe.text == (
        "mergeflow: 1\nsources:\n  a: anything.safetensors\n  b: My Model.ckpt\n  c: '柚子: 1.ckpt'\n"
        "params:\n  m: 0.3\noutputs:\n  out/mix.safetensors:\n    from: a + (b - c) * m\n    dtype: fp16\n"
    )
    again = loads(recipe.text, "command line")
    assert again == recipe


texts = st.text(alphabet="ab柚'\":#,{}[]&*!|>%@`\\ -?~0.", min_size=1, max_size=15).map(str.strip)


@given(
    st.dictionaries(texts.filter(lambda t: bool(t) and not ("'" in t and '"' in t)), texts.filter(bool), max_size=4),
    texts.filter(lambda t: bool(t) and not set(t) & set("{}")),
)
@settings(max_examples=300, deadline=None)
def test_any_names_and_paths_survive_quoting(names: dict[str, str], output: str) -> None:
    expr = " + ".join(map(spell, names)) or "x"
    path = f"{output}o.safetensors"
    error = attempt(from_command, expr, names, path)
    if error:
        assert any(word in error.message for word in ("of numbers", "of two things", "no ..", "not in this version"))
        return
    recipe = from_command(expr, names, path)
    assert {*recipe.sources, *recipe.params} == set(names)
    assert all(
        recipe.sources[n].path.replace("\\", "/") == p.replace("\\", "/")
        for n, p in names.items()
        if n in recipe.sources
    )
    (made,) = recipe.outputs
    assert made.replace("\\", "/") == path.replace("\\", "/")
    assert recipe.outputs[made].expr.text == expr
    assert set(yaml.safe_load(recipe.text)) >= {"mergeflow", "outputs"}


def test_an_expression_of_several_lines() -> None:
    recipe = from_command("a # base\n  + b\n", {"a": "x", "b": "y"}, "o.safetensors", "bf16")
    assert recipe.outputs["o.safetensors"].expr.names == ("a", "b")
    assert from_command("a\n+ b", {"a": "x", "b": "y"}, "o.safetensors").outputs["o.safetensors"].expr.text == "a\n+ b"


@pytest.mark.parametrize(
    ("expr", "names", "output", "place", "message"),
    [
        ("a + 30%", {"a": "x"}, "o.safetensors", "expression:1:5", "30% is not a number"),
        ("a", {"a": "hf:x/y"}, "o.safetensors", "command line:3:6", "Hugging Face"),
        ("a", {"a": "x", "m": "0:1:0.25"}, "o.safetensors", "command line:1:3", "not a range of numbers"),
        ("a", {"a": "x\ny"}, "o.safetensors", "command line:1:3", "contains a line break"),
        ("a", {"a": ""}, "o.safetensors", "command line:1:3", "a is empty"),
        ("a", {"a": "x"}, "o.gguf", "command line:5:3", "a .gguf file cannot be written"),
        ("a", {"a": "x"}, "o" * 2000 + ".safetensors", "command line:1:1", "longer than 1000"),
    ],
)
def test_merges_that_go_wrong(expr: str, names: dict[str, str], output: str, place: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        from_command(expr, names, output)
    assert message in caught.value.message
    assert str(caught.value.place) == place
