"""Architectures of a user's own: found in the configuration, in MERGEFLOW_ARCH, or beside a recipe; never in the way of
ours, and in a key only by what they change."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.commands import run, run_json

from mergeflow import arch
from mergeflow.arch import registry
from mergeflow.build.project import Project
from mergeflow.build.settings import Settings
from mergeflow.cli import complete
from mergeflow.errors import MergeflowError, RecipeError, UnknownName
from mergeflow.events import Warned
from mergeflow.recipe import loads

MINE = """
title = "a small network"
buffers = ["*.table"]
[components]
net = ["net.*"]
[aliases]
"module.net." = "net."
[[detect]]
part = "network"
why = "it has a first layer"
has = { "net.layer0.weight" = [-1, -1] }
"""
SD1 = (registry.DATA / "sd1.toml").read_text(encoding="utf-8")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the user's own architectures, empty."""
    monkeypatch.setenv("MERGEFLOW_CONFIG", str(tmp_path / "config"))
    monkeypatch.delenv("MERGEFLOW_ARCH", raising=False)
    folder = tmp_path / "config" / "architectures"
    folder.mkdir(parents=True)
    return folder


def write(path: Path, text: str = MINE) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def model(seed: int, before: str = "") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    names = {"net.layer0.weight": (4, 4), "net.layer0.table": (4,)}
    return {before + n: rng.standard_normal(s).astype(np.float16) for n, s in names.items()}


def planned(folder: Path, more: str, source: str = "", build: bool = False, expression: str = "a*0.5 + b*0.5"):
    """The key of a merge of a and b, and what was warned of."""
    save_file(model(1), folder / "a.safetensors")
    save_file(model(2, "module."), folder / "b.safetensors")
    sources = f"{{ a: {{ path: a.safetensors{source} }}, b: {{ path: b.safetensors{source} }} }}"
    text = f"mergeflow: 1\n{more}\nsources: {sources}\noutputs: {{ x.safetensors: {expression} }}\n"
    heard: list[object] = []
    settings = Settings(folder, cache=folder / "cache", memo=folder / "memo")
    with Project(loads(text, folder=folder), settings, heard.append) as project:
        key = project.plan().outputs[0].key
        if build:
            project.build()
    return key, [e.message for e in heard if isinstance(e, Warned)]


@pytest.mark.parametrize("how", ["of the recipe", "of each source"])
def test_a_recipe_names_a_file_beside_it(tmp_path: Path, config: Path, how: str) -> None:
    write(tmp_path / "mine.toml")
    more, source = ("arch: ./mine.toml", "") if how == "of the recipe" else ("", ", arch: ./mine.toml")
    planned(tmp_path, more, source, build=True)
    made, a, b = load_file(tmp_path / "x.safetensors"), model(1), model(2)
    assert made["net.layer0.table"].tobytes() == a["net.layer0.table"].tobytes()  # a buffer is not averaged
    wanted = (a["net.layer0.weight"].astype(np.float64) + b["net.layer0.weight"]) / 2
    assert np.array_equal(made["net.layer0.weight"], wanted.astype(np.float16))


def test_they_are_found_by_name_where_the_user_keeps_them(
    tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnknownName, match="no architecture is called mine"):
        planned(tmp_path, "arch: mine")
    beside = planned(tmp_path, f"arch: {json.dumps(str(write(tmp_path / 'mine.toml')))}")
    write(config / "mine.toml")
    assert planned(tmp_path, "arch: mine") == beside
    (config / "mine.toml").unlink()
    (tmp_path / "more").mkdir()
    write(tmp_path / "more/mine.toml")
    monkeypatch.setenv("MERGEFLOW_ARCH", os.pathsep.join([str(tmp_path / "more"), str(write(tmp_path / "other.toml"))]))
    assert arch.user_names() == ("mine", "other")
    assert planned(tmp_path, "arch: mine") == planned(tmp_path, "arch: other") == beside


def test_a_model_is_recognised_by_them_and_the_recipe_should_say_so(tmp_path: Path, config: Path) -> None:
    with pytest.raises(RecipeError, match="none of the tensors"):
        planned(tmp_path, "", build=True)  # the names of b are another tool's
    write(config / "mine.toml")
    assert arch.recognise({n: v.shape for n, v in model(1).items()})[0].name == "mine"
    key, warned = planned(tmp_path, "", build=True)
    assert any("a is a small network by" in w and "`arch:`" in w for w in warned)
    assert planned(tmp_path, "arch: mine")[0] == key


def test_equal_results_have_equal_keys(tmp_path: Path, config: Path) -> None:
    mine = planned(tmp_path, f"arch: {write(tmp_path / 'mine.toml')}")[0]
    other = MINE.replace("a small network", "other words").replace("net =", "weights =") + 'lacks = ["x"]\n'
    assert planned(tmp_path, f"arch: {write(tmp_path / 'other.toml', other)}")[0] == mine
    averaged = MINE.replace('"*.table"', '"*.nothing"')
    assert planned(tmp_path, f"arch: {write(tmp_path / 'third.toml', averaged)}")[0] != mine


def test_a_profile_by_their_components_is_its_numbers(tmp_path: Path, config: Path) -> None:
    write(tmp_path / "mine.toml")
    more = "arch: ./mine.toml\nparams: { k: { default: 0, net: 0.5 } }"
    profiled = planned(tmp_path, more, expression="a*(1 - k) + b*k")[0]
    assert profiled == planned(tmp_path, "arch: ./mine.toml")[0]


def test_ours_come_first_and_keep_their_names(tmp_path: Path, config: Path) -> None:
    write(config / "mine.toml", SD1.replace("Stable Diffusion 1", "mine"))
    shapes = {"model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768)}
    assert arch.recognise(shapes)[0] is arch.get("sd1")
    write(tmp_path / "sd1.toml")
    with pytest.raises(RecipeError, match="an architecture called sd1 already"):
        planned(tmp_path, "arch: ./sd1.toml")


def test_two_of_one_name(tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(config / "mine.toml")
    monkeypatch.setenv("MERGEFLOW_ARCH", str(write(tmp_path / "mine.toml")))
    with pytest.raises(RecipeError, match="two architectures are called mine"):
        arch.user_names()


def test_a_build_that_is_done_sees_that_one_has_changed(tmp_path: Path, config: Path) -> None:
    save_file(model(1), tmp_path / "a.safetensors")
    save_file(model(2), tmp_path / "b.safetensors")
    recipe = tmp_path / "recipe.yaml"
    write(recipe, "mergeflow: 1\narch: ./mine.toml\nsources: { a: a.safetensors, b: b.safetensors }\n"
                  "outputs: { x.safetensors: a*0.5 + b*0.5 }\n")  # fmt: skip
    for text, said in ((MINE, "wrote"), (MINE, "up to date"), (MINE.replace("*.table", "*.none"), "wrote")):
        write(tmp_path / "mine.toml", text)
        os.utime(tmp_path / "mine.toml", ns=(1, 1))
        result = run("build", recipe, "--output-root", tmp_path)
        assert said in result.output


def test_the_command_lists_shows_and_checks_them(tmp_path: Path, config: Path) -> None:
    path = write(config / "mine.toml")
    assert f"from {path}" in run("arch").stdout
    assert "a small network" in run("arch", "mine").stdout
    assert "a small network" in run("arch", "--check", path).stdout
    (entry,) = run_json("arch", path)["architectures"]
    assert [item.value for item in complete.architectures(None, None, "mi")] == ["mine"]  # type: ignore[arg-type]
    assert (entry["name"], entry["components"]) == ("mine", {"net": ["net.*"]})
    assert run_json("arch", "sd1")["architectures"][0]["from"] == "mergeflow"


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        (MINE.replace("[components]", "[component]"), 4, "component means nothing here"),
        (MINE.replace('["net.*"]', '"net.*"'), 5, "components.net: expected a list of texts"),
        (MINE.replace('"net."', "3"), 7, 'aliases."module.net.": expected a text, not 3'),
        (MINE.replace('"network"', '"lamp"'), 9, "detect 1.part: it is one of"),
        (MINE.replace("[-1, -1]", '["x"]'), 11, 'detect 1.has."net.layer0.weight"'),
        (MINE + '[[detect]]\npart = "vae"\nwhy = 1\nhas = { a = "*" }\n', 14, "detect 2.why: expected a text"),
        (MINE + "[[detect]]\npart = 'vae'\nhas = { a = '*' }\n", 12, "detect 2.why: it is missing"),
        (MINE.replace('"*.table"', '"a.*"'), 3, "buffers: a buffer is a whole name"),
        (MINE + "[blocks\n", 12, "not TOML"),
        ("a = " + "[" * 3000, 0, "nested"),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path: Path, text: str, line: int, said: str) -> None:
    path = write(tmp_path / "mine.toml", text)
    with pytest.raises(MergeflowError) as caught:
        arch.load_file(path)
    assert said in caught.value.message
    assert caught.value.place is not None
    assert (caught.value.place.file, caught.value.place.line) == (str(path), line)
    assert f"mine.toml{f':{line}:' if line else ''}" in run("arch", "--check", path, exit_code=2).stderr


def test_a_file_too_large_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="larger than 1 MB"):
        arch.load_file(write(tmp_path / "mine.toml", "#" * (1 << 20) + "\n"))
