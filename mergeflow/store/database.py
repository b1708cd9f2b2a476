"""A SQLite file that may be lost: whatever goes wrong with it is said once and is a miss, never the caller's error.

Rollback journal, because write-ahead logging needs shared memory, which network folders have not. A damaged file is
removed and begun anew, from what `fill` knows; one of a later format is left alone and not used.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, TypeVar

from mergeflow.errors import MergeflowError
from mergeflow.store.folder import prepare

_NOT_THE_FILE = {
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_NOLFS,
}  # fmt: skip
T = TypeVar("T")
Fill = Callable[[sqlite3.Connection], None]


class Damaged(sqlite3.DatabaseError):
    """Rows that cannot be what was written: the file is to be given up, as one that SQLite itself finds damaged."""


class Database:
    """`version` is kept in `pragma user_version`. `fill` is called inside the transaction that makes the tables.
    `unused` is what it means to the user that the file cannot be used. One connection, used by one thread at a time."""

    def __init__(
        self, path: Path, version: int, schema: str, *, warn: Callable[[str], None], unused: str,
        fill: Fill | None = None,
    ) -> None:  # fmt: skip
        self.path, self._version, self._schema = path, version, schema
        self._warn, self._unused, self._fill = warn, unused, fill
        self._connection: sqlite3.Connection | None = None
        self._said: set[str] = set()
        self._one = threading.RLock()

    def do(self, operation: Callable[[sqlite3.Connection], T], *, create: bool) -> T | None:
        """The operation's result; None when there is no file yet (and `create` is false) or it cannot be used.

        An operation that meets damage runs a second time, on the file that was made instead.
        """
        with self._one:
            for _ in (1, 2):
                try:
                    if self._connection is None:
                        if not create and not self.path.exists():
                            return None
                        self._connection = self._open()
                    return operation(self._connection)
                except sqlite3.ProgrammingError:  # a mistake in an operation, and nothing wrong with the file
                    raise
                except (sqlite3.Error, UnicodeDecodeError, OSError, MergeflowError) as error:
                    if not self._give_up(error):
                        return None
                    create = create or self._fill is not None
            self.say(f"{self._unused}: {self.path.parent.name}/{self.path.name} stays damaged")
            return None

    def close(self) -> None:
        with self._one:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def say(self, message: str) -> None:
        """Warn, once for each message."""
        if message not in self._said:
            self._said.add(message)
            self._warn(message)

    def _give_up(self, error: Exception) -> bool:
        """Close the file; remove it when it is damaged, and only then return True."""
        with contextlib.suppress(sqlite3.Error):
            self.close()
        self._connection = None
        name = f"{self.path.parent.name}/{self.path.name}"
        if _is_damage(error):
            if self._fill is None:  # who fills it says so
                self.say(f"{name} was damaged and is begun anew")
            for path in (self.path.with_name(f"{self.path.name}-journal"), self.path):
                with contextlib.suppress(OSError):  # the journal first: it must not be played into another file
                    path.unlink()
            return True
        self.say(f"{self._unused}: {name}: {error}")
        return False

    def _open(self) -> sqlite3.Connection:
        prepare(self.path.parent)
        connection = sqlite3.connect(self.path, timeout=10, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("pragma journal_mode = delete")
            if self._version_of(connection) == 0:
                with transaction(connection):
                    if self._version_of(connection) == 0:  # another process may have been faster
                        self._make(connection)
            elif self._fill is None:  # a table that was added since is begun empty
                self._make_tables(connection)
            return connection
        except BaseException:
            connection.close()
            raise

    def _version_of(self, connection: sqlite3.Connection) -> int:
        (version,) = connection.execute("pragma user_version").fetchone()
        if version not in (0, self._version):
            raise MergeflowError(f"it is of version {version}, this mergeflow writes version {self._version}")
        return int(version)

    def _make(self, connection: sqlite3.Connection) -> None:
        self._make_tables(connection)
        connection.execute(f"pragma user_version = {self._version}")
        if self._fill is not None:
            self._fill(connection)

    def _make_tables(self, connection: sqlite3.Connection) -> None:
        for statement in filter(str.strip, self._schema.split(";")):  # executescript would commit first
            connection.execute(statement)


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection, kind: Literal["immediate", "deferred"] = "immediate") -> Iterator[None]:
    """All or nothing, and alone: other writers wait until it ends. A deferred one only reads, all at one moment."""
    connection.execute(f"begin {kind}")
    try:
        yield
        connection.execute("commit")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("rollback")
        raise


def signed(n: int) -> int:
    """SQLite's integers are signed; inode numbers on Windows need all 64 bits."""
    return n - (1 << 64) if n >= 1 << 63 else n


def _is_damage(error: Exception) -> bool:
    """Whether it is the file and not the disk, a lock or a permission. A table that lacks columns is damage as well; so
    is text that Python cannot decode, in a row (an error without a code) or in SQLite's own message."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF not in _NOT_THE_FILE
    return isinstance(error, UnicodeDecodeError)
