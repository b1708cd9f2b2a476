"""Where each byte of an output goes, known before the first tensor is computed; and the canonical safetensors file.

An output is a row of tensors in *one* space of bytes, without holes: what several workers compute is written at
positions of that space, whatever the container. A layout says which files there are, where in them each stretch of the
space lies, and what else is to be written when the tensors are: headers, zip records, an index (`formats.output` does
it).

The safetensors file: tensors by element size (largest first), then by name in code point order; no holes; metadata
sorted; the header padded with spaces so that the data begins on a page. The library's own writer puts metadata in
random order.
"""

from __future__ import annotations

import json
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NamedTuple

from mergeflow.digest import model_digest, printable
from mergeflow.tensors import DType, TensorSpec

PAGE = 4096
LAYOUT = 1  # part of every file key: raised when the same tensors would be laid out in another way
MODEL_DIGEST = "mergeflow.digest"  # metadata that is known last; its place is held by values of the same length
UNKNOWN_DIGEST = "b3:" + "0" * 64
TENSOR_HASH = "modelspec.hash_sha256"
UNKNOWN_HASH = "0x" + "0" * 64
_quoted = json.JSONEncoder(ensure_ascii=False).encode  # text as JSON has it


class Stretch(NamedTuple):
    """From `start` of the space on, until the next stretch begins, bytes lie in file `file` from `at` on."""

    start: int
    file: int
    at: int


class Piece(NamedTuple):
    """Bytes of a file that are no tensor's."""

    file: int
    at: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Ending:
    """What is known when the last tensor is written. `digests` and `crcs` (CRC-32; where the layout has `checksums`)
    are
    by tensor in the order of the layout; `sha256` is of all tensors' bytes in that order (where it is `hashed`)."""

    digests: Sequence[bytes]
    crcs: Sequence[int] = ()
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Layout(ABC):
    """`tensors` in file order with their positions in the output's space, one right behind the other. `metadata` is
    what
    the output says of itself; `file_size` is what the files that hold tensors come to."""

    tensors: tuple[TensorSpec, ...]
    metadata: Mapping[str, str]
    file_size: int

    @property
    def container(self) -> str:
        """What makes these files others than a single safetensors file with the same tensors; part of the file key."""
        return ""

    @property
    def checksums(self) -> bool:
        """Whether the CRC-32 of each tensor is to be written."""
        return False

    @property
    def hashed(self) -> bool:
        """Whether the sha256 of the tensors' bytes is to be written."""
        return self.metadata.get(TENSOR_HASH) == UNKNOWN_HASH

    @property
    def indexed(self) -> bool:
        """Whether the last file is read first, and leads to the others: it must never lead to those of another
        build."""
        return False

    @abstractmethod
    def paths(self, target: Path) -> tuple[Path, ...]:
        """The files of an output, in the order they are published in; the last is `target`, by which it is known."""

    @abstractmethod
    def sizes(self, target: Path) -> tuple[int, ...]:
        """Their sizes in bytes."""

    @abstractmethod
    def holds(self) -> tuple[slice, ...]:
        """Which tensors each file holds."""

    @abstractmethod
    def stretches(self) -> tuple[Stretch, ...]:
        """Where the space lies. Layouts with `checksums` have one for each tensor."""

    @abstractmethod
    def rest(self, target: Path, ending: Ending) -> list[Piece]:
        """All that is not a tensor; with the tensors it fills the files without a hole."""

    def claims(self, ending: Ending) -> dict[str, str]:
        """The metadata with what is known last."""
        found = {**self.metadata}
        if MODEL_DIGEST in found:
            found[MODEL_DIGEST] = digest_of(self.tensors, ending.digests)
        if self.hashed:
            found[TENSOR_HASH] = f"0x{ending.sha256}"
        return found


@dataclass(frozen=True, slots=True)
class SafetensorsLayout(Layout):
    """A single safetensors file. Its space is the file itself."""

    header: bytes

    def header_with(self, metadata: Mapping[str, str]) -> bytes:
        """The header again with other metadata of the same length, such as a digest known only at the end."""
        body = _json(self.tensors, metadata, len(self.header))
        header = _padded(body, len(self.header))
        if len(header) != len(self.header):
            raise ValueError("metadata that changes the header's length cannot be put in afterwards")
        return header

    def paths(self, target: Path) -> tuple[Path, ...]:
        return (target,)

    def sizes(self, target: Path) -> tuple[int, ...]:
        return (self.file_size,)

    def holds(self) -> tuple[slice, ...]:
        return (slice(0, len(self.tensors)),)

    def stretches(self) -> tuple[Stretch, ...]:
        return (Stretch(0, 0, 0),)

    def rest(self, target: Path, ending: Ending) -> list[Piece]:
        return [Piece(0, 0, self.header_with(self.claims(ending)))]


def canonical_order(tensors: Iterable[tuple[str, DType, tuple[int, ...]]]) -> list[tuple[str, DType, tuple[int, ...]]]:
    return sorted(tensors, key=lambda t: (-t[1].size, t[0]))


def digest_of(tensors: Sequence[TensorSpec], digests: Sequence[bytes]) -> str:
    """The printable model digest of tensors with these digests."""
    return printable(model_digest(zip((t.name for t in tensors), digests, strict=True)))


def lay_out(tensors: Iterable[tuple[str, DType, tuple[int, ...]]], metadata: Mapping[str, str]) -> SafetensorsLayout:
    """The layout of one safetensors file with these (name, dtype, shape)."""
    specs, end = one_behind_the_other(canonical_order(tensors))
    header = _padded(_json(specs, metadata, 0), 0)
    start = len(header)
    moved = tuple([TensorSpec(name, dtype, shape, at + start) for name, dtype, shape, at, _ in specs])
    return SafetensorsLayout(moved, dict(metadata), start + end, header)


def one_behind_the_other(
    tensors: Iterable[tuple[str, DType, tuple[int, ...]]],
) -> tuple[tuple[TensorSpec, ...], int]:
    """(name, dtype, shape) in their order, from 0 on; and where the last one ends."""
    specs, position = [], 0
    for name, dtype, shape in tensors:
        specs.append(TensorSpec(name, dtype, shape, position))
        position += prod(shape) * dtype.size
    return tuple(specs), position


def _json(specs: Iterable[TensorSpec], metadata: Mapping[str, str], data_start: int) -> bytes:
    entries = []
    if metadata:
        said = json.dumps(dict(sorted(metadata.items())), separators=(",", ":"), ensure_ascii=False)
        entries.append(f'"__metadata__":{said}')
    for name, dtype, shape, start, _ in specs:  # a document of fifty thousand dicts would take four times as long
        begin = start - data_start
        end = begin + prod(shape) * dtype.size
        sizes = ",".join(map(str, shape))
        entries.append(f'{_quoted(name)}:{{"dtype":"{dtype.code}","shape":[{sizes}],"data_offsets":[{begin},{end}]}}')
    return f"{{{','.join(entries)}}}".encode()


def _padded(body: bytes, at_least: int) -> bytes:
    length = max(-(-(8 + len(body)) // PAGE) * PAGE, at_least) - 8
    return struct.pack("<Q", length) + body.ljust(length, b" ")
