"""verify: what is accepted, and what is refused with its true reason."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from proof_models import Header, build, flip, forge, parts, recipe, run, run_json, say, swap, write_model

MIX = Path("out/mix.safetensors")
Change = Callable[[Header, bytearray], None]


def why(*arguments: object, exit_code: int = 0) -> str:
    (verdict,) = run_json("verify", *arguments, exit_code=exit_code)["files"]
    return str(verdict["why"])


@pytest.mark.parametrize(
    ("text", "file"),
    [
        (recipe(), MIX),
        (recipe(", embed: recipe"), MIX),
        (recipe(", dtype: float32, metadata: { title: mix }"), MIX),
        (recipe(", metadata_for: a1111, sidecars: sha256"), MIX),
        (recipe(name="out/mix.ckpt"), Path("out/mix.ckpt")),
        (recipe(expression="'ties(a, [b, c], density=0.5)'"), MIX),
        (recipe() + "options: { policy: a1111 }\n", MIX),
        (recipe().replace("{ m: 0.3 }", "{ m: { sweep: [0.25, 0.5] } }").replace("mix", "mix-{m}"),
         Path("out/mix-0.5.safetensors")),
        (recipe().replace("{ m: 0.3 }", "{ m: { default: 0, '*.2.*': 0.7 } }"), MIX),
    ],
)  # fmt: skip
def test_what_was_built_is_accepted_and_built_again(folder: Path, text: str, file: Path) -> None:
    build(text)
    assert "as it claims" in why(file)
    assert "built again from its sources: the same, byte for byte" in why("--rebuild", file)
    assert [path.name for path in file.parent.iterdir() if path.name.startswith(".")] == []


def test_a_model_in_shards(folder: Path) -> None:
    for name in "abc":
        write_model(Path(f"{name}.safetensors"), ord(name), layers=9000)
    build(recipe(", shard_size: 1MB"))
    assert "byte for byte" in why("--rebuild", "out/mix.safetensors.index.json")


def test_what_the_command_line_changed_is_known_from_the_file_beside_it(folder: Path) -> None:
    build(recipe(), "--set", "m=0.25")
    assert "byte for byte" in why("--rebuild", MIX)


def test_sources_are_found_by_content_under_any_name(folder: Path, tmp_path: Path) -> None:
    build(recipe())
    elsewhere = tmp_path / "models" / "deep"
    elsewhere.mkdir(parents=True)
    for name, other in zip("abc", "zyx", strict=True):
        shutil.move(f"{name}.safetensors", elsewhere / f"{other}.safetensors")
    assert "source a (a.safetensors) is not to be found" in why("--rebuild", MIX, exit_code=4)
    assert "byte for byte" in why("--rebuild", "--models", tmp_path / "models", MIX)
    named = [f"--source={name}={elsewhere / other}.safetensors" for name, other in zip("abc", "zyx", strict=True)]
    assert "byte for byte" in why("--rebuild", *named, MIX)


def test_a_model_whose_terms_cancel_is_known_by_its_name_alone(folder: Path) -> None:
    build(recipe(expression="a + (b - c) * m + (c - c)"))
    assert "byte for byte" in why("--rebuild", MIX)


@pytest.mark.parametrize("change", [flip("layer.1.weight", 3), swap("layer.1.weight", "layer.3.weight")])
def test_changed_tensors_are_named(folder: Path, change: Change) -> None:
    build(recipe())
    forge(MIX, change)
    assert "it claims to be" in why(MIX, exit_code=5)
    assert "tensors differ: layer.1.weight (by " in why("--rebuild", MIX, exit_code=5)
    forge(MIX, lambda header, data: None, sign=True)
    assert "as it claims" in why(MIX)  # who signs anew what he changed is only found out by building again
    assert "of 5 tensors differ: layer.1.weight (by " in why("--rebuild", MIX, exit_code=6)


def test_how_much_a_tensor_differs(folder: Path) -> None:
    build(recipe())

    def negate(header: Header, data: bytearray) -> None:
        start, end = header["layer.2.weight"]["data_offsets"]
        for i in range(start + 1, end, 2):
            data[i] ^= 0x80

    forge(MIX, negate, sign=True)
    assert "1 of 5 tensors differ: layer.2.weight (by 2 of its size)" in why("--rebuild", MIX, exit_code=6)


@pytest.mark.parametrize("embed", [False, True])
def test_an_edited_recipe(folder: Path, embed: bool) -> None:
    build(recipe(", embed: recipe" if embed else ""))
    if embed:
        text = parts(MIX)[0]["__metadata__"]["mergeflow.recipe"]
        forge(MIX, say("mergeflow.recipe", text.replace("0.3", "0.4")))
    else:
        beside = Path("out/mix.safetensors.recipe.yaml")
        beside.write_text(beside.read_text().replace("0.3", "0.4"))
    said = why("--rebuild", MIX, exit_code=6)
    assert said == "its recipe makes something else than it says: 1·a + 0.4·b − 0.4·c, not 1·a + 0.3·b − 0.3·c"


def test_another_source(folder: Path) -> None:
    build(recipe())
    said = why("--rebuild", "--source", "b=c.safetensors", MIX, exit_code=6)
    assert said.startswith("its recipe makes something else than it says: not made of b3:")
    shutil.copy("b.safetensors", "kept.safetensors")
    write_model(Path("b.safetensors"), 77)
    assert "byte for byte" in why("--rebuild", "--models", ".", MIX)  # the right one lies there under another name
    Path("kept.safetensors").unlink()
    said = why("--rebuild", MIX, exit_code=6)
    assert said.startswith("its source b has changed: b.safetensors is b3:")


def test_one_bit_of_a_source(folder: Path) -> None:
    build(recipe())
    forge(Path("c.safetensors"), flip("layer.0.weight"))
    assert "its source c has changed" in why("--rebuild", MIX, exit_code=6)


def test_sources_that_changed_names(folder: Path) -> None:
    """All contents are there, but the recipe's b is what was c."""
    build(recipe())
    shutil.move("b.safetensors", "x.safetensors")
    shutil.move("c.safetensors", "b.safetensors")
    shutil.move("x.safetensors", "c.safetensors")
    assert "1·a + 0.3·b − 0.3·c, not 1·a + 0.3·c − 0.3·b" in why("--rebuild", MIX, exit_code=6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (say("title", "something else"), "its recipe would have it say another title"),
        (say("author", "somebody"), "it says author, which its recipe does not"),
        (lambda header, data: header["__metadata__"].pop("title"), "would have it say title, and it does not"),
    ],
)
def test_edited_metadata(folder: Path, change: Change, said: str) -> None:
    build(recipe(", metadata: { title: mix }, sidecars: sha256"))
    forge(MIX, change)
    assert "the sha256 of mix.safetensors is" in why(MIX, exit_code=5)
    Path("out/mix.safetensors.sha256").unlink()
    assert "as it claims" in why(MIX)
    assert said in why("--rebuild", MIX, exit_code=6)


def _graph(edit: Callable[[dict[str, object]], object]) -> Change:
    def change(header: Header, data: bytearray) -> None:
        graph = json.loads(header["__metadata__"]["mergeflow"])
        edit(graph)
        header["__metadata__"]["mergeflow"] = json.dumps(graph)

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (say("mergeflow", "{"), "no graph of mergeflow's"),
        (say("mergeflow", "[" * 5000), "no graph of mergeflow's"),
        (_graph(lambda g: g.pop("forms")), "does not hold together"),
        (_graph(lambda g: g.update(form=7)), "does not hold together"),
        (_graph(lambda g: g.update(forms=[{"terms": [["1", "apply 0"]], "over": "1"}])), "does not hold together"),
        (_graph(lambda g: g.update(forms=[{"terms": [["1", "b3:zz"]], "over": "1"}])), "does not hold together"),
        (_graph(lambda g: g.update(forms=[{"terms": [], "over": "0"}])), "does not hold together"),
        (_graph(lambda g: g.update(others={"0": ["no.such.weight"]})), "names no.such.weight, a tensor that it does"),
        (_graph(lambda g: g.update(schema="mergeflow/graph/99")), "mergeflow/graph/99, which this mergeflow does not"),
        (say("modelspec.hash_sha256", "0x" + "1" * 64), "modelspec.hash_sha256 is 0x"),
    ],
)
def test_a_graph_that_cannot_be(folder: Path, change: Change, said: str) -> None:
    build(recipe())
    forge(MIX, change)
    assert said in why(MIX, exit_code=5)


def test_an_edited_graph(folder: Path) -> None:
    build(recipe())
    forge(MIX, _graph(lambda g: g.update(numerics=g["numerics"] - 1)))  # type: ignore[operator]
    assert "made it, this mergeflow has" in why("--rebuild", MIX, exit_code=6)


@pytest.mark.parametrize(
    ("text", "file"),
    [
        (recipe(", embed: none"), MIX),
        (
            recipe(", embed: none, dtype: float32, metadata: { title: mix }", "'ties(a, [b @ 0.5, c], density=0.5)'"),
            MIX,
        ),
        (recipe(", embed: none", name="out/mix.ckpt"), Path("out/mix.ckpt")),
        (recipe(", embed: none").replace("{ m: 0.3 }", "{ m: { default: 0, '*.2.*': 0.7 } }"), MIX),
    ],
)
def test_a_file_without_a_recipe_is_built_again_from_its_graph(folder: Path, text: str, file: Path) -> None:
    build(text)
    assert "byte for byte" in why("--rebuild", file)
    Path("b.safetensors").unlink()
    assert "is not to be found; it was b3:" in why("--rebuild", file, exit_code=4)


def test_methods_that_are_not_exact_are_compared_by_a_tolerance(folder: Path) -> None:
    """Their graph says with what they were computed; another machine's is no other recipe."""
    build(recipe(expression="'a + truncate_rank(b - c, 2)'"))
    assert "byte for byte" in why("--rebuild", MIX)
    text = parts(MIX)[0]["__metadata__"]["mergeflow"]
    assert "torch-" in text
    forge(MIX, say("mergeflow", re.sub(r"torch-[^ \"]*", "torch-1.0/other-machine", text)))
    assert "the same tensors" in why("--rebuild", MIX)
    forge(MIX, flip("layer.1.weight"), sign=True)
    assert re.search(r"the same but for [0-9.e-]+ of a tensor's size", why("--rebuild", MIX))
    forge(MIX, flip("layer.1.weight", 14), sign=True)
    assert "1 of 5 tensors differ: layer.1.weight" in why("--rebuild", MIX, exit_code=6)


def test_what_cannot_be_built_again(folder: Path) -> None:
    build(recipe(", embed: none"))
    assert "byte for byte" in why("--rebuild", "--recipe", "recipe.yaml", MIX)
    (verdict,) = run_json("verify", "--rebuild", "--recipe", "recipe.yaml")["files"]
    assert "byte for byte" in verdict["why"]
    assert "does not say how it was made" in why("--rebuild", "a.safetensors", exit_code=2)
    assert "add --rebuild" in run("verify", "--models", ".", MIX, exit_code=2).stderr
    assert "its recipe has no source z" in why("--rebuild", "--recipe=recipe.yaml", "--source=z=a", MIX, exit_code=2)


def test_the_same_tensors_in_a_file_that_somebody_wrote_anew(folder: Path) -> None:
    build(recipe())
    header, data = parts(MIX)
    forge(MIX, lambda h, d: h.update({"__metadata__": dict(reversed(h["__metadata__"].items()))}))
    assert parts(MIX)[1] == data
    assert header.keys() == parts(MIX)[0].keys()
    assert "the same tensors, in a file that is written otherwise" in why("--rebuild", MIX)
