"""Files that torch.save wrote since 1.6 (.ckpt, .pt, .pth, .bin): a zip archive in which nothing is compressed.

    ROOT/data.pkl       the objects, with references to storages
    ROOT/data/KEY       a storage's bytes
    ROOT/byteorder      "little" or "big" (since 2.0)
    ROOT/version        the version of all this

ROOT is any name; newer versions of torch add entries that no reader needs. The directory is read here and not by the
standard library's zipfile, for one set of errors and one way to the disk, and since a dozen fields are all it takes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from mergeflow.errors import IntegrityError
from mergeflow.formats.files import ReadFile
from mergeflow.formats.pickles import PICKLE_LIMIT, load
from mergeflow.formats.stored import Contents, listed
from mergeflow.formats.stream import Stream
from mergeflow.formats.torchmodel import contents
from mergeflow.formats.torchpickle import find, persistent
from mergeflow.formats.torchvalues import Storage

DIRECTORY_LIMIT = 64_000_000
_NEWEST_VERSION = 10  # of torch 2.x's own reader
_TRUNCATED = "the file is cut short or damaged"


@dataclass(frozen=True, slots=True)
class Entry:
    """A file in the archive: `header` is where its local header lies; its data follow that."""

    name: str
    header: int
    stored: int
    size: int
    method: int
    flags: int


def read_torch_zip(file: ReadFile) -> Contents:
    """The model in an open zip file.

    Raises:
        IntegrityError: when it is no archive of torch's, is damaged, or asks for anything but tensors.
    """
    entries = read_directory(file)
    root = _root(file, entries)
    if f"{root}/constants.pkl" in entries or any(n.startswith(f"{root}/code/") for n in entries):
        raise IntegrityError(
            f"{file.path}: is a TorchScript program, not a table of tensors",
            hint="save its state_dict() instead",
        )
    order = _small(file, entries, f"{root}/byteorder")
    if order not in (b"", b"little"):
        raise IntegrityError(
            f"{file.path}: its numbers are {order[:16].decode('ascii', 'replace')}-endian",
            hint="load and save it with torch on an ordinary computer",
        )
    version = _small(file, entries, f"{root}/version").strip()
    if version and not (version.isdigit() and 1 <= int(version) <= _NEWEST_VERSION):
        raise IntegrityError(f"{file.path}: has version {version[:16]!r} of the torch format, which is not known here")
    start, size = _data(file, entries[f"{root}/data.pkl"])
    if size > PICKLE_LIMIT:
        raise IntegrityError(f"{file.path}: its data.pkl has {size:,} bytes, far more than that of any model")
    loaded = load(Stream(file, start, start + size), find, persistent)
    places: dict[str, tuple[int, int]] = {}

    def place(storage: Storage) -> tuple[int, int]:
        found = places.get(storage.key)
        if found is None:
            entry = entries.get(f"{root}/data/{storage.key}")
            if entry is None:
                raise IntegrityError(f"{file.path}: its storage {storage.key[:40]!r} is missing from the archive")
            found = places[storage.key] = _data(file, entry)
        return found

    return contents(file.path, "torch zip", loaded, place)


def _root(file: ReadFile, entries: dict[str, Entry]) -> str:
    roots = [n.removesuffix("/data.pkl") for n in entries if n.endswith("/data.pkl") and n.count("/") == 1]
    if len(roots) != 1:
        what = "more than one data.pkl" if roots else "no data.pkl"
        raise IntegrityError(
            f"{file.path}: a zip file, but not one that torch.save wrote: it has {what}",
            hint=f"it holds {listed(entries) or 'nothing'}; if the model is inside, unpack it first",
        )
    return roots[0]


def _small(file: ReadFile, entries: dict[str, Entry], name: str) -> bytes:
    entry = entries.get(name)
    if entry is None:
        return b""
    start, size = _data(file, entry)
    return file.read(min(size, 64), start)


def _data(file: ReadFile, entry: Entry) -> tuple[int, int]:
    """Where an entry's bytes are: (start, size)."""
    name = repr(entry.name[-60:])
    if entry.flags & 0x2041:
        raise IntegrityError(f"{file.path}: its entry {name} is encrypted", hint="unpack it and save it again")
    if entry.method != 0 or entry.stored != entry.size:
        raise IntegrityError(
            f"{file.path}: its entry {name} is compressed, so its tensors cannot be read in place",
            hint="torch does not write such files: load it with torch and save it again",
        )
    if entry.header + 30 > file.size:
        raise IntegrityError(f"{file.path}: {_TRUNCATED}: entry {name} begins behind the end")
    head = file.read(30, entry.header)
    if head[:4] != b"PK\x03\x04":
        raise IntegrityError(f"{file.path}: {_TRUNCATED}: entry {name} is not where the directory says")
    name_size, extra_size = struct.unpack("<HH", head[26:30])
    start = entry.header + 30 + name_size + extra_size
    if start + entry.size > file.size:
        raise IntegrityError(f"{file.path}: {_TRUNCATED}: entry {name} reaches behind the end")
    return int(start), entry.size


def read_directory(file: ReadFile) -> dict[str, Entry]:
    """The central directory of a zip file, by name."""
    count, size, start = _find_directory(file)
    if size > DIRECTORY_LIMIT:
        raise IntegrityError(f"{file.path}: its zip directory has {size:,} bytes, far more than that of any model")
    raw, at, entries = file.read(size, start), 0, {}
    for _ in range(count):
        if raw[at : at + 4] != b"PK\x01\x02" or at + 46 > size:
            raise IntegrityError(f"{file.path}: {_TRUNCATED}: its zip directory is not valid")
        flags, method = struct.unpack_from("<HH", raw, at + 8)
        stored, full, n, m, k = struct.unpack_from("<IIHHH", raw, at + 20)
        (header,) = struct.unpack_from("<I", raw, at + 42)
        end = at + 46 + n
        name = raw[at + 46 : end].decode("utf-8", "surrogateescape")
        full, stored, header = _wide(raw[end : end + m], full, stored, header)
        if name in entries:
            raise IntegrityError(f"{file.path}: its zip directory has the entry {name[-60:]!r} twice")
        entries[name] = Entry(name, header, stored, full, method, flags)
        at = end + m + k
    if at != size:
        raise IntegrityError(f"{file.path}: {_TRUNCATED}: its zip directory has {size:,} bytes, {at:,} are used")
    return entries


def _find_directory(file: ReadFile) -> tuple[int, int, int]:
    """(entries, size, start) of the directory. It must end where the record that names it begins."""
    tail_size = min(file.size, 65_557)
    tail_start = file.size - tail_size
    tail = file.read(tail_size, tail_start)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + 22 > len(tail):
        raise IntegrityError(
            f"{file.path}: a zip file without its directory: {_TRUNCATED}", hint="fetch or copy it again"
        )
    count, size, start = struct.unpack_from("<HII", tail, at + 10)
    end = tail_start + at
    if end >= 76:  # torch writes the wide record even when nothing needs it
        sign, _, wide, _ = struct.unpack("<4sIQI", file.read(20, end - 20))
        if sign == b"PK\x06\x07" and wide + 56 <= end - 20:
            record = file.read(56, wide)
            if record[:4] == b"PK\x06\x06":
                count, size, start = struct.unpack_from("<QQQ", record, 32)
                end = wide
    if start + size != end or count * 46 > size:
        raise IntegrityError(f"{file.path}: {_TRUNCATED}: its zip directory is not where it should be")
    return count, size, start


def _wide(extra: bytes, *fields: int) -> tuple[int, ...]:
    """Sizes and offset with those that did not fit into 32 bits taken from the zip64 field."""
    if 0xFFFFFFFF not in fields:
        return fields
    at = 0
    while at + 4 <= len(extra):
        kind, n = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            values = iter(
                struct.unpack_from(f"<{n // 8}Q", extra[at + 4 : at + 4 + n // 8 * 8].ljust(n // 8 * 8, b"\0"))
            )
            return tuple(next(values, f) if f == 0xFFFFFFFF else f for f in fields)
        at += 4 + n
    return fields
