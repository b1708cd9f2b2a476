"""The hashes that people quote, against hashlib over the bytes that their definitions name."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from mergeflow.errors import IntegrityError, MissingInput
from mergeflow.events import silent
from mergeflow.formats.files import ReadFile
from mergeflow.sources.hashes import autov3, check_claims, old_hash, sha256
from mergeflow.sources.memo import Memo


@pytest.fixture
def memo(tmp_path: Path) -> Iterator[Memo]:
    made = Memo(tmp_path / "memo", lambda message: None)
    yield made
    made.close()


@pytest.mark.parametrize("size", [9, 1 << 20, (1 << 20) + 1000, (1 << 20) + (1 << 16) + 5])
def test_each_is_of_the_bytes_it_says(tmp_path: Path, memo: Memo, size: int) -> None:
    header = b"{}      "
    data = (struct.pack("<Q", len(header)) + header + bytes(range(256)) * (size // 256 + 1))[: size + 16]
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    for _ in range(2):  # read, then remembered
        assert sha256(path, memo, silent) == hashlib.sha256(data).hexdigest()
        with ReadFile(path) as file:
            assert autov3(file, memo, silent) == hashlib.sha256(data[16:]).hexdigest()
            assert old_hash(file) == hashlib.sha256(data[1 << 20 : (1 << 20) + (1 << 16)]).hexdigest()[:8]


@pytest.mark.parametrize("data", [b"", b"1234567", b"PK\x03\x04" + b"\x7f" * 60])
def test_only_safetensors_files_have_an_autov3(tmp_path: Path, memo: Memo, data: bytes) -> None:
    path = tmp_path / "x.ckpt"
    path.write_bytes(data)
    with ReadFile(path) as file, pytest.raises(IntegrityError, match="only safetensors files have"):
        autov3(file, memo, silent)


def test_a_size_is_that_of_a_file(tmp_path: Path, memo: Memo) -> None:
    with pytest.raises(MissingInput, match="is a folder, not a file"):
        check_claims(tmp_path, memo, silent, sha256_claim=None, short=None, size=4096)
