"""The same weights as other programs wrote them: one model digest, and one output, whichever file it is built from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from kind_models import Model, build, same_bits, torch_of, write
from safetensors.numpy import save_file
from support.commands import run, run_json

from mergeflow.arch import get, to_diffusers

NAI = "cond_stage_model.transformer."


def zipped(folder: Path, model: Model) -> str:
    torch.save({"state_dict": torch_of(model), "global_step": 1}, folder / "m.ckpt")
    return "m.ckpt"


def legacy(folder: Path, model: Model) -> str:
    torch.save(torch_of(model), folder / "m.pt", _use_new_zipfile_serialization=False)
    return "m.pt"


def library(folder: Path, model: Model) -> str:
    save_file(dict(reversed(model.items())), folder / "m.safetensors", {"format": "pt", "note": "x"})
    return "m.safetensors"


def shards(folder: Path, model: Model) -> str:
    """In three files, tensors dealt out like cards, with the index that transformers reads."""
    where = {name: f"m-0000{i % 3 + 1}-of-00003.safetensors" for i, name in enumerate(model)}
    for file in set(where.values()):
        save_file({n: v for n, v in model.items() if where[n] == file}, folder / file)
    (folder / "m.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return "m.safetensors.index.json"


def shards_of_torch(folder: Path, model: Model) -> str:
    names = list(model)
    where = {name: f"pytorch_model-{i * 2 // len(names)}.bin" for i, name in enumerate(names)}
    for file in set(where.values()):
        torch.save(torch_of({n: v for n, v in model.items() if where[n] == file}), folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    return "pytorch_model.bin.index.json"


FILES: dict[str, Callable[[Path, Model], str]] = {
    "safetensors": library, "zip": zipped, "legacy": legacy, "shards": shards, "shards of torch": shards_of_torch,
}  # fmt: skip


@pytest.mark.parametrize("merge", ["a", "b"])  # the file in question is one side, then the other
def test_one_digest_and_one_output(tmp_path: Path, whole: dict[str, Model], merge: str) -> None:
    digests, outputs = set(), set()
    for i, save in enumerate(FILES.values()):
        folder = tmp_path / str(i)
        folder.mkdir()
        write(folder, other=whole["B"])
        path = save(folder, whole["A"])
        (checked,) = run_json("check", folder / path)["files"]
        digests.add(checked["digest"])
        first, second = ("x", "y") if merge == "a" else ("y", "x")
        build(folder, f"x: {path}, y: other.safetensors", f"{first}*0.7 + {second}*0.3", name="same")
        outputs.add((folder / "same.safetensors").read_bytes())
    assert len(digests) == len(outputs) == 1
    assert digests.pop().startswith("b3:")


def of_diffusers(folder: Path, model: Model) -> str:
    """The folder of a pipeline, under diffusers' names."""
    names = to_diffusers(get("sd1"), {n: v.shape for n, v in model.items()})
    assert names.keys() == model.keys()
    classes = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}
    place = folder / "pipeline 漫"
    for part in classes:
        (place / part).mkdir(parents=True)
        own = {a.name.removeprefix(f"{part}."): model[n].reshape(a.shape) for n, a in names.items()
               if a.name.startswith(f"{part}.")}  # fmt: skip
        stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        save_file(own, place / part / f"{stem}.safetensors")
    index = {part: ["diffusers", name] for part, name in classes.items()}
    (place / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", "DDIMScheduler"]}))
    return place.name


def test_a_folder_of_diffusers_is_the_file_it_came_from(tmp_path: Path, whole: dict[str, Model]) -> None:
    write(tmp_path, a=whole["A"], b=whole["B"])
    folder = of_diffusers(tmp_path, whole["A"])
    assert "all the same" in run("diff", tmp_path / folder, tmp_path / "a.safetensors").stdout
    back = build(tmp_path, f"x: {folder}", "x", name="back")
    assert back.keys() == whole["A"].keys()
    assert all(same_bits(back[n], whole["A"][n]) for n in back)
    outputs = []
    for source in (folder, "a.safetensors"):  # merged with a file, and a file merged with it
        for order in ("x*0.7 + b*0.3", "b*0.3 + x*0.7", "b + (x - b) * 0.7"):
            build(tmp_path, f"x: '{source}', b: b.safetensors", order, name="same")
            outputs.append((tmp_path / "same.safetensors").read_bytes())
    assert outputs[:3] == outputs[3:]


def nai(model: Model) -> Model:
    """NAI and its descendants leave out `text_model.`."""
    return {n.replace(f"{NAI}text_model.", NAI): v for n, v in model.items()}


@pytest.mark.parametrize("save", [zipped, legacy, library])
@pytest.mark.parametrize("expression", ["a*0.5 + b*0.5", "b + (a - b) * 0.3"])
def test_two_namings_of_the_text_encoder_merge_as_one(
    tmp_path: Path, whole: dict[str, Model], save: Callable[[Path, Model], str], expression: str
) -> None:
    renamed = nai(whole["A"])
    assert sum(n not in whole["A"] for n in renamed) == 197
    write(tmp_path, plain=whole["A"], b=whole["B"])
    named = build(tmp_path, f"a: {save(tmp_path, renamed)}, b: b.safetensors", expression, name="same")
    bytes_named = (tmp_path / "same.safetensors").read_bytes()
    build(tmp_path, "a: plain.safetensors, b: b.safetensors", expression, name="same")
    assert (tmp_path / "same.safetensors").read_bytes() == bytes_named
    assert named.keys() == whole["A"].keys()
    weight = f"{NAI}text_model.encoder.layers.3.mlp.fc1.weight"
    assert not same_bits(named[weight], whole["A"][weight])
    assert not same_bits(named[weight], whole["B"][weight])
