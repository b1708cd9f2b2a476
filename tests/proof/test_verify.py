"""verify: what is accepted, and what is refused with its true reason."""

from __future__ import annotations

import errno
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from proof_models import Header, build, flip, forge, header_of, recipe, restate, reword, say, swap, write_model
from safetensors.numpy import load_file
from support.commands import run, run_json
from support.verified import Refused, Verified

MIX = Path("out/mix.safetensors")
Reworded = Callable[[Header], object]


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


# -- what happened to a file, in each container -----------------------------------------------------------------------


class Made(NamedTuple):
    """An output in some container: the recipe that makes it, its file, and what lies beside that."""

    text: str
    file: Path

    @property
    def recipe_beside(self) -> Path:
        return self.file.with_name(self.file.name.removesuffix(".index.json") + ".recipe.yaml")


CONTAINERS = {
    "safetensors": Made(recipe(), MIX),
    "shards": Made(recipe(", shard_size: 1MB"), Path("out/mix.safetensors.index.json")),
    "ckpt": Made(recipe(name="out/mix.ckpt"), Path("out/mix.ckpt")),
}


@pytest.fixture(params=CONTAINERS.values(), ids=CONTAINERS)
def made(request: pytest.FixtureRequest, folder: Path) -> Made:
    """Built; of four shards, where it is in shards."""
    made: Made = request.param
    if "shard_size" in made.text:
        for name in "abc":
            write_model(Path(f"{name}.safetensors"), ord(name), width=1 << 16)
    build(made.text)
    return made


def far(one: NDArray[np.float16], other: NDArray[np.float16]) -> str:
    """How far two tensors are apart, relative to the size of the first, as it is told."""
    a, b = (tensor.astype(np.float64) for tensor in (one, other))
    return f"{math.sqrt(((b - a) ** 2).sum() / (a**2).sum()):.2g}"


def tensors_of(file: Path) -> dict[str, NDArray[np.float16]]:
    if file.suffix == ".ckpt":
        stored = torch.load(file, weights_only=True)["state_dict"]  # noqa: TID251  # the judge of what is in a file
        return {name: tensor.numpy() for name, tensor in stored.items()}
    if file.suffix == ".safetensors":
        return load_file(file)
    return {name: tensor for shard in sorted(file.parent.glob("*-of-*")) for name, tensor in load_file(shard).items()}


def test_nothing_happened(made: Made) -> None:
    assert "as it claims" in why(made.file)
    assert "built again from its sources: the same, byte for byte" in why("--rebuild", made.file)


@pytest.mark.forges
def test_the_check_of_all_outputs_sees_a_flipped_bit(made: Made) -> None:
    """That of `pytest --verify-outputs`."""
    verified = Verified()
    verified.check_below(Path())
    assert verified.checked >= 1
    forge(made.file, flip("layer.1.weight"))
    with pytest.raises(Refused, match="it claims to be"):
        Verified().check_below(Path())


@pytest.mark.forges
def test_a_flipped_bit(made: Made) -> None:
    was, before = run_json("inspect", made.file)["digest"], tensors_of(made.file)["layer.1.weight"]
    forge(made.file, flip("layer.1.weight", 10))
    by = far(before, tensors_of(made.file)["layer.1.weight"])
    now = run_json("hash", made.file)["files"][0]["model"]
    says = f"its tensors are {now[:15]}…, it claims to be {was[:15]}…"
    assert why(made.file, exit_code=5) == says
    differs = f"1 of 5 tensors differ: layer.1.weight (by {by} of its size)"
    assert why("--rebuild", made.file, exit_code=5) == f"{says}: {differs}"
    restate(made.file, was, now)  # who signs what he changed is only found out by building again
    assert why(made.file) == f"{now[:15]}…, as it claims"
    assert why("--rebuild", made.file, exit_code=6) == differs


@pytest.mark.forges
def test_two_tensors_that_have_changed_places(made: Made) -> None:
    before = tensors_of(made.file)
    forge(made.file, swap("layer.1.weight", "layer.3.weight"))
    assert "it claims to be" in why(made.file, exit_code=5)
    forge(made.file, lambda tensors: None, sign=True)
    assert "as it claims" in why(made.file)
    said = why("--rebuild", made.file, exit_code=6)
    assert said.startswith("2 of 5 tensors differ: ")
    for one, other in (("layer.1.weight", "layer.3.weight"), ("layer.3.weight", "layer.1.weight")):
        assert f"{one} (by {far(before[one], before[other])} of its size)" in said


def test_an_edited_recipe_beside_the_file(made: Made) -> None:
    beside = made.recipe_beside
    beside.write_text(beside.read_text().replace("m: 0.3", "m: 0.4"))
    said = why("--rebuild", made.file, exit_code=6)
    assert said == "its recipe makes something else than it says: 1·a + 0.4·b − 0.4·c, not 1·a + 0.3·b − 0.3·c"


def test_an_edited_recipe_inside_the_file(made: Made) -> None:
    build(made.text[: made.text.rindex(" }")] + ", embed: recipe }\n", "--force")
    restate(made.file, "m: 0.3", "m: 0.4")
    said = why("--rebuild", made.file, exit_code=6)
    assert said == "its recipe makes something else than it says: 1·a + 0.4·b − 0.4·c, not 1·a + 0.3·b − 0.3·c"


def test_sources_that_have_changed_names(made: Made) -> None:
    """All contents are there, but the recipe's b is what was c."""
    shutil.move("b.safetensors", "x.safetensors")
    shutil.move("c.safetensors", "b.safetensors")
    shutil.move("x.safetensors", "c.safetensors")
    said = why("--rebuild", made.file, exit_code=6)
    assert said == "its recipe makes something else than it says: 1·a + 0.3·b − 0.3·c, not 1·a + 0.3·c − 0.3·b"


def test_a_source_of_another_name(made: Made) -> None:
    """It is found by its content where it is looked for, and no other is taken for it."""
    was = run_json("hash", "b.safetensors")["files"][0]["model"]
    shutil.move("b.safetensors", "renamed.safetensors")
    said = why("--rebuild", made.file, exit_code=4)
    assert said == f"its source b (b.safetensors) is not to be found; it was {was[:15]}…"
    assert "byte for byte" in why("--rebuild", "--models", ".", made.file)


def test_one_bit_of_a_source(made: Made) -> None:
    was = run_json("hash", "c.safetensors")["files"][0]["model"]
    forge(Path("c.safetensors"), flip("layer.0.weight"))
    now = run_json("hash", "c.safetensors")["files"][0]["model"]
    said = why("--rebuild", made.file, exit_code=6)
    assert said == f"its source c has changed: c.safetensors is {now[:15]}…, not {was[:15]}…"


@pytest.mark.forges
def test_a_part_that_is_gone_or_torn(made: Made) -> None:
    file = sorted(made.file.parent.glob("*-of-*"))[1] if "shard" in made.text else made.file
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    verdict = run_json("verify", made.file, exit_code=5)["files"][0]
    assert verdict["verdict"] == "damaged"
    assert re.search("cut short|no end|broken off|incomplete", verdict["why"]), verdict["why"]
    file.unlink()
    gone = "there is no such file" if file == made.file else f"1 of its 4 files are not there: {file.name}"
    assert why(made.file, exit_code=4) == gone


def test_a_file_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(recipe())

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr("mergeflow.formats.files.os.open", refuse)
        (verdict,) = run_json("verify", MIX, exit_code=7)["files"]
    assert verdict["verdict"] == "not read"


def test_shards_one_by_one(folder: Path) -> None:
    """Each carries what is said of the whole: a graph that names tensors of others, a hash of all tensors."""
    for name in "abc":
        write_model(Path(f"{name}.safetensors"), ord(name), width=1 << 16)
    spec = "metadata_for: modelspec, metadata: { modelspec.architecture: other, modelspec.implementation: none }"
    build(recipe(f", shard_size: 1MB, {spec}").replace("{ m: 0.3 }", "{ m: { default: 0, '*.2.*': 0.7 } }"))
    assert "modelspec.hash_sha256" in header_of(Path("out/mix-00001-of-00004.safetensors"))["__metadata__"]
    shards = sorted(Path("out").glob("*-of-*"))
    assert [f["verdict"] for f in run_json("verify", *shards)["files"]] == ["ok"] * 4
    (verdict,) = run_json("verify", "--rebuild", shards[0], exit_code=2)["files"]
    assert "it is one of the files of a model" in verdict["why"]
    assert verdict["hint"] == "verify mix.safetensors.index.json, which lists them"
    forge(shards[2], flip("layer.2.weight"), sign=True)
    assert "1 of 5 tensors differ" in why("--rebuild", "out/mix.safetensors.index.json", exit_code=5)


@pytest.mark.forges
def test_how_much_a_tensor_differs(folder: Path) -> None:
    build(recipe())

    def negate(tensors: dict[str, bytearray]) -> None:
        for i in range(1, len(tensors["layer.2.weight"]), 2):
            tensors["layer.2.weight"][i] ^= 0x80

    forge(MIX, negate, sign=True)
    assert "1 of 5 tensors differ: layer.2.weight (by 2 of its size)" in why("--rebuild", MIX, exit_code=6)


# -- other reasons -----------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (say("title", "something else"), "its recipe would have it say another title"),
        (say("author", "somebody"), "it says author, which its recipe does not"),
        (lambda header: header["__metadata__"].pop("title"), "would have it say title, and it does not"),
    ],
)
def test_edited_metadata(folder: Path, change: Reworded, said: str) -> None:
    build(recipe(", metadata: { title: mix }, sidecars: sha256"))
    reword(MIX, change)
    assert "the sha256 of mix.safetensors is" in why(MIX, exit_code=5)
    Path("out/mix.safetensors.sha256").unlink()
    assert "as it claims" in why(MIX)
    assert said in why("--rebuild", MIX, exit_code=6)


def _graph(edit: Callable[[dict[str, object]], object]) -> Reworded:
    def change(header: Header) -> None:
        graph = json.loads(header["__metadata__"]["mergeflow"])
        edit(graph)
        header["__metadata__"]["mergeflow"] = json.dumps(graph)

    return change


@pytest.mark.forges
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
def test_a_graph_that_cannot_be(folder: Path, change: Reworded, said: str) -> None:
    build(recipe())
    reword(MIX, change)
    assert said in why(MIX, exit_code=5)


def test_an_edited_graph(folder: Path) -> None:
    build(recipe())
    reword(MIX, _graph(lambda g: g.update(numerics=g["numerics"] - 1)))  # type: ignore[operator]
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
    digest = run_json("hash", "b.safetensors")["files"][0]["model"]
    Path("b.safetensors").unlink()
    said = why("--rebuild", file, exit_code=4)
    assert said == f"its source x_{digest[3:13]} is not to be found; it was {digest[:15]}…"


def test_methods_that_are_not_exact_are_compared_by_a_tolerance(folder: Path) -> None:
    """Their graph says with what they were computed; another machine's is no other recipe."""
    build(recipe(expression="'a + truncate_rank(b - c, 2)'"))
    assert "byte for byte" in why("--rebuild", MIX)
    text = header_of(MIX)["__metadata__"]["mergeflow"]
    assert "torch-" in text
    reword(MIX, say("mergeflow", re.sub(r"torch-[^ \"]*", "torch-1.0/other-machine", text)))
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
    before = MIX.read_bytes()
    reword(MIX, lambda header: header.update({"__metadata__": dict(reversed(header["__metadata__"].items()))}))
    assert MIX.read_bytes() != before
    assert "the same tensors, in a file that is written otherwise" in why("--rebuild", MIX)
