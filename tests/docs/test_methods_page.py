"""The pages of methods: their examples work, and they say what a page has to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.tiny_models import SD1, settings, write_model

import mergeflow
from mergeflow.cli.main import cli
from mergeflow.methods.registry import built_in

METHODS = built_in()
EXAMPLES = [(name, example) for name, method in METHODS.items() for example in method.examples]
NO_SOURCE = {"average", "clip", "subtract", "scale", "linear"}  # what everybody has always done


MODELS = ("base", "a", "b", "c", "fa", "fb")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in MODELS:
        write_model(folder / f"{name}.safetensors", SD1, seed=name)
    return folder


@pytest.mark.parametrize(("name", "example"), EXAMPLES)
def test_every_example_works(tmp_path: Path, models: Path, name: str, example: str) -> None:
    assert name in example
    sources = ", ".join(f"{model}: {models / model}.safetensors" for model in MODELS)
    text = f"mergeflow: 1\nsources: {{ {sources} }}\noutputs:\n  mix.safetensors: {example}\n"
    (tmp_path / "recipe.yaml").write_text(text)
    with mergeflow.load(tmp_path / "recipe.yaml", settings=settings(tmp_path)) as project:
        assert [output.built for output in project.build().outputs] == [True]


def test_every_method_has_an_example_and_they_are_listed_one_line_each() -> None:
    assert [name for name, method in METHODS.items() if not method.examples] == []
    lines = CliRunner().invoke(cli, ["methods"]).stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(METHODS)
    assert all(method.formula in line for method, line in zip(METHODS.values(), lines, strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_a_page_has_the_formula_the_parameters_the_tier_and_a_source(name: str) -> None:
    method = METHODS[name]
    page = CliRunner().invoke(cli, ["methods", name]).stdout
    assert page.startswith(f"{method.signature}\n\n{method.formula}\n")
    assert f"reproducible: {method.tier}" in page
    whole = any(kernel.access == "tensor" for kernel in method.kernels)
    assert f"\nmemory: {'whole tensors' if whole else 'a few tiles'}" in page
    assert all(re.search(rf"^ *{p.name}  ", page, re.MULTILINE) for p in method.parameters)
    words = r"arXiv:\d{4}\.\d{5}|\b1[89]\d\d\b|\b20\d\d\b|no paper|supermerger|sd-mecha|mergekit|meh\b|`\w+`"
    assert name in NO_SOURCE or re.search(words, method.doc), "where the formula comes from"
