"""The front of all readers: whatever a path holds, by what is in it and not by its suffix."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from mergeflow.errors import IntegrityError
from mergeflow.formats.files import ReadFile
from mergeflow.formats.folder import read_folder
from mergeflow.formats.header import HEADER_LIMIT, read_header
from mergeflow.formats.legacy import read_legacy
from mergeflow.formats.shards import read_shards
from mergeflow.formats.stored import Contents, recognise
from mergeflow.formats.torchzip import read_torch_zip

__all__ = ["Contents", "is_safetensors", "read_contents"]

_AGAIN = "fetch it again"
_OTHERS = (
    (b"GGUF", "a GGUF file", "mergeflow reads safetensors and torch files: convert it first"),
    (b"\x89HDF", "an HDF5 file, as Keras writes", "mergeflow reads safetensors and torch files: convert it first"),
    (b"version https://git-lfs", "a Git LFS pointer: the model itself was not downloaded", "run git lfs pull"),
    (b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (b"7z\xbc\xaf", "a 7-Zip archive", "unpack it first"),
    (b"Rar!", "a RAR archive", "unpack it first"),
)


def read_contents(path: Path) -> Contents:
    """What a model file, an index of shards or a folder holds. Nothing is executed and no tensor is read.

    Raises:
        MissingInput: when it, or a file it is made of, is not there.
        IntegrityError: when it is not a model, is damaged, or asks for more than to be read.
        ResourceError: when the system refuses to read it.
    """
    if os.path.isdir(path):  # noqa: PTH112  # unlike Path's it answers any path, too long ones as well
        return read_folder(path, _read_file_or_index)
    return _read_file_or_index(path)


def _read_file_or_index(path: Path) -> Contents:
    with ReadFile(path) as file:
        found = None if _is_index(file) else _read(file)
        file.check_unchanged()
    return found or read_shards(path, _read_file)


def _read_file(path: Path) -> Contents:
    with ReadFile(path) as file:
        found = _read(file)
        file.check_unchanged()
    return found


def _is_index(file: ReadFile) -> bool:
    return not is_safetensors(file) and file.read(min(file.size, 64), 0).lstrip().startswith(b"{")


def is_safetensors(file: ReadFile) -> bool:
    """Asked before all else: the length that such a file begins with may look like anything, a pickle included."""
    if file.size < 10:
        return False
    start = file.read(9, 0)
    (length,) = struct.unpack("<Q", start[:8])
    return bool(length <= HEADER_LIMIT and start[8:] == b"{")


def _read(file: ReadFile) -> Contents:
    path, size = file.path, file.size
    if size == 0:
        raise IntegrityError(f"{path}: the file is empty", hint=_AGAIN)
    if is_safetensors(file):
        return _read_safetensors(file)
    start = file.read(min(size, 512), 0)
    if start.startswith(b"PK"):
        return read_torch_zip(file)
    if start[0] == 0x80 and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return read_legacy(file)
    for magic, what, way_out in _OTHERS:
        if start.startswith(magic):
            raise IntegrityError(f"{path}: not a model file but {what}", hint=way_out)
    if start[257:262] == b"ustar":
        raise IntegrityError(
            f"{path}: a tar file, as torch wrote before 0.1.10 or as an archive of other files",
            hint="unpack it, or load and save it with torch",
        )
    raise _unknown(path, start, size)


def _unknown(path: Path, start: bytes, size: int) -> IntegrityError:
    """What a file is that no reader knows, as far as its first bytes tell."""
    text = start.lstrip()
    if text[:9].lower().startswith((b"<!doctype", b"<html")):
        return IntegrityError(f"{path}: not a model file but a web page: the download went wrong", hint=_AGAIN)
    if not start.strip(b"\0"):
        return IntegrityError(f"{path}: not a model file: it begins with {len(start)} zeros", hint=_AGAIN)
    length = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{":
        return IntegrityError(
            f"{path}: not a safetensors file: its header would have {length:,} bytes, at most {HEADER_LIMIT:,} are read"
        )
    if size >= 8 and length < 2:
        return IntegrityError(f"{path}: not a safetensors file: its header would have {length} bytes")
    found = f": it begins with {start[:16].hex(' ')}"
    if all(b in b"\t\n\r" or 32 <= b < 127 for b in start[:64]):
        found = f" but text: {' '.join(text[:60].decode('ascii').split())}"
    return IntegrityError(
        f"{path}: not a model file{found}", hint="mergeflow reads safetensors and the files of torch.save"
    )


def _read_safetensors(file: ReadFile) -> Contents:
    header = read_header(file)
    found = recognise(header.tensors.values())
    return Contents("safetensors", (file.path,), header.tensors, header.metadata, {}, found)
