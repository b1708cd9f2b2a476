"""Slips that a newcomer makes: each is answered with what was meant."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.commands import run
from support.tiny_models import SD1_BLOCKS, write_model

from mergeflow.build.targets import choose
from mergeflow.errors import MissingInput, RecipeError, UnknownName
from mergeflow.formats.files import ReadFile
from mergeflow.plan.bind import bind
from mergeflow.recipe import loads
from mergeflow.recipe.expression import parse

RECIPE = """\
mergeflow: 1
sources: { a: a.safetensors, b: b.safetensors }
params: { k: { PROFILE } }
steps: { s: { STEP } }
outputs: { o.safetensors: "EXPRESSION" }
"""
PARTS = {"PROFILE": "default: 0, IN00: 1", "STEP": "method: weighted_sum, a: a, b: b, m: k", "EXPRESSION": "s"}


@pytest.mark.parametrize(
    ("part", "text", "hint"),
    [
        ("PROFILE", "default: 0, IN0: 1", "did you mean IN00?"),
        ("PROFILE", "default: 0, IN0-IN05: 1", "did you mean IN00?"),
        ("PROFILE", "defautl: 0, IN00: 1", "did you mean default?"),
        ("PROFILE", "swep: [0, 1]", "did you mean sweep?"),
        ("PROFILE", "default: 0, IN00..IN05: 1", "write IN00-IN05"),
        ("PROFILE", "default: 0, te: 1", "did you mean text_encoder?"),
        ("PROFILE", "default: 0, MID: 1", "did you mean M00?"),
        ("PROFILE", "default: 0, VEA9: 1", "BASE, IN00-IN11, M00, OUT00-OUT11"),
        ("PROFILE", "default: 0, OUT 0.6", "write OUT: 0.6"),
        ("PROFILE", "prest: GRAD_V, BASE: 0", "written preset: GRAD_V"),
        ("PROFILE", "mbw: GRAD_V, BASE: 0", "goes under preset: GRAD_V"),
        ("PROFILE", "swep: { from: 0, to: 1, by: 0.5 }", "did you mean sweep?"),
        ("PROFILE", "default: 0, '*': { gradient: 0, 1 }", "gradient: [0, 1]"),
        ("PROFILE", "default: 0, IN00: 0,5", "write 0.5"),
        ("STEP", "mehtod: weighted_sum, a: a, b: b, m: k", "did you mean method?"),
        ("STEP", "method: weighted-sum, a: a, b: b, m: k", "letters, digits and _: weighted_sum"),
        ("EXPRESSION", "0.5a + 0.5b", "a product is written out: 0.5 * a;"),
        ("EXPRESSION", "weighted-sum(a, b, 0.3)", "did you mean weighted_sum?"),
        ("EXPRESSION", "a(0.5) + b(0.5)", "a product is written a * (…)"),
        ("EXPRESSION", "mean(a, b)", "did you mean average(models)?"),
        ("EXPRESSION", "a * 0.5 and b * 0.5", "write + in place of and"),
        ("EXPRESSION", "average(a; b)", "arguments are separated by commas"),
        ("EXPRESSION", "ties(a, [b], 0,2)", "write 0.2; or 0, 2, if they are two"),
        ("EXPRESSION", "linear([a @ 1,05, b])", "write 1.05;"),
        ("EXPRESSION", "a*0.5 + b*0.5,", "leave it out"),
        ("EXPRESSION", "a, b", "average(a, b)"),
        ("EXPRESSION", "average a, b", "a call has brackets: average(a, b)"),
        ("EXPRESSION", "weighted_sum(a.safetensors, b, 0.3)", "a file gets a name first, as a source;"),
    ],
)
def test_what_was_meant(part: str, text: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        write_model(Path(f"{name}.safetensors"), SD1_BLOCKS, name)
    recipe = RECIPE
    for place, usual in PARTS.items():
        recipe = recipe.replace(place, text if place == part else usual)
    Path("recipe.yaml").write_text(recipe)
    assert hint in run("plan", exit_code=2).stderr


def test_a_device_by_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text("mergeflow: 1\nsources: { a: a.safetensors }\noutputs: { o.safetensors: a }\n")
    assert "did you mean cuda?" in run("plan", "--device", "gpu", exit_code=2).stderr


@pytest.mark.parametrize(
    ("line", "said", "hint"),
    [
        ("mergeflow: v1", "not a version", "write mergeflow: 1"),
        ("merge_method: linear", "the key mergeflow is missing", "`mergeflow import FILE`"),
        ("mergeflow: 1\ntitle: mine", "the title of a recipe is name:", "modelspec.title"),
        ("mergeflow: 1\noptions: { threads: 4 }", "the machine's business", "--jobs"),
        ("mergeflow: 1\nparams: { s: 0 to 1 by 0.1 }", "is a range of numbers", "from: 0, to: 1, by: 0.1"),
        ("mergeflow: 1\nparams:\n  k:", "the param k has no value", "write k: 0.3"),
        ("mergeflow: 1\nsources: { a: { file: a.safetensors } }", "the file of a source is path:", "in place of file:"),
        ("mergeflow: 1\noutputs: { o.safetensors: { from: a, prune: yes } }", "is drop:", "drop: [ema, junk]"),
        (
            "mergeflow: 1\noutputs: { o.safetensors: { from: a*0,5 + b*0.5, dtype: float16 } }",
            "0,5 is not",
            "write 0.5",
        ),
        ("mergeflow: 1\noutputs: { o.safetensors: [a, b] }", "not a list", "average([a, b])"),
    ],
)
def test_what_is_written_instead(line: str, said: str, hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        loads(f"{line}\n")
    assert said in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("~/a.safetensors", "write the path out"),
        ("$MODELS/a.safetensors", "write the path out"),
        ("models/*.safetensors", "a source is one file, or a list"),
        ("\u201ca.safetensors\u201d", "typographic quotes"),
    ],
)
def test_a_path_as_a_shell_would_read_it(path: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(
        f"mergeflow: 1\nsources: {{ a: '{path}' }}\noutputs: {{ o.safetensors: a }}\n", encoding="utf-8"
    )
    said = run("plan", exit_code=4).stderr
    assert hint in said
    assert "--source a=PATH" in said


def test_a_param_that_nothing_uses_yet_may_be_for_any_model() -> None:
    profile = '{ default: 0, layers.0-15: 1, D03: 1, VAE: 0, w: 1, "*.attn1.*": 0.5, a.b.weight: 1 }'
    later = "{ sweep: { x: { preset: SDXL_GRAD_V, BASE: 0 }, y: 0.5 } }"
    text = f"mergeflow: 1\nsources: {{ a: a.safetensors }}\nparams: {{ m: 0.5, k: {profile}, s: {later}, n: m }}\n"
    bound = bind(loads(text + "assert: [m < 1]\noutputs: { o.safetensors: a }\n"))
    assert bound.unused == ("k", "s", "n")


@pytest.mark.parametrize("call", ["f(a, 0, 2)", "f(a, 1,0)", "f(a, 0.0,2)", "f(a, [1,2,3])", "f(a, 0,1)"])
def test_numbers_that_commas_part(call: str) -> None:
    assert parse(call).text == call


def test_a_name_where_there_are_no_models() -> None:
    with pytest.raises(UnknownName) as caught:
        bind(loads("mergeflow: 1\noutputs: { o.safetensors: nai }\n"))
    assert caught.value.hint == "a model has a line under sources: nai: FILE"


def test_a_folder_that_is_called_almost_so(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "mix.yaml").touch()
    with pytest.raises(MissingInput) as caught:
        ReadFile(tmp_path / "model/a.safetensors")
    assert caught.value.hint == "did you mean models?"
    with pytest.raises(MissingInput) as caught:
        ReadFile(tmp_path / "mix.safetensors")
    assert caught.value.hint == ""


def test_an_output_by_its_name_alone() -> None:
    bound = bind(loads("mergeflow: 1\nsources: { a: a.safetensors }\noutputs: { build/mix-1.safetensors: a }\n"))
    with pytest.raises(UnknownName) as caught:
        choose(bound, ["mix-1"])
    assert caught.value.hint == "did you mean build/mix-1.safetensors?"
