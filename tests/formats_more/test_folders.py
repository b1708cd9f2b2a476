"""Shards and folders."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from support.checkpoints import Tensor, write
from torch_files import assert_same, stored

from mergeflow.errors import IntegrityError, MissingInput
from mergeflow.formats.contents import read_contents


def tensor(seed: int) -> Tensor:
    return Tensor("F16", (3,), bytes(range(seed, seed + 6)))


def model(path: Path, *names: str, **metadata: str) -> Path:
    return write(path, {n: tensor(sum(n.encode()) % 200) for n in names}, metadata)


def index(path: Path, weight_map: object, **metadata: object) -> Path:
    path.write_text(json.dumps({"metadata": metadata, "weight_map": weight_map}))
    return path


def sharded(folder: Path) -> Path:
    model(folder / "model-00001-of-00002.safetensors", "a", "c", format="pt", one="1")
    model(folder / "model-00002-of-00002.safetensors", "b", format="pt")
    where = {"a": 1, "c": 1, "b": 2}
    return index(
        folder / "model.safetensors.index.json",
        {n: f"model-0000{i}-of-00002.safetensors" for n, i in where.items()},
        total_size=18,
    )


def test_shards(tmp_path: Path) -> None:
    path = sharded(tmp_path)
    found = read_contents(path)
    assert found.container == "sharded safetensors"
    assert [p.name for p in found.files] == [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert [(t.name, t.file) for t in found.tensors.values()] == [("a", 0), ("c", 0), ("b", 1)]
    assert stored(found, "b") == tensor(98).data
    assert found.metadata == {"format": "pt"}
    assert found.extras == {"total_size": "18"}
    (tmp_path / "config.json").write_text("{}")
    folder = read_contents(tmp_path)
    assert folder.container == "folder"
    assert folder.tensors == found.tensors
    renamed = path.rename(tmp_path / "index")  # told by what is in it
    assert read_contents(renamed).tensors == found.tensors


def test_shards_that_torch_wrote(tmp_path: Path) -> None:
    values = {"a": torch.ones(2), "b": torch.zeros(3).half()}
    for name, t in values.items():
        torch.save({name: t}, tmp_path / f"pytorch_model-{name}.bin")
    path = index(tmp_path / "pytorch_model.bin.index.json", {n: f"pytorch_model-{n}.bin" for n in values})
    found = read_contents(path)
    assert found.container == "sharded torch zip"
    assert_same(found, values)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"z": "model-00001-of-00002.safetensors"}, "should hold z"),
        ({"b": "model-00001-of-00002.safetensors"}, "should hold b|holds b"),
        ({"c": None}, "holds c"),
        ({"z": "../model.safetensors"}, "outside of its own folder"),
        ({"z": "/etc/passwd"}, "outside"),
        ({"z": "..\\x"}, "outside"),
        ({"z": "C:x"}, "outside"),
        ({"z": ".."}, "outside"),
        ({"z": ""}, "outside"),
        ({"z": 3}, "no weight_map"),
    ],
)
def test_indexes_that_lie(tmp_path: Path, change: dict[str, object], reason: str) -> None:
    path = sharded(tmp_path)
    weight_map = json.loads(path.read_text())["weight_map"] | change
    index(path, {k: v for k, v in weight_map.items() if v is not None})
    with pytest.raises(IntegrityError, match=reason):
        read_contents(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.encode("utf-16"),
        lambda text: text.replace('"c"', '"\\ud800"').encode(),
        lambda text: text.replace("18", "NaN").encode(),
    ],
)
def test_indexes_that_are_no_json_to_others(tmp_path: Path, change: Callable[[str], bytes]) -> None:
    path = sharded(tmp_path)
    path.write_bytes(change(path.read_text()))
    with pytest.raises(IntegrityError, match="not"):
        read_contents(path)


@pytest.mark.parametrize("name", ["x" * 255, "猫" * 200])
def test_names_that_are_too_long_for_a_file(tmp_path: Path, name: str) -> None:
    path = sharded(tmp_path)
    index(path, {"a": name})
    with pytest.raises(MissingInput, match="are not there"):
        read_contents(path)
    with pytest.raises(MissingInput, match="is not there"):
        read_contents(pipeline(tmp_path / "p", ["vae"], **{name: ["diffusers", "UNet"]}))


def test_missing_and_repeated(tmp_path: Path) -> None:
    path = sharded(tmp_path)
    text = path.read_text()
    path.write_text(text.replace('"c":', '"a":'))
    with pytest.raises(IntegrityError, match="names 'a' twice"):
        read_contents(path)
    path.write_text(text)
    model(tmp_path / "model-00002-of-00002.safetensors", "b", "a")
    with pytest.raises(IntegrityError, match="holds a"):
        read_contents(path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(MissingInput, match="1 of its 2 files"):
        read_contents(path)
    index(tmp_path / "model-00002-of-00002.safetensors", {"b": "x"})  # an index named as a shard
    with pytest.raises(IntegrityError, match="not a model file"):
        read_contents(path)


def pipeline(folder: Path, parts: Iterable[str], **classes: object) -> Path:
    for part in parts:
        stem = "model" if part.startswith("text") else "diffusion_pytorch_model"
        model(folder / part / f"{stem}.safetensors", "w", f"{part}.b")
    document = {p: ["diffusers", "Model"] for p in parts} | {"tokenizer": ["transformers", "CLIPTokenizer"]} | classes
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").write_text(
        json.dumps({"_class_name": "X", "safety_checker": [None, None]} | document)
    )
    return folder


def test_a_pipeline(tmp_path: Path) -> None:
    parts = ("text_encoder", "text_encoder_2", "unet", "vae")
    folder = pipeline(tmp_path / "sd 模型", parts)
    (folder / "tokenizer").mkdir()
    (folder / "unrelated").mkdir()
    model(folder / "unrelated" / "model.safetensors", "x")
    model(folder / "everything.safetensors", "x")
    model(folder / "unet" / "diffusion_pytorch_model.fp16.safetensors", "x")
    model(folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors", "x")
    (folder / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"")
    found = read_contents(folder)
    assert found.container == "folder"
    assert set(found.tensors) == {f"{p}.w" for p in parts} | {f"{p}.{p}.b" for p in parts}
    assert [f.parent.name for f in found.files] == sorted(parts)
    assert stored(found, "vae.w") == tensor(119).data
    assert found.extras["vae"] == "diffusion_pytorch_model.safetensors"
    assert found.extras["unet"].startswith("diffusion_pytorch_model.safetensors (not diffusion_pytorch_model.fp16.")


def test_a_pipeline_in_shards_and_variants(tmp_path: Path) -> None:
    folder = pipeline(tmp_path, ["vae"], unet=["diffusers", "UNet"], text_encoder=["transformers", "CLIP"])
    (folder / "unet").mkdir()
    model(folder / "text_encoder" / "model.fp16.safetensors", "t")
    names = [f"diffusion_pytorch_model.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for i, name in enumerate(names):
        model(folder / "unet" / name, f"k{i}")
    index(
        folder / "unet" / "diffusion_pytorch_model.safetensors.index.fp16.json",
        {f"k{i}": n for i, n in enumerate(names)},
    )
    found = read_contents(folder)
    assert set(found.tensors) == {"vae.w", "vae.vae.b", "unet.k0", "unet.k1", "text_encoder.t"}
    assert found.extras["text_encoder"] == "model.fp16.safetensors"
    model(folder / "text_encoder" / "model.bf16.safetensors", "t")
    with pytest.raises(IntegrityError, match=r"(?s)more than one model .*model\.bf16.*give the file"):
        read_contents(folder)


@pytest.mark.parametrize(
    ("classes", "error", "reason"),
    [
        ({"unet": ["diffusers", "UNet"]}, MissingInput, "part unet .* is not there"),
        ({"../x": ["diffusers", "UNet"]}, IntegrityError, "outside"),
        ({"empty": ["diffusers", "UNet"]}, MissingInput, "without a model file"),
    ],
)
def test_incomplete_pipelines(tmp_path: Path, classes: dict, error: type[Exception], reason: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(error, match=reason):
        read_contents(pipeline(tmp_path, ["vae"], **classes))


def test_folders_with_one_model_none_and_two(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="without a model"):
        read_contents(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(MissingInput, match=r"(?s)without a model.*notes\.txt"):
        read_contents(tmp_path)
    torch.save({"a": torch.ones(2)}, tmp_path / "Anything.CKPT")
    found = read_contents(tmp_path)
    assert found.container == "folder"
    assert found.extras["file"] == "Anything.CKPT"
    assert_same(found, {"a": torch.ones(2)})
    model(tmp_path / "b.safetensors", "b")
    with pytest.raises(IntegrityError, match=r"more than one model in this folder: Anything\.CKPT, b\.safetensors"):
        read_contents(tmp_path)
    model(tmp_path / "model.safetensors", "m")  # what transformers would read
    assert list(read_contents(tmp_path).tensors) == ["m"]
    sharded(tmp_path)
    with pytest.raises(IntegrityError, match="more than one model"):
        read_contents(tmp_path)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"[" * 100_000, b"\xff"])
def test_a_broken_pipeline_index(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "model_index.json").write_bytes(raw)
    with pytest.raises(IntegrityError):
        read_contents(tmp_path)
