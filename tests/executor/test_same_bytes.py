"""One recipe, one sequence of bytes: whatever the threads, tiles, units, names, hash seed and vector unit."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from support.builds import HEAD, build, made_elsewhere, project, sha256
from support.checkpoints import Model, Tensor, any_bits, metadata, numbers, read, read_header, related, weights, write
from support.exact import FORMATS

from mergeflow.digest import CHUNK
from mergeflow.executor import _sums
from mergeflow.executor.device import KERNELS_VARIABLE
from mergeflow.plan import place

RECIPE = (
    HEAD
    + """sources: { a: models/a.safetensors, b: models/b.safetensors, c: models/c.safetensors }
params: { k: { default: 0.3, "small.*": 0.4, strange: 0.5, f32: 0.6 } }
steps:
  mix: a + (b - c) * 0.3
  half: { expr: a*0.4 + b*0.6, round: bfloat16 }
outputs:
  own.safetensors: mix
  f16.safetensors: { from: mix, dtype: float16 }
  bf16.safetensors: { from: mix, dtype: bfloat16 }
  f32.safetensors: { from: a*0.1 + b*0.2 + c*0.7, dtype: float32 }
  f64.safetensors: { from: a*0.1 + b*0.2 + c*0.7, dtype: float64 }
  e4m3.safetensors: { from: mix, dtype: float8_e4m3fn }
  e5m2.safetensors: { from: mix, dtype: float8_e5m2 }
  rounded.safetensors: { from: half + (b - c)*0.123456789, dtype: float16 }
  copy.safetensors: c
  varied.safetensors: a + (b - c)*k
  filled.safetensors: fallback(a + (b - a)*k, c, b)
"""
)
OUTPUTS = ["own", "f16", "bf16", "f32", "f64", "e4m3", "e5m2", "rounded", "copy", "varied", "filled"]


def with_bits(t: Tensor, *patterns: int) -> Tensor:
    """The tensor with some elements replaced, at its start, its end and in between."""
    bits = np.frombuffer(t.data, FORMATS[t.code].unsigned).copy()
    for i, pattern in enumerate(patterns):
        for at in (i, len(bits) // 2 + i, len(bits) - 1 - i):
            bits[at] = pattern
    return Tensor(t.code, t.shape, bits.tobytes())


def some_models() -> dict[str, Model]:
    """Large and small tensors of several dtypes, with NaNs of different payloads and infinities in bfloat16."""
    rng = np.random.default_rng(11)
    large = weights(rng, "F16", (1_700_001,))
    strange = any_bits(rng, "BF16", (70_003,), finite=False)
    models: dict[str, Model] = {}
    for name in "abc":
        models[name] = {
            "large": related(rng, large),
            "z.bf16": with_bits(any_bits(rng, "BF16", (70_003,)), 0x7F80, 0xFF80, 0x7FC1, 0xFFC0, 0x7F81),
            "strange": strange if name == "c" else any_bits(rng, "BF16", (70_003,), finite=False),
            "f32": weights(rng, "F32", (300, 401)),
            "f64": weights(rng, "F64", (9_999,)),
            "small.1": weights(rng, "F16", (3,)),
            "small.2": weights(rng, "F16", ()),
            "small.3": weights(rng, "F16", (0,)),
            "ids": numbers("I64", range(77)),
            "e5m2": any_bits(rng, "F8_E5M2", (501,)),
            f"only.{name}": weights(rng, "F32", (5, 7)),
        }
    return models


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("same") / "models"
    for name, model in some_models().items():
        write(folder / f"{name}.safetensors", model)
    return folder


def made(folder: Path, models: Path, text: str = RECIPE, **more: object) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    if not (folder / "models").exists():
        (folder / "models").symlink_to(models)
    build(folder, text, **more)
    return {name: sha256(folder / f"{name}.safetensors") for name in OUTPUTS}


@pytest.fixture(scope="module")
def reference(models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return made(tmp_path_factory.mktemp("reference"), models, jobs=1)


@pytest.mark.parametrize("jobs", [2, 8, None])
def test_threads(tmp_path: Path, models: Path, reference: dict[str, str], jobs: int | None) -> None:
    assert made(tmp_path, models, jobs=jobs) == reference


@pytest.mark.parametrize("kernels", ["torch", "compiled, without half precision instructions"])
def test_kernels(
    tmp_path: Path, models: Path, reference: dict[str, str], monkeypatch: pytest.MonkeyPatch, kernels: str
) -> None:
    monkeypatch.setenv(KERNELS_VARIABLE, kernels)
    _sums.plain(kernels != "torch")
    try:
        assert made(tmp_path, models, jobs=2) == reference
    finally:
        _sums.plain(False)


@pytest.mark.parametrize(("tile", "tile_f64"), [(1 << 12, 1 << 11), (100_001, 3_333), (1 << 21, 1 << 21)])
def test_tiles(
    tmp_path: Path, models: Path, reference: dict[str, str], monkeypatch: pytest.MonkeyPatch, tile: int, tile_f64: int
) -> None:
    monkeypatch.setenv(KERNELS_VARIABLE, "torch")
    monkeypatch.setattr(place, "TILE", tile)
    monkeypatch.setattr(place, "TILE_F64", tile_f64)
    assert made(tmp_path, models, jobs=2, memory=4 << 30) == reference


@pytest.mark.parametrize("chunks", [1, 3, 16])
def test_units(
    tmp_path: Path, models: Path, reference: dict[str, str], monkeypatch: pytest.MonkeyPatch, chunks: int
) -> None:
    monkeypatch.setattr(place, "UNIT", chunks * CHUNK)
    assert made(tmp_path, models, jobs=2, memory=4 << 30) == reference


def test_names_and_order_of_everything(tmp_path: Path, models: Path, reference: dict[str, str]) -> None:
    """Other names of sources, steps and files, another order of sources and of the tensors in the files, metadata."""
    folder = tmp_path / "renamed"
    for name, new in (("a", "zz 猫"), ("b", "mm"), ("c", "aa")):
        model = read(models / f"{name}.safetensors")
        write(folder / f"{new}.safetensors", dict(reversed(model.items())), {"title": name})
    text = (
        RECIPE.replace("models/a.safetensors", "'models/zz 猫.safetensors'")
        .replace("models/b.", "models/mm.")
        .replace("sources: { a:", "sources: { q: models/aa.safetensors, a:")
        .replace(", c: models/c.safetensors", "")
    )
    text = text.replace("c)", "q)").replace(", c, b)", ", q, b)")
    text = text.replace("c*", "q*").replace(": c\n", ": q\n").replace("mix", "renamed_step")
    assert made(tmp_path, folder, text) == reference


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONHASHSEED": "1", "MERGEFLOW_PORTABLE_IO": "1"},
        {
            "PYTHONHASHSEED": "2",
            "MERGEFLOW_KERNELS": "torch",
            "ATEN_CPU_CAPABILITY": "default",
            "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512_SKX",
        },
        {"PYTHONHASHSEED": "3", "MERGEFLOW_KERNELS": "torch", "ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "1"},
    ],
    ids=["portable", "default", "avx2"],
)
def test_environment(tmp_path: Path, models: Path, reference: dict[str, str], environment: dict[str, str]) -> None:
    assert made_elsewhere(tmp_path, models, RECIPE, **environment) == reference


def test_every_output_is_read_alike_by_the_safetensors_library(
    tmp_path: Path, models: Path, reference: dict[str, str]
) -> None:
    assert made(tmp_path, models) == reference
    for name in OUTPUTS:
        path = tmp_path / f"{name}.safetensors"
        ours = read(path)
        with safe_open(str(path), framework="pt") as file:
            assert sorted(file.keys()) == sorted(ours)
            for key, t in ours.items():
                theirs = file.get_tensor(key)
                assert tuple(theirs.shape) == t.shape
                assert theirs.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() == t.data


def test_the_header_is_canonical(tmp_path: Path, models: Path, reference: dict[str, str]) -> None:
    """Tensors by element size, then name; no holes; metadata first and sorted; data begins on a page."""
    made(tmp_path, models)
    for name in OUTPUTS:
        path = tmp_path / f"{name}.safetensors"
        raw = path.read_bytes()
        header, start = read_header(raw)
        assert start % 4096 == 0
        text = raw[8:start]
        assert text.rstrip(b" ") == json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert next(iter(header)) == "__metadata__"
        assert list(header["__metadata__"]) == sorted(header["__metadata__"])
        del header["__metadata__"]
        tensors = read(path)
        sizes = {n: -FORMATS[t.code].size if t.code in FORMATS else -8 for n, t in tensors.items()}
        assert list(header) == sorted(header, key=lambda n: (sizes[n], n))
        at = 0
        for entry in header.values():
            assert entry["data_offsets"][0] == at
            at = entry["data_offsets"][1]
        assert start + at == len(raw)
        assert struct.unpack("<Q", raw[:8])[0] == start - 8


def test_what_a_file_says_of_itself_is_true_and_without_names(tmp_path: Path, models: Path) -> None:
    made(tmp_path, models)
    said = metadata(tmp_path / "f16.safetensors")
    assert said["format"] == "pt"
    graph = json.loads(said["mergeflow"])
    terms = sorted(int(n) for n, _ in graph["forms"][graph["form"]]["terms"])
    assert (terms, graph["forms"][graph["form"]]["over"]) == ([-3, 3, 10], "10")
    assert "models" not in said["mergeflow"]
    with project(tmp_path, RECIPE) as p:
        digests = {p.sources.identified(i).model for i in range(3)}
        assert {name for _, name in graph["forms"][graph["form"]]["terms"]} == digests
        assert said["mergeflow.digest"] == next(
            r.model for path in p.records.paths() if path.name == "f16.safetensors" and (r := p.records.find(path))
        )


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_mode_honours_the_umask(tmp_path: Path, umask: int) -> None:
    write(tmp_path / "a.safetensors", {"w": numbers("F32", [1, 2])})
    before = os.umask(umask)
    try:
        build(tmp_path, HEAD + "sources: { a: a.safetensors }\noutputs: { mix.safetensors: a }\n")
    finally:
        os.umask(before)
    assert (tmp_path / "mix.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask


def test_nans_that_are_computed_have_one_pattern(tmp_path: Path, models: Path) -> None:
    made(tmp_path, models)
    for name, key in (("bf16", "strange"), ("f16", "z.bf16"), ("e4m3", "strange"), ("e5m2", "strange")):
        t = read(tmp_path / f"{name}.safetensors")[key]
        f = FORMATS[t.code]
        bits = np.frombuffer(t.data, f.unsigned)
        size = bits & f.unsigned((1 << (8 * f.size - 1)) - 1)
        infinity = 0x7E if f.finite else ((1 << f.exponent) - 1) << f.mantissa
        nans = np.unique(bits[size > infinity])
        assert nans.tolist() == [0x7F if f.finite else infinity | 1 << (f.mantissa - 1)]
