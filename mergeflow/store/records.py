"""Records of output files: where each lies, what it was when it was finished, and the key and facts of its build.

An output is registered where it lies, not copied. `LocalRecords` keeps them in `cache/index.sqlite`, `MemoryRecords` is
its twin without a disk; one suite of tests holds both to the same behaviour. See cache/README.md for the format.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from mergeflow.formats.files import Fingerprint
from mergeflow.store.database import Damaged, Database, signed

FORMAT = 1
_SCHEMA = """
create table if not exists output (
  path text primary key, device integer, inode integer, size integer, mtime_ns integer, ctime_ns integer,
  key text not null, model text not null, snapshot text not null) without rowid;
create table if not exists made (path text primary key, keys blob not null);
create table if not exists stamp (request text primary key, stamp text not null) without rowid;
"""


@dataclass(frozen=True, slots=True)
class OutputRecord:
    """One finished output. `at`: its fingerprint after the rename. `model`: digest of its tensors. `snapshot`: what it
    was made from, in the recipe's words, only to explain later builds."""

    at: Fingerprint
    key: str
    model: str
    snapshot: Mapping[str, Any]


class Records(ABC):
    """Output records by absolute path."""

    @abstractmethod
    def find(self, path: Path) -> OutputRecord | None: ...

    @abstractmethod
    def put(self, path: Path, record: OutputRecord) -> None: ...

    @abstractmethod
    def forget(self, path: Path) -> None: ...

    @abstractmethod
    def paths(self) -> list[Path]: ...

    @abstractmethod
    def made(self, path: Path) -> bytes:
        """What stands for the file as it was and for the keys, then the keys of its tensors, by name in code point
        order, 32 bytes each; empty when not known."""

    @abstractmethod
    def put_made(self, path: Path, keys: bytes) -> None: ...

    @abstractmethod
    def stamp(self, request: str) -> Mapping[str, Any] | None:
        """What a finished build had read and written, by the digest of how it was asked for."""

    @abstractmethod
    def put_stamp(self, request: str, stamp: Mapping[str, Any]) -> None: ...

    def close(self) -> None:
        """Give back what is held open."""
        return


@final
class MemoryRecords(Records):
    def __init__(self) -> None:
        self._records: dict[str, OutputRecord] = {}
        self._stamps: dict[str, str] = {}
        self._made: dict[str, bytes] = {}

    def find(self, path: Path) -> OutputRecord | None:
        return self._records.get(str(path))

    def put(self, path: Path, record: OutputRecord) -> None:
        self._records[str(path)] = record

    def forget(self, path: Path) -> None:
        self._records.pop(str(path), None)
        self._made.pop(str(path), None)

    def paths(self) -> list[Path]:
        return [Path(p) for p in sorted(self._records)]

    def made(self, path: Path) -> bytes:
        return self._made.get(str(path), b"")

    def put_made(self, path: Path, keys: bytes) -> None:
        self._made[str(path)] = keys

    def stamp(self, request: str) -> Mapping[str, Any] | None:
        found = self._stamps.get(request)
        return None if found is None else dict(json.loads(found))

    def put_stamp(self, request: str, stamp: Mapping[str, Any]) -> None:
        self._stamps[request] = json.dumps(stamp)


@final
class LocalRecords(Records):
    """In a folder that is made on the first write. A damaged index is begun anew; `warn` is told once."""

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        path = folder / "index.sqlite"
        self._index = Database(path, FORMAT, _SCHEMA, warn=warn, unused="what is built is not remembered")

    def find(self, path: Path) -> OutputRecord | None:
        return self._index.do(
            lambda db: _record(db.execute("select * from output where path = ?", (_column(path),)).fetchone()),
            create=False,
        )

    def put(self, path: Path, record: OutputRecord) -> None:
        numbers = (signed(record.at.device), signed(record.at.inode), *record.at[2:])
        row = (_column(path), *numbers, record.key, record.model, json.dumps(record.snapshot, ensure_ascii=False))
        self._index.do(
            lambda db: db.execute("insert or replace into output values (?,?,?,?,?,?,?,?,?)", row), create=True
        )

    def forget(self, path: Path) -> None:
        row = (_column(path),)
        self._index.do(lambda db: db.execute("delete from output where path = ?", row), create=False)
        self._index.do(lambda db: db.execute("delete from made where path = ?", row), create=False)

    def paths(self) -> list[Path]:
        found = self._index.do(lambda db: db.execute("select path from output order by path").fetchall(), create=False)
        return [Path(os.fsdecode(row[0])) for row in found or ()]

    def made(self, path: Path) -> bytes:
        row = self._index.do(
            lambda db: db.execute("select keys from made where path = ?", (_column(path),)).fetchone(), create=False
        )
        return bytes(row[0]) if row else b""

    def put_made(self, path: Path, keys: bytes) -> None:
        row = (_column(path), keys)
        self._index.do(lambda db: db.execute("insert or replace into made values (?, ?)", row), create=True)

    def stamp(self, request: str) -> Mapping[str, Any] | None:
        return self._index.do(
            lambda db: _document(db.execute("select stamp from stamp where request = ?", (request,)).fetchone()),
            create=False,
        )

    def put_stamp(self, request: str, stamp: Mapping[str, Any]) -> None:
        row = (request, json.dumps(stamp))
        self._index.do(lambda db: db.execute("insert or replace into stamp values (?, ?)", row), create=True)

    def close(self) -> None:
        self._index.close()


def _column(path: Path) -> str | bytes:
    """As text, for whoever reads the table; as the system's bytes where those are no text, such as a folder's name of
    the days before UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return os.fsencode(path)
    return str(path)


def _record(row: tuple[Any, ...] | None) -> OutputRecord | None:
    if row is None:
        return None
    at = Fingerprint(row[1] % (1 << 64), row[2] % (1 << 64), row[3], row[4], row[5])
    return OutputRecord(at, row[6], row[7], _document(row[8:]) or {})


def _document(row: tuple[str, ...] | None) -> dict[str, Any] | None:
    try:
        return None if row is None else dict(json.loads(row[0]))
    except (ValueError, TypeError) as error:
        raise Damaged("a record that is not JSON") from error
