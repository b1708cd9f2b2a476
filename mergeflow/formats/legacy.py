"""Files that torch.save wrote before 1.6, or with _use_new_zipfile_serialization=False.

Five pickles one after another (a magic number, the protocol's version, facts of the machine, the objects, the keys of
the storages), then the storages in the order of the keys, each after its number of elements as 8 bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

from mergeflow.errors import IntegrityError
from mergeflow.formats.files import ReadFile
from mergeflow.formats.pickled import Malformed
from mergeflow.formats.pickles import PICKLE_LIMIT, load
from mergeflow.formats.stored import Contents
from mergeflow.formats.stream import Stream
from mergeflow.formats.torchmodel import contents
from mergeflow.formats.torchpickle import find, persistent
from mergeflow.formats.torchvalues import Storage

MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001


def read_legacy(file: ReadFile) -> Contents:
    """The model in an open file that begins with a pickle.

    Raises:
        IntegrityError: when torch did not write it, it is damaged, or asks for anything but tensors.
    """
    path, stream = file.path, Stream(file, 0, PICKLE_LIMIT)
    elements: dict[str, int] = {}

    def note(reference: object) -> object:
        found = persistent(reference)
        if isinstance(found, Storage):
            size = found.element.size if found.element else 1
            if elements.setdefault(found.key, size) != size:
                raise Malformed(f"it takes storage {found.key[:40]} for two different types")
        return found

    magic = load(stream, find, _no_storage)
    if magic != MAGIC:
        raise IntegrityError(
            f"{path}: a pickle that torch.save did not write; nothing in it was executed",
            hint="if it holds a model, convert it to safetensors where it was made",
        )
    protocol = load(stream, find, _no_storage)
    if protocol != _PROTOCOL:
        raise IntegrityError(f"{path}: its torch protocol is not {_PROTOCOL}, the only one there ever was")
    machine = load(stream, find, _no_storage)
    if isinstance(machine, dict) and machine.get("little_endian") is False:
        raise IntegrityError(
            f"{path}: its numbers are big-endian", hint="load and save it with torch on an ordinary computer"
        )
    root = load(stream, find, note)
    keys = load(stream, find, _no_storage)
    if not isinstance(keys, list) or not all(isinstance(k, str) and k in elements for k in keys):
        raise IntegrityError(f"{path}: its list of storages does not fit its objects")
    places = _places(file, keys, elements, stream.position)

    def place(storage: Storage) -> tuple[int, int]:
        found = places.get(storage.key)
        if found is None:
            raise IntegrityError(f"{path}: its storage {storage.key[:40]!r} is missing")
        return found

    return contents(path, "torch legacy pickle", root, place)


def _places(
    file: ReadFile, keys: Iterable[str], elements: Mapping[str, int], position: int
) -> dict[str, tuple[int, int]]:
    """Where the bytes of each storage begin and how many they are. They lie one after the other from `position` on,
    each behind the count of its `elements`."""
    path = file.path
    places: dict[str, tuple[int, int]] = {}
    for key in keys:
        if position + 8 > file.size:
            raise IntegrityError(f"{path}: cut short: storage {key[:40]!r} should begin at byte {position:,}")
        (count,) = struct.unpack("<q", file.read(8, position))
        nbytes = count * elements[key]
        if count < 0 or position + 8 + nbytes > file.size or key in places:
            raise IntegrityError(
                f"{path}: cut short or damaged: storage {key[:40]!r} should have {nbytes:,} bytes from byte "
                f"{position + 8:,} on, the file has {file.size:,}"
            )
        places[key] = (position + 8, nbytes)
        position += 8 + nbytes
    return places


def _no_storage(reference: object) -> object:
    raise Malformed("it refers to a storage where none can be")
