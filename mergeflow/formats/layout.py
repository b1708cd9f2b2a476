"""The canonical safetensors layout that mergeflow writes: where each tensor goes, and the header's exact bytes.

Tensors by element size (largest first), then by name in code point order; no holes; metadata sorted; the header
padded with spaces so that the data begins on a page. The library's own writer puts metadata in random order.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mergeflow.tensors import DType, TensorSpec

PAGE = 4096
LAYOUT = 1  # part of every file key: raised when the same tensors would be laid out in another way


@dataclass(frozen=True, slots=True)
class Layout:
    """`tensors` in file order with their final offsets; `file_size` is known before the first byte is computed."""

    tensors: tuple[TensorSpec, ...]
    metadata: Mapping[str, str]
    header: bytes
    file_size: int

    def header_with(self, metadata: Mapping[str, str]) -> bytes:
        """The header again with other metadata of the same length, such as a digest known only at the end."""
        body = _json(self.tensors, metadata, len(self.header))
        header = _padded(body, len(self.header))
        if len(header) != len(self.header):
            raise ValueError("metadata that changes the header's length cannot be put in afterwards")
        return header


def canonical_order(tensors: Iterable[tuple[str, DType, tuple[int, ...]]]) -> list[tuple[str, DType, tuple[int, ...]]]:
    return sorted(tensors, key=lambda t: (-t[1].size, t[0]))


def lay_out(tensors: Iterable[tuple[str, DType, tuple[int, ...]]], metadata: Mapping[str, str]) -> Layout:
    """The layout of a file with these (name, dtype, shape)."""
    specs, position = [], 0
    for name, dtype, shape in canonical_order(tensors):
        spec = TensorSpec(name, dtype, shape, position)
        specs.append(spec)
        position += spec.nbytes
    header = _padded(_json(specs, metadata, 0), 0)
    start = len(header)
    moved = tuple(TensorSpec(s.name, s.dtype, s.shape, s.start + start) for s in specs)
    return Layout(moved, dict(metadata), header, start + position)


def _json(specs: Iterable[TensorSpec], metadata: Mapping[str, str], data_start: int) -> bytes:
    document: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    for s in specs:
        begin = s.start - data_start
        document[s.name] = {"dtype": s.dtype.code, "shape": s.shape, "data_offsets": [begin, begin + s.nbytes]}
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def _padded(body: bytes, at_least: int) -> bytes:
    length = max(-(-(8 + len(body)) // PAGE) * PAGE, at_least) - 8
    return struct.pack("<Q", length) + body.ljust(length, b" ")
