"""The files that measurements are taken on: names, shapes, bytes, and what makes them repeatable."""

import json
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from bench import layout, sd15, sdxl
from bench.layout import Model, Tensor


def header(path: Path) -> tuple[int, dict[str, dict[str, object]]]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return length, json.loads(data[8 : 8 + length])


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("small")
    layout.main([str(folder), "--models", "3", "--shrink", "32"])
    return {letter: folder / f"sd15-{letter}.safetensors" for letter in "ABC"}


def test_sd15_is_the_known_model() -> None:
    tensors = layout.sd15_layout()
    assert len(tensors) == len({tensor.name for tensor in tensors}) == 1131
    floats = [tensor for tensor in tensors if tensor.dtype == "F16"]
    parts = Counter(tensor.name.split(".")[0] for tensor in floats)
    assert parts == {"cond_stage_model": 196, "first_stage_model": 248, "model": 686}
    parameters = Counter[str]()
    for tensor in floats:
        parameters[tensor.name.split(".")[0]] += tensor.elements
    # The published parameter counts of CLIP ViT-L/14's text encoder, the autoencoder and the UNet.
    assert parameters == {"cond_stage_model": 123_060_480, "first_stage_model": 83_653_863, "model": 859_520_964}


def test_sd15_shapes_that_people_know() -> None:
    shapes = dict(sd15.tensors())
    assert shapes["model.diffusion_model.input_blocks.0.0.weight"] == (320, 4, 3, 3)
    assert shapes["model.diffusion_model.output_blocks.11.1.transformer_blocks.0.attn2.to_k.weight"] == (320, 768)
    assert shapes["model.diffusion_model.output_blocks.8.2.conv.weight"] == (640, 640, 3, 3)
    assert shapes["first_stage_model.decoder.up.0.block.0.nin_shortcut.weight"] == (128, 256, 1, 1)
    assert shapes[sd15.POSITION_IDS] == (1, 77)


def test_sdxl_is_the_known_model() -> None:
    tensors = layout.sdxl_layout()
    assert len(tensors) == len({tensor.name for tensor in tensors}) == 2515
    parameters = Counter[str]()
    for tensor in tensors:
        if tensor.dtype == "F16":
            first, *_, third = tensor.name.split(".", 3)[:3] if tensor.name.startswith("cond") else (tensor.name, "")
            part = f"conditioner.embedders.{third}" if third else first.split(".")[0]
            parameters[part] += tensor.elements
    # The published parameter counts of its UNet, the autoencoder, CLIP ViT-L/14 and OpenCLIP ViT-bigG/14.
    assert parameters == {
        "model": 2_567_463_684,
        "first_stage_model": 83_653_863,
        "conditioner.embedders.0": 123_060_480,
        "conditioner.embedders.1": 694_659_841,
    }
    shapes = dict(sdxl.tensors())
    assert shapes["model.diffusion_model.label_emb.0.0.weight"] == (1280, 2816)
    assert shapes["model.diffusion_model.input_blocks.8.1.transformer_blocks.9.attn2.to_k.weight"] == (1280, 2048)
    assert shapes["model.diffusion_model.input_blocks.4.1.proj_in.weight"] == (640, 640)
    assert shapes["conditioner.embedders.1.model.text_projection"] == (1280, 1280)
    assert ("conditioner.embedders.1.model.logit_scale", ()) in shapes.items()


def test_the_library_reads_the_file(small: dict[str, Path]) -> None:
    with safe_open(small["A"], "numpy") as file:
        names = list(file.keys())
        assert len(names) == 1131
        assert np.array_equal(file.get_tensor(sd15.POSITION_IDS), np.arange(77)[None])
        gain = file.get_tensor("model.diffusion_model.out.0.weight")
        assert gain.dtype == np.float16
        assert 0.9 < gain.mean() < 1.1
        assert all(np.isfinite(file.get_tensor(name)).all() for name in names)


def test_the_header_is_the_librarys(small: dict[str, Path]) -> None:
    length, entries = header(small["A"])
    assert length % 8 == 0
    del entries["__metadata__"]
    size = {"I64": 8, "F16": 2}
    order = [(-size[str(entry["dtype"])], name) for name, entry in entries.items()]
    assert order == sorted(order)
    at = 0
    for entry in entries.values():
        begin, end = entry["data_offsets"]  # type: ignore[misc]
        assert begin == at
        at = end
    assert 8 + length + at == small["A"].stat().st_size


def test_models_differ_where_fine_tunes_do(small: dict[str, Path]) -> None:
    with safe_open(small["A"], "numpy") as a, safe_open(small["B"], "numpy") as b, safe_open(small["C"], "numpy") as c:
        for name, _ in sd15.tensors():
            first, second, base = (file.get_tensor(name) for file in (a, b, c))
            shared = name == sd15.POSITION_IDS or name.startswith(sd15.VAE)
            assert np.array_equal(first, base) == shared
            assert np.array_equal(first, second) == shared
        weight = "model.diffusion_model.middle_block.1.proj_in.weight"
        change = np.linalg.norm((a.get_tensor(weight) - c.get_tensor(weight)).astype(np.float32))
        assert change / np.linalg.norm(c.get_tensor(weight).astype(np.float32)) == pytest.approx(0.05, rel=0.2)


def test_bytes_depend_on_nothing_but_the_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [Tensor("x.weight", (70, 50), "F16"), Tensor("y.bias", (33,), "F16")]
    layout.write(tmp_path / "one", tensors, Model("A"), jobs=1)
    layout.write(tmp_path / "four", reversed(tensors), Model("A"), jobs=4)
    layout.write(tmp_path / "seed", tensors, Model("A", seed=1))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "four").read_bytes()
    assert (tmp_path / "one").read_bytes() != (tmp_path / "seed").read_bytes()
    monkeypatch.setattr(layout, "CHUNK", 1000)  # more than one chunk per tensor: a file of the same size
    layout.write(tmp_path / "chunks", tensors, Model("A"))
    assert (tmp_path / "chunks").stat().st_size == (tmp_path / "one").stat().st_size
    with safe_open(tmp_path / "chunks", "numpy") as file:
        assert np.count_nonzero(file.get_tensor("x.weight")) > 3400


def test_a_finished_file_is_kept_and_another_is_replaced(tmp_path: Path) -> None:
    path, tensors = tmp_path / "a", [Tensor("x.weight", (8, 8), "F16")]
    assert layout.write(path, tensors, Model("A"))
    assert not layout.write(path, tensors, Model("A"))
    assert layout.write(path, tensors, Model("A", delta=0.1))
    path.write_bytes(path.read_bytes()[:-1])
    assert layout.write(path, tensors, Model("A", delta=0.1))
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(("dtype", "size"), [("F16", 2), ("BF16", 2), ("F32", 4)])
def test_dtypes_hold_the_same_numbers(tmp_path: Path, dtype: str, size: int) -> None:
    path = tmp_path / "a"
    layout.write(path, [Tensor("x.weight", (40, 40), dtype)], Model("C"))
    raw = np.frombuffer(path.read_bytes()[-1600 * size :], {"F16": "<f2", "BF16": "<u2", "F32": "<f4"}[dtype])
    values = (raw.astype("<u4") << 16).view("<f4") if dtype == "BF16" else raw.astype("<f4")
    layout.write(tmp_path / "exact", [Tensor("x.weight", (40, 40), "F32")], Model("C"))
    exact = np.frombuffer((tmp_path / "exact").read_bytes()[-6400:], "<f4")
    assert np.allclose(values, exact, rtol={"F16": 2**-11, "BF16": 2**-8, "F32": 0}[dtype], atol=1e-7)


def test_sparse_files_are_large_and_take_little(tmp_path: Path) -> None:
    layout.main([str(tmp_path), "--models", "2", "--sparse-times", "10", "--shrink", "4"])
    a, b = (tmp_path / f"sd15x10-{letter}.safetensors" for letter in "AB")
    assert a.stat().st_size > 10 * 60e6
    assert getattr(a.stat(), "st_blocks", 0) * 512 < 30e6
    name = "model.diffusion_model.middle_block.0.in_layers.2.weight"
    with safe_open(a, "numpy") as one, safe_open(b, "numpy") as two:
        assert one.get_slice(name).get_shape() == [3200, 320, 3, 3]
        assert not np.array_equal(one.get_tensor(name), two.get_tensor(name))
        assert len(one.keys()) == 1131


def test_many_is_fifty_thousand_of_one_to_four_kilobytes() -> None:
    tensors = layout.many_layout()
    assert len({tensor.name for tensor in tensors}) == 50_000
    assert min(tensor.bytes for tensor in tensors) == 1024
    assert max(tensor.bytes for tensor in tensors) == 4096
    assert tensors == layout.many_layout()
