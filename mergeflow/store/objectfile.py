"""The file of an object: a safetensors file that says of itself all that the index knows, so that the index can always
be made again.

Its id is the digest of its header with the payload digests, which are not known before the end, set to zeros. So a
header in which anything changed does not fit its file name, and two builds that write one object write one file.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from mergeflow.digest import CHUNK, DIGEST_SIZE, NUMERICS, hash_bytes, parse_digest, payload_digest, printable
from mergeflow.errors import IntegrityError, ResourceError
from mergeflow.formats.header import HEADER_LIMIT, parse_header
from mergeflow.formats.layout import SafetensorsLayout, canonical_order, lay_out
from mergeflow.store.objects import Keyed, ObjectId, Readable
from mergeflow.tensors import TensorSpec

FORMAT = 1
VERSION, KIND, TITLE, NUMBERS = "mergeflow.object", "mergeflow.kind", "mergeflow.title", "mergeflow.numerics"
KEYS, PAYLOADS = "mergeflow.keys", "mergeflow.payloads"
_UNKNOWN = printable(bytes(DIGEST_SIZE))


class Held(NamedTuple):
    """One tensor of an object."""

    key: str
    spec: TensorSpec
    payload: bytes


@dataclass(frozen=True, slots=True)
class ObjectFile:
    """What the header of an object says; `held` in file order, `size` of the whole file in bytes."""

    id: ObjectId
    kind: str
    title: str
    held: tuple[Held, ...]
    size: int


class OtherFormat(IntegrityError):
    """An object of another version of mergeflow: not damaged, only not for us."""


def object_path(folder: Path, object_id: ObjectId) -> Path:
    return folder / "objects" / object_id[:2] / f"{object_id}.safetensors"


def object_ids(folder: Path) -> list[ObjectId]:
    """Ids of the files that lie where objects lie and are called as objects are; any other file is not ours."""
    named = (path.name.removesuffix(".safetensors") for path in folder.glob("objects/??/*.safetensors"))
    return sorted(i for i in named if len(i) == 64 and set(i) <= set("0123456789abcdef"))


def lay_out_object(tensors: Sequence[Keyed], kind: str, title: str) -> tuple[ObjectId, SafetensorsLayout]:
    """Layout of a new object, its payload digests still zeros, and its id."""
    key_of = {t.name: t.key for t in tensors}
    if not tensors or len(key_of) != len(tensors):
        raise ValueError("an object holds at least one tensor, and no two of one name")
    if any(" " in key or not key for key in key_of.values()):
        raise ValueError("a key is one word")
    shapes = [(t.name, t.dtype, t.shape) for t in tensors]
    metadata = {
        VERSION: str(FORMAT),
        KIND: kind,
        TITLE: title,
        NUMBERS: str(NUMERICS),
        KEYS: " ".join([key_of[name] for name, _, _ in canonical_order(shapes)]),
        PAYLOADS: " ".join([_UNKNOWN] * len(tensors)),
    }
    layout = lay_out(shapes, metadata)
    if len(layout.header) > HEADER_LIMIT:
        raise ResourceError(f"{title}: {len(tensors):,} tensors are too many for one stored object")
    return hash_bytes(layout.header).hex(), layout


def held_in(layout: SafetensorsLayout, payloads: Sequence[bytes]) -> tuple[Held, ...]:
    keys = layout.metadata[KEYS].split(" ")
    return tuple([Held(*each) for each in zip(keys, layout.tensors, payloads, strict=True)])


def final_header(layout: SafetensorsLayout, payloads: Sequence[bytes]) -> bytes:
    """The header as it is in the finished file."""
    return layout.header_with({**layout.metadata, PAYLOADS: _spelled(payloads)})


def read_object(file: Readable, object_id: ObjectId) -> ObjectFile:
    """What an object says of itself, checked against its size and its id.

    Raises:
        OtherFormat: it is an object of another format.
        IntegrityError: it is none, or not the one that it is called.
    """
    if file.size < 8:
        raise IntegrityError(f"{file.path}: only {file.size} bytes long")
    prefix = file.read(8, 0)
    (length,) = struct.unpack("<Q", prefix)
    if length > min(HEADER_LIMIT, file.size - 8):
        raise IntegrityError(f"{file.path}: cut short, or no safetensors file")
    raw = file.read(length, 8)
    header = parse_header(raw, file.path, file.size)
    said = header.metadata
    if said.get(VERSION, str(FORMAT)) != str(FORMAT):
        raise OtherFormat(f"{file.path}: of format {said[VERSION]}, this mergeflow knows format {FORMAT}")
    digests = said.get(PAYLOADS, "")
    unknown = " ".join([_UNKNOWN] * len(header.tensors))
    if not digests or hash_bytes(prefix + raw.replace(digests.encode(), unknown.encode(), 1)).hex() != object_id:
        raise IntegrityError(f"{file.path}: its header is not the one that was written")
    try:
        payloads = [parse_digest(text) for text in digests.split(" ")]
        keys = said[KEYS].split(" ")
        held = tuple([Held(*each) for each in zip(keys, header.tensors.values(), payloads, strict=True)])
    except (KeyError, ValueError) as error:
        raise IntegrityError(f"{file.path}: its digests are damaged") from error
    return ObjectFile(object_id, said.get(KIND, ""), said.get(TITLE, ""), held, file.size)


def payload_of(file: Readable, spec: TensorSpec) -> bytes:
    """Digest of the bytes that are there for a tensor, one chunk in memory at a time."""
    chunks, buffer = bytearray(), bytearray(min(CHUNK, spec.nbytes))
    for begin, end in pairwise([*range(0, spec.nbytes, CHUNK), spec.nbytes]):
        view = memoryview(buffer)[: end - begin]
        file.read_into(view, spec.start + begin)
        chunks += hash_bytes(view)
    return payload_digest(bytes(chunks))


def _spelled(payloads: Sequence[bytes]) -> str:
    if any(len(payload) != DIGEST_SIZE for payload in payloads):
        raise ValueError(f"a payload digest has {DIGEST_SIZE} bytes")
    return " ".join(map(printable, payloads))
