"""What the tests of torch files share: values to compare with, and pickles wrapped as torch wraps them."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch

from mergeflow.formats.contents import Contents
from mergeflow.formats.legacy import MAGIC
from mergeflow.tensors import DType

ALL = {d.label: getattr(torch, d.label) for d in DType}
# torch.load refuses its own old files of these (2.13): there is nothing to compare with
UNTYPED = {"uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2"}


def data_of(t: torch.Tensor) -> bytes:
    t = t.detach().contiguous().reshape(-1)
    return t.view(torch.uint8).numpy().tobytes() if t.numel() else b""


def stored(contents: Contents, name: str) -> bytes:
    t = contents.tensors[name]
    with contents.files[t.file].open("rb") as file:
        file.seek(t.start)
        return file.read(t.nbytes)


def assert_same(contents: Contents, expected: Mapping[str, torch.Tensor]) -> None:
    assert set(contents.tensors) == set(expected)
    order = [(t.file, t.start) for t in contents.tensors.values()]
    assert order == sorted(order)
    for name, value in expected.items():
        t = contents.tensors[name]
        assert t.name == name
        assert (t.dtype.label, t.shape) == (str(value.dtype).removeprefix("torch."), tuple(value.shape)), name
        assert stored(contents, name) == data_of(value), name


def zip_with(path: Path, pickled: bytes, storages: Mapping[str, bytes] | None = None, **others: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("x/data.pkl", pickled)
        for key, data in (storages or {}).items():
            z.writestr(f"x/data/{key}", data)
        for name, data in others.items():
            z.writestr(f"x/{name}", data)
    return path


def long1(n: int) -> bytes:
    return b"\x80\x02\x8a\x0a" + n.to_bytes(10, "little") + b"."


def legacy_with(path: Path, pickled: bytes) -> Path:
    protocol = b"\x80\x02M" + struct.pack("<H", 1001) + b"."
    path.write_bytes(long1(MAGIC) + protocol + b"\x80\x02}." + pickled + b"\x80\x02].")
    return path


def torch_loaded(path: Path, **options: bool) -> dict:
    return torch.load(path, weights_only=True, **options)  # noqa: TID251  # the judge of what is in a file
