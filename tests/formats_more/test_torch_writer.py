"""A .ckpt of ours: torch loads it, zip tools find nothing wrong, and the same tensors give the same bytes."""

from __future__ import annotations

import random
import re
import zipfile
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_files import assert_same, data_of, torch_loaded

from mergeflow.formats.contents import read_contents
from mergeflow.formats.torchwriter import combine_crc32, write_torch_zip_plan
from mergeflow.tensors import DType


def write(path: Path, values: dict[str, bytes], specs: list[tuple[str, DType, tuple[int, ...]]], **extras: int) -> Path:
    plan = write_torch_zip_plan(specs, extras)
    whole, filled = bytearray(plan.file_size), 0
    crcs = [zlib.crc32(values[t.name]) for t in plan.tensors]
    for t in plan.tensors:
        assert t.start % 64 == 0
        whole[t.start : t.start + t.nbytes] = values[t.name]
    for offset, piece in plan.pieces(crcs):
        assert not any(whole[offset : offset + len(piece)])
        whole[offset : offset + len(piece)] = piece
        filled += len(piece)
    assert filled + sum(t.nbytes for t in plan.tensors) == plan.file_size == len(whole)
    path.write_bytes(whole)
    return path


def test_torch_loads_what_was_written(tmp_path: Path) -> None:
    shapes = [(), (3,), (2, 3), (0, 4), (1, 5, 1), (70_000, 1)]
    specs = [(f"{d.label}.名 {i}", d, s) for d in DType for i, s in enumerate(shapes)]
    values = {n: data_of(torch.randint(0, 2, s).to(getattr(torch, d.label))) for n, d, s in specs}
    path = write(tmp_path / "m.ckpt", values, specs, global_step=7, epoch=-(1 << 70), n=300)
    for options in ({}, {"mmap": True}):
        loaded = torch_loaded(path, **options)
        beside = {k: v for k, v in loaded.items() if k != "state_dict"}
        assert beside == {"global_step": 7, "epoch": -(1 << 70), "n": 300}
        assert {n: data_of(t) for n, t in loaded["state_dict"].items()} == values
        assert all(t.is_contiguous() for t in loaded["state_dict"].values())
        assert_same(read_contents(path), loaded["state_dict"])
    assert zipfile.ZipFile(path).testzip() is None

    random.Random(1).shuffle(specs)
    again = write(tmp_path / "n.ckpt", values, specs, epoch=-(1 << 70), n=300, global_step=7)
    assert again.read_bytes() == path.read_bytes()


def test_an_archive_that_a1111_accepts(tmp_path: Path) -> None:
    names = zipfile.ZipFile(write(tmp_path / "m.ckpt", {"a": bytes(4)}, [("a", DType.F32, ())])).namelist()
    assert all(re.fullmatch(r"([^/]+)/((data/\d+)|version|(data\.pkl))", n) for n in names)


def test_a_checkpoint_without_tensors_and_a_wrong_number_of_checksums(tmp_path: Path) -> None:
    assert torch_loaded(write(tmp_path / "m.ckpt", {}, [])) == {"state_dict": {}}
    with pytest.raises(ValueError):
        write_torch_zip_plan([("a", DType.F32, (1,))]).pieces([])


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_checksums_of_pieces(a: bytes, b: bytes) -> None:
    assert combine_crc32(zlib.crc32(a), zlib.crc32(b), len(b)) == zlib.crc32(a + b)
