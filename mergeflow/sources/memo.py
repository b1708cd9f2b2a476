"""What this machine already knows of its files: (device, inode, size, mtime, ctime) -> digests and facts.

A stale entry must be impossible, a lost one only costs hashing. So an entry is written only when the file was quiet
for longer than the clock's grain before it was read (else a write within the same tick would go unseen), and the
whole database may be deleted at any time. SQLite with a rollback journal; when it is locked or broken we do without.
"""

from __future__ import annotations

import array
import contextlib
import os
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mergeflow.digest import DIGEST_SIZE
from mergeflow.formats.files import Fingerprint, fingerprint

VERSION = 2
_FINE_GRAIN = 20_000_000
_LOCAL = {"ext2/ext3", "ext4", "ext3", "ext2", "xfs", "btrfs", "tmpfs", "overlay", "apfs", "zfs", "f2fs"}
_SCHEMA = """
create table if not exists content (
  device integer, inode integer, size integer, mtime_ns integer, ctime_ns integer,
  model blob, digests blob, payloads blob, nonfinite blob, low blob, high blob, samples blob, check_sum integer,
  primary key (device, inode)) without rowid;
create table if not exists whole (
  device integer, inode integer, size integer, mtime_ns integer, ctime_ns integer, sha256 text,
  primary key (device, inode)) without rowid;
create table if not exists body (
  device integer, inode integer, size integer, mtime_ns integer, ctime_ns integer, sha256 text,
  primary key (device, inode)) without rowid;
"""
Part = Literal["whole", "body"]  # what a sha256 is of: a file, or a safetensors file after its header
_FIND = "select size, mtime_ns, ctime_ns, sha256 from {} where device = ? and inode = ?"
_KEEP = "insert or replace into {} values (?,?,?,?,?,?)"


@dataclass(frozen=True, slots=True)
class Known:
    """What is remembered of a file's content, tensor by tensor in file order; packed as it lies in the database."""

    model: bytes
    digests: tuple[bytes, ...]
    payloads: tuple[bytes, ...]
    nonfinite: tuple[int, ...]
    low: bytes
    high: bytes
    samples: bytes


def default_folder() -> Path:
    """MERGEFLOW_MEMO, or the user's cache folder."""
    if chosen := os.environ.get("MERGEFLOW_MEMO"):
        return Path(chosen)
    import platformdirs

    return Path(platformdirs.user_cache_dir("mergeflow", appauthor=False))


class Memo:
    """The database. `warn` is told once when it cannot be used."""

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        self._path = folder / f"memo-{VERSION}.sqlite"
        self._warn = warn
        self._connection: sqlite3.Connection | None = None
        self._open()

    def _open(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self._path, timeout=5, isolation_level=None, check_same_thread=False)
            self._connection.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            self.close()
            if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
                self._start_over()
            else:
                self._warn(f"digests are not remembered: {self._path.name}: {error}")

    def _start_over(self) -> None:
        self._warn(f"{self._path.name} was damaged and is begun anew; sources are hashed again")
        with contextlib.suppress(OSError):
            self._path.unlink()
        try:
            self._connection = sqlite3.connect(self._path, timeout=5, isolation_level=None, check_same_thread=False)
            self._connection.executescript(_SCHEMA)
        except sqlite3.Error:
            self.close()

    @contextlib.contextmanager
    def _database(self) -> Iterator[sqlite3.Connection | None]:
        """The connection, or None; an error inside is a miss and never the caller's."""
        try:
            yield self._connection
        except sqlite3.Error as error:
            self.close()
            if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
                self._start_over()
            else:
                self._warn(f"digests are not remembered: {self._path.name}: {error}")

    def find(self, at: Fingerprint) -> Known | None:
        row = None
        with self._database() as database:
            if database is not None:
                row = database.execute(
                    "select size, mtime_ns, ctime_ns, model, digests, payloads, nonfinite, low, high, samples, "
                    "check_sum from content where device = ? and inode = ?",
                    (_signed(at.device), _signed(at.inode)),
                ).fetchone()
        if row is None or row[:3] != at[2:]:
            return None
        model, digests, payloads, nonfinite, low, high, samples, check = row[3:]
        if _check_sum(model, digests, payloads, nonfinite) != check:
            return None
        return Known(model, _split(digests), _split(payloads), tuple(array.array("q", nonfinite)), low, high, samples)

    def remember(self, at: Fingerprint, known: Known) -> None:
        digests, payloads = b"".join(known.digests), b"".join(known.payloads)
        nonfinite = array.array("q", known.nonfinite).tobytes()
        check = _check_sum(known.model, digests, payloads, nonfinite)
        with self._database() as database:
            if database is not None:
                facts = (known.model, digests, payloads, nonfinite, known.low, known.high, known.samples, check)
                row = (_signed(at.device), _signed(at.inode), *at[2:], *facts)
                database.execute("insert or replace into content values (?,?,?,?,?,?,?,?,?,?,?,?,?)", row)

    def find_sha256(self, at: Fingerprint, part: Part = "whole") -> str | None:
        row = None
        with self._database() as database:
            if database is not None:
                row = database.execute(_FIND.format(part), (_signed(at.device), _signed(at.inode))).fetchone()
        return str(row[3]) if row is not None and row[:3] == at[2:] else None

    def remember_sha256(self, at: Fingerprint, sha256: str, part: Part = "whole") -> None:
        with self._database() as database:
            if database is not None:
                row = (_signed(at.device), _signed(at.inode), *at[2:], sha256)
                database.execute(_KEEP.format(part), row)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def quiet_since(at: Fingerprint, path: Path, now_ns: int | None = None) -> bool:
    """Whether the file was last changed longer ago than the clock's grain: 20 ms on file systems known to stamp
    finely, 2 s elsewhere (FAT stamps every 2 s, network file systems cache their stamps)."""
    grain = _FINE_GRAIN if _file_system(path) in _LOCAL else 2_000_000_000
    now = time.time_ns() if now_ns is None else now_ns
    return now - max(at.mtime_ns, at.ctime_ns) > grain


def wait_until_quiet(path: Path) -> None:
    """Sleep out the clock's grain after a change of a moment ago, where that is 20 ms: what is read then can be
    remembered, and a build right after the files were made finds nothing to do the next time."""
    try:
        at = fingerprint(path.stat())
    except OSError:
        return
    age = time.time_ns() - max(at.mtime_ns, at.ctime_ns)
    if 0 <= age <= _FINE_GRAIN and not quiet_since(at, path) and quiet_since(at, path, time.time_ns() + _FINE_GRAIN):
        time.sleep((_FINE_GRAIN - age) / 1e9 + 0.001)


def _file_system(path: Path) -> str:
    """The type of the file system a path is on, from /proc/self/mounts; '' where that cannot be told."""
    best, kind = "", ""
    try:
        target = os.path.realpath(path)
        with Path("/proc/self/mounts").open() as mounts:
            for line in mounts:
                fields = line.split(" ")
                mount = fields[1].replace("\\040", " ")
                inside = target == mount or target.startswith(mount.rstrip("/") + "/")
                if inside and len(mount) >= len(best):
                    best, kind = mount, fields[2]
    except (OSError, IndexError):
        return ""
    return kind


def _signed(n: int) -> int:
    """SQLite's integers are signed; inode numbers on Windows need all 64 bits."""
    return n - (1 << 64) if n >= 1 << 63 else n


def _split(blob: bytes) -> tuple[bytes, ...]:
    return tuple([blob[i : i + DIGEST_SIZE] for i in range(0, len(blob), DIGEST_SIZE)])


def _check_sum(*blobs: bytes) -> int:
    """Bit rot in the database must not become a wrong digest."""
    check = 0
    for blob in blobs:
        check = zlib.crc32(blob, check)
    return check
