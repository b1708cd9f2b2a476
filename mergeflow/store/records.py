"""Records of output files: where each lies, what it was when it was finished, and the key and facts of its build.

An output is registered where it lies, not copied. `LocalRecords` keeps them in `cache/index.sqlite`, `MemoryRecords` is
its twin without a disk; one suite of tests holds both to the same behaviour. See cache/README.md for the format.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from mergeflow.errors import MergeflowError
from mergeflow.formats.files import Fingerprint, write_text_file

FORMAT = 1
_TAG = """Signature: 8a477f597d28d172789f06886806bc55
# This folder is a cache of mergeflow: it can be deleted at any time.
"""
_SCHEMA = """
create table if not exists output (
  path text primary key, device integer, inode integer, size integer, mtime_ns integer, ctime_ns integer,
  key text not null, model text not null, snapshot text not null) without rowid;
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

    def find(self, path: Path) -> OutputRecord | None:
        return self._records.get(str(path))

    def put(self, path: Path, record: OutputRecord) -> None:
        self._records[str(path)] = record

    def forget(self, path: Path) -> None:
        self._records.pop(str(path), None)

    def paths(self) -> list[Path]:
        return [Path(p) for p in sorted(self._records)]

    def stamp(self, request: str) -> Mapping[str, Any] | None:
        found = self._stamps.get(request)
        return None if found is None else dict(json.loads(found))

    def put_stamp(self, request: str, stamp: Mapping[str, Any]) -> None:
        self._stamps[request] = json.dumps(stamp)


@final
class LocalRecords(Records):
    """In a folder that is made on the first write. A damaged index is begun anew; `warn` is told once."""

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        self._folder, self._warn = folder, warn
        self._connection: sqlite3.Connection | None = None
        self._said: set[str] = set()

    def find(self, path: Path) -> OutputRecord | None:
        row = None
        with self._database(create=False) as database:
            if database is not None:
                row = database.execute("select * from output where path = ?", (str(path),)).fetchone()
        if row is None:
            return None
        at = Fingerprint(row[1] % (1 << 64), row[2] % (1 << 64), row[3], row[4], row[5])
        return OutputRecord(at, row[6], row[7], json.loads(row[8]))

    def put(self, path: Path, record: OutputRecord) -> None:
        with self._database(create=True) as database:
            if database is not None:
                numbers = (_signed(record.at.device), _signed(record.at.inode), *record.at[2:])
                row = (str(path), *numbers, record.key, record.model, json.dumps(record.snapshot, ensure_ascii=False))
                database.execute("insert or replace into output values (?,?,?,?,?,?,?,?,?)", row)

    def forget(self, path: Path) -> None:
        with self._database(create=False) as database:
            if database is not None:
                database.execute("delete from output where path = ?", (str(path),))

    def paths(self) -> list[Path]:
        with self._database(create=False) as database:
            if database is not None:
                return [Path(row[0]) for row in database.execute("select path from output order by path")]
        return []

    def stamp(self, request: str) -> Mapping[str, Any] | None:
        row = None
        with self._database(create=False) as database:
            if database is not None:
                row = database.execute("select stamp from stamp where request = ?", (request,)).fetchone()
        return None if row is None else dict(json.loads(row[0]))

    def put_stamp(self, request: str, stamp: Mapping[str, Any]) -> None:
        with self._database(create=True) as database:
            if database is not None:
                database.execute("insert or replace into stamp values (?, ?)", (request, json.dumps(stamp)))

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @property
    def _index(self) -> Path:
        return self._folder / "index.sqlite"

    @contextlib.contextmanager
    def _database(self, *, create: bool) -> Iterator[sqlite3.Connection | None]:
        """The open index, or None when there is none yet or it cannot be used. An error inside is a miss."""
        for _ in (1, 2):  # a damaged index is removed by the first try
            try:
                if self._connection is None and (create or self._index.exists()):
                    self._connection = self._open()
                break
            except (sqlite3.Error, OSError, MergeflowError) as error:
                if not self._give_up(error):
                    break
        try:
            yield self._connection
        except sqlite3.Error as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> bool:
        """Close the index; remove it when it is damaged, and only then return True."""
        self.close()
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
            self._say(f"{self._index.name} in {self._folder.name}/ was damaged and is begun anew")
            with contextlib.suppress(OSError):
                self._index.unlink()
            return True
        self._say(f"what is built is not remembered: {self._folder.name}/{self._index.name}: {error}")
        return False

    def _say(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            self._warn(message)

    def _open(self) -> sqlite3.Connection:
        if not self._folder.exists():
            self._folder.mkdir(parents=True)
            write_text_file(self._folder / ".gitignore", "*\n")
        if not (self._folder / "CACHEDIR.TAG").exists():
            write_text_file(self._folder / "CACHEDIR.TAG", _TAG)
        connection = sqlite3.connect(self._index, timeout=10, isolation_level=None, check_same_thread=False)
        connection.execute("pragma journal_mode = delete")  # WAL needs shared memory, which network folders have not
        (version,) = connection.execute("pragma user_version").fetchone()
        if version not in (0, FORMAT):
            connection.close()
            raise MergeflowError(f"it is of version {version}, this mergeflow writes version {FORMAT}")
        connection.execute(f"pragma user_version = {FORMAT}")
        connection.executescript(_SCHEMA)
        return connection


def _signed(n: int) -> int:
    """SQLite's integers are signed; inode numbers on Windows need all 64 bits."""
    return n - (1 << 64) if n >= 1 << 63 else n
