"""Reading a safetensors header: every rule of the format is checked before anything believes an offset.

The format: 8 bytes little-endian header length, a JSON object {name: {dtype, shape, data_offsets}} that may carry
`__metadata__` (text to text), then the data, without holes. https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mergeflow.errors import IntegrityError
from mergeflow.formats.files import ReadFile
from mergeflow.formats.strictjson import Duplicate, parse_json
from mergeflow.tensors import BY_CODE, TensorSpec

HEADER_LIMIT = 100_000_000  # of the reference implementation
LARGEST = 1 << 64  # what sizes are counted in elsewhere; a number of thousands of digits could not even be shown


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says it holds. `tensors` is in the order of the data."""

    tensors: Mapping[str, TensorSpec]
    metadata: Mapping[str, str]
    data_start: int
    file_size: int


class _Damaged(Exception):
    """What is wrong with a header, whichever file it is of."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def read_header(file: ReadFile) -> Header:
    """The header of an open file that begins like a safetensors file (`formats.contents` tells them from others).

    Raises:
        IntegrityError: when it is not complete and valid.
    """
    path, size = file.path, file.size
    if size < 8:
        raise IntegrityError(f"{path}: not a safetensors file: only {size} bytes long")
    (length,) = struct.unpack("<Q", file.read(8, 0))
    if length > HEADER_LIMIT:
        raise IntegrityError(f"{path}: not a safetensors file: its header would be {length:,} bytes long")
    if 8 + length > size:
        raise IntegrityError(
            f"{path}: cut short: the header alone needs {8 + length:,} bytes, the file has {size:,}",
            hint="fetch it again",
        )
    return parse_header(file.read(length, 8), path, size)


def parse_header(raw: bytes, path: Path, file_size: int) -> Header:
    """Check and convert the JSON of a header; `file_size` is what the offsets must fill exactly."""
    try:
        return _parsed(raw, file_size)
    except _Damaged as error:
        raise IntegrityError(f"{path}: {error}", hint=error.hint) from None


def check_with_library(path: Path) -> None:
    """Have the reference implementation open the file as well; it sees the header by other eyes than ours. It maps the
    whole file, though: where the address space is limited to less than that (`ulimit -v`), ours have to do."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy"):
            pass
    except MemoryError:
        return
    except SafetensorError as error:
        raise IntegrityError(f"{path}: the safetensors library refuses it: {error}") from error


@lru_cache(maxsize=4)  # variants of one model mostly have the very same header
def _parsed(raw: bytes, file_size: int) -> Header:
    try:
        document = parse_json(raw)
    except Duplicate as error:
        raise _Damaged(f"the header names {_shown(error.name)} twice") from None
    except (ValueError, RecursionError):
        raise _Damaged("not a safetensors file: the header is not valid JSON") from None
    if not isinstance(document, dict):
        raise _Damaged("not a safetensors file: the header is not a JSON object")
    metadata = document.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _Damaged("the header's __metadata__ must map text to text")
    data_start = 8 + len(raw)
    tensors = [_tensor(name, entry, data_start) for name, entry in document.items()]
    tensors.sort(key=lambda t: (t.start, t.nbytes))
    _check_no_holes(tensors, data_start, file_size)
    return Header({t.name: t for t in tensors}, metadata, data_start, file_size)


def _tensor(name: str, entry: Any, data_start: int) -> TensorSpec:
    try:
        code, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise _Damaged(
            f"the header's entry for {_shown(name)} is malformed: it needs dtype, shape and two data_offsets"
        ) from None
    dtype = BY_CODE.get(code) if isinstance(code, str) else None
    if dtype is None:
        raise _Damaged(
            f"tensor {_shown(name)} has the type {_shown(code)}, which mergeflow does not know",
            hint=f"known types: {', '.join(BY_CODE)}",
        )
    for n in (*shape, begin, end):
        if type(n) is not int or not 0 <= n < LARGEST:
            raise _Damaged(
                f"tensor {_shown(name)}: shape {_shown(list(shape))}, data_offsets {_shown([begin, end])}: "
                "one is not a whole number that a file could have"
            )
    nbytes = _size(shape, dtype.size)
    if end - begin != nbytes:
        needs = f"{nbytes:,} bytes" if nbytes < LARGEST else "more bytes than any file has"
        raise _Damaged(
            f"tensor {_shown(name)} should take {needs} ({code} {_shown(list(shape))}), "
            + (f"its offsets span {end - begin:,}" if begin <= end else f"it ends before it begins: [{begin}, {end}]")
        )
    return TensorSpec(name, dtype, shape, data_start + begin)


def _size(shape: tuple[int, ...], element: int) -> int:
    """In bytes. LARGEST where it is that or more on the way, even if a 0 follows: the reference implementation says so
    too, and a product of a million factors would take hours."""
    size = element
    for n in shape:
        size *= n
        if size >= LARGEST:
            return LARGEST
    return size


def _shown(value: object) -> str:
    """As JSON has it, and short enough for a message."""
    text = repr(value) if not isinstance(value, str) else repr(value[:200])
    return text if len(text) <= 60 else f"{text[:40]}…{text[-16:]}"


def _check_no_holes(tensors: list[TensorSpec], data_start: int, file_size: int) -> None:
    position = data_start
    for t in tensors:
        if t.start != position:
            what = "overlaps the tensor before it" if t.start < position else "leaves a hole before it"
            raise _Damaged(
                f"tensor {_shown(t.name)} {what}: it begins at byte {t.start:,} of the file, "
                f"the one before ends at {position:,}"
            )
        position += t.nbytes
    if position > file_size:
        raise _Damaged(f"cut short: its tensors need {position:,} bytes, the file has {file_size:,}", "fetch it again")
    if position < file_size:
        raise _Damaged(f"{file_size - position:,} bytes follow the last tensor; the file is damaged")
