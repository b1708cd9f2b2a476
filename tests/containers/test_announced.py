"""What an output says to other tools, read as they read it: A1111's webui, and ModelSpec 1.0.0."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from outputs import SHARDED, build, loaded, sha256, wanted
from support.builds import HEAD, project
from support.checkpoints import metadata as header_of
from support.checkpoints import numbers, write
from support.tiny_models import FLUX, INPAINTING, LLAMA, SD1, write_model

from mergeflow.errors import RecipeError


def webui(path: Path) -> dict[str, Any]:
    """The metadata of a file as the webui has it: values that begin with a brace are JSON, or stay texts."""
    found: dict[str, Any] = {}
    for key, value in header_of(path).items():
        found[key] = value
        if value[0:1] == "{":
            found[key] = json.loads(value)
    return found


def old_hash(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(0x100000)
        return hashlib.sha256(file.read(0x10000)).hexdigest()[:8]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in "abc":
        write_model(tmp_path / f"{name}.safetensors", SD1, seed=name)
    return tmp_path


def one(expression: str, more: str = "", **options: str) -> str:
    rest = "".join(f", {key}: {value}" for key, value in options.items())
    return wanted(f"  mix.safetensors: {{ from: {expression}{rest} }}\n", more=more)


@pytest.mark.parametrize(
    ("expression", "method", "multiplier", "models"),
    [
        ("a + (b - c) * 0.3", "Add difference", 0.3, "abc"),
        ("(b - c) * 0.3 + a", "Add difference", 0.3, "abc"),
        ("a*0.75 + b*0.25", "Weighted sum", 0.25, "ab"),
        ("a", "No interpolation", None, "a"),
        ("a*0.5 + b*0.25 + c*0.25", None, None, "abc"),
    ],
)
def test_the_webui_reads_the_merge(
    folder: Path, expression: str, method: str | None, multiplier: float | None, models: str
) -> None:
    build(folder, one(expression, metadata_for="a1111", dtype="float16"))
    said, sums = webui(folder / "mix.safetensors"), {n: sha256(folder / f"{n}.safetensors") for n in "abc"}
    recipe = said["sd_merge_recipe"]
    assert recipe["type"] == "mergeflow"
    names = ("primary_model_hash", "secondary_model_hash", "tertiary_model_hash")
    given = [recipe[name] for name in names]
    assert given[0] == sums["a"]
    if method:
        assert given == [*(sums[n] for n in models), None, None][:3]
    assert set(given) - {None} == {sums[n] for n in models}
    assert (recipe["interp_method"], recipe["multiplier"]) == (method, multiplier)
    assert recipe["save_as_half"] is True
    assert recipe["is_inpainting"] is recipe["is_instruct_pix2pix"] is False
    assert said["sd_merge_models"] == {
        sums[n]: {"name": sums[n][:10], "legacy_hash": old_hash(folder / f"{n}.safetensors"), "sd_merge_recipe": None}
        for n in models
    }


def test_the_ancestry_is_one_table(folder: Path) -> None:
    """What a source says of its own making is taken along, by the hashes of the files."""
    build(folder, one("a*0.5 + b*0.5", metadata_for="a1111", metadata="{ modelspec.title: First }"))
    (folder / "mix.safetensors").rename(folder / "first.safetensors")
    first = webui(folder / "first.safetensors")
    sources = {"first": "first.safetensors", "c": "c.safetensors"}
    build(folder, wanted("  mix.safetensors: { from: first*0.5 + c*0.5, metadata_for: [a1111] }\n", sources=sources))
    models = webui(folder / "mix.safetensors")["sd_merge_models"]
    own = sha256(folder / "first.safetensors")
    assert set(models) == {sha256(folder / f"{n}.safetensors") for n in ("a", "b", "c", "first")}
    assert models[own]["name"] == "First"
    assert models[own]["sd_merge_recipe"] == first["sd_merge_recipe"]


def test_names_and_their_order_change_no_byte(folder: Path) -> None:
    text = "{ from: x + y - z, metadata_for: [a1111, modelspec] }"
    found = set()
    for i, order in enumerate(("xyz", "zyx")):
        files = {"x": "a.safetensors", "y": "b.safetensors", "z": "c.safetensors"}
        named = {n: files[n] for n in order}
        build(folder, wanted(f"  {i}.safetensors: {text}\n", sources=named))
        found.add(sha256(folder / f"{i}.safetensors"))
    renamed = {"eins": "a.safetensors", "zwei": "b.safetensors", "drei": "c.safetensors"}
    text = "{ from: eins + (zwei - drei), metadata_for: [modelspec, a1111] }"
    build(folder, wanted(f"  2.safetensors: {text}\n", sources=renamed))
    assert len(found | {sha256(folder / "2.safetensors")}) == 1


def test_nothing_is_said_unless_it_is_asked_for(folder: Path) -> None:
    build(folder, one("a + b - c"))
    assert set(header_of(folder / "mix.safetensors")) == {"format", "mergeflow", "mergeflow.digest"}


@pytest.mark.parametrize(("name", "more"), [("mix.safetensors", ""), (SHARDED, ", shard_size: 1MB"), ("mix.ckpt", "")])
def test_modelspec(folder: Path, name: str, more: str) -> None:
    path = name.removesuffix(".index.json")
    text = f"  {path}: {{ from: a + b - c, metadata_for: modelspec{more} }}\n"
    build(folder, wanted(text, more="name: A mix\nlicense: CC0\ndescription: Three of them.\n"))
    if name.endswith(".ckpt"):
        said = json.loads((folder / f"{name}.mergeflow.json").read_text())["metadata"]
    else:
        said = header_of(folder / ("mix-00001-of-00001.safetensors" if more else name))
    spec = {key.removeprefix("modelspec."): value for key, value in said.items() if key.startswith("modelspec.")}
    hasher = hashlib.sha256()
    for tensor in _in_file_order(loaded(folder / name)):
        hasher.update(tensor)
    with project(folder, wanted(text)) as p:
        titles = [p.facts(i).model[3:13] for i in range(3)]
    assert spec.pop("merged_from") == ", ".join([titles[0], *sorted(titles[1:])])
    assert spec == {
        "sai_model_spec": "1.0.0",
        "architecture": "stable-diffusion-v1",
        "implementation": "https://github.com/Stability-AI/generative-models",
        "resolution": "512x512",
        "title": "A mix",
        "license": "CC0",
        "description": "Three of them.",
        "hash_sha256": f"0x{hasher.hexdigest()}",
    }


def _in_file_order(model: dict[str, Any]) -> list[bytes]:
    order = sorted(model, key=lambda n: (-model[n].element_size(), n))
    return [model[n].contiguous().numpy().tobytes() for n in order]


def test_the_hash_is_that_of_the_data_of_the_file(folder: Path) -> None:
    """Of a single file it is AutoV3, the hash of all behind the header."""
    build(folder, one("a + b - c", metadata_for="modelspec"))
    raw = (folder / "mix.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    data = hashlib.sha256(raw[8 + length :]).hexdigest()
    assert header_of(folder / "mix.safetensors")["modelspec.hash_sha256"] == f"0x{data}"
    (folder / "cache" / "index.sqlite").unlink()
    assert not build(folder, one("a + b - c", metadata_for="modelspec")).outputs[0].built


def test_titles_without_a_name(folder: Path) -> None:
    build(folder, one("a*0.7 + b*0.3", metadata_for="modelspec"))
    with project(folder, one("a*0.7 + b*0.3")) as p:
        a, b = (p.facts(i).model[3:13] for i in range(2))
    assert header_of(folder / "mix.safetensors")["modelspec.title"] == f"0.7({a}) + 0.3({b})"


@pytest.mark.parametrize(("shapes", "architecture"), [(INPAINTING, "stable-diffusion-v1-inpainting"), (FLUX, None),
                                                      (LLAMA, None)])  # fmt: skip
def test_what_tensors_do_not_tell_is_asked_for(tmp_path: Path, shapes: Any, architecture: str | None) -> None:
    write_model(tmp_path / "a.safetensors", shapes, seed="a")
    text = f"{HEAD}sources: {{ a: a.safetensors }}\noutputs:\n  mix.safetensors: {{ from: a, metadata_for: modelspec"
    if architecture is None:
        with pytest.raises(RecipeError, match=r"modelspec needs modelspec\.architecture and modelspec\.implementation"):
            build(tmp_path, f"{text} }}\n")
        text += ", metadata: { modelspec.architecture: x/y, modelspec.implementation: z }"
    build(tmp_path, f"{text} }}\n")
    assert header_of(tmp_path / "mix.safetensors")["modelspec.architecture"] == (architecture or "x/y")


def test_a_difference_has_no_architecture_of_its_own(folder: Path) -> None:
    with pytest.raises(RecipeError, match="do not tell of a difference of models"):
        build(folder, one("a - b", metadata_for="modelspec"))


def test_what_the_recipe_says_wins(folder: Path) -> None:
    said = "{ modelspec.title: Mine, modelspec.hash_sha256: none, sd_merge_recipe: by hand }"
    build(folder, one("a + b - c", metadata_for="[a1111, modelspec]", metadata=said))
    found = header_of(folder / "mix.safetensors")
    assert found["modelspec.title"] == "Mine"
    assert found["modelspec.hash_sha256"] == "none"
    assert found["sd_merge_recipe"] == "by hand"


def test_a_source_of_several_files_has_no_hash(folder: Path) -> None:
    build(folder, wanted("  part.safetensors: { from: a, shard_size: 1MB }\n"))
    sources = {"p": "part.safetensors.index.json", "b": "b.safetensors"}
    build(folder, wanted("  mix.safetensors: { from: p*0.5 + b*0.5, metadata_for: a1111 }\n", sources=sources))
    said = webui(folder / "mix.safetensors")
    assert said["sd_merge_recipe"]["primary_model_hash"] is None
    assert list(said["sd_merge_models"]) == [sha256(folder / "b.safetensors")]


def test_a_v_prediction_model_says_so(tmp_path: Path) -> None:
    shapes = {"model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (2, 2048),
              "model.diffusion_model.label_emb.0.0.bias": (4,),
              "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight": (768,),
              "conditioner.embedders.1.model.ln_final.weight": (1280,)}  # fmt: skip
    write(tmp_path / "a.safetensors", {n: numbers("F16", np.ones(s)) for n, s in shapes.items()})
    text = f"{HEAD}sources: {{ a: a.safetensors }}\noutputs:\n  mix.safetensors: "
    build(tmp_path, f"{text}{{ from: a, metadata_for: modelspec, mark: v_pred }}\n")
    said = header_of(tmp_path / "mix.safetensors")
    assert said["modelspec.architecture"] == "stable-diffusion-xl-v1-base"
    assert said["modelspec.prediction_type"] == "v"
