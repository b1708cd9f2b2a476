"""What this machine already knows of its files: (device, inode, size, mtime, ctime) -> digests and facts.

A stale entry must be impossible, a lost one only costs hashing. So an entry is written only when the file was quiet
for longer than the clock's grain before it was read (else a write within the same tick would go unseen), and the
whole database may be deleted at any time; when it is locked or broken we do without.
"""

from __future__ import annotations

import array
import os
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mergeflow.digest import DIGEST_SIZE
from mergeflow.formats.files import Fingerprint, fingerprint
from mergeflow.store.database import Database, signed

VERSION = 3
_FINE_GRAIN = 20_000_000
_LOCAL = {"ext2/ext3", "ext4", "ext3", "ext2", "xfs", "btrfs", "tmpfs", "overlay", "apfs", "zfs", "f2fs"}
_SCHEMA = """
create table if not exists content (
  device integer, inode integer, size integer, mtime_ns integer, ctime_ns integer,
  model blob, digests blob, payloads blob, nonfinite blob, low blob, high blob, samples blob, check_sum integer,
  primary key (device, inode)) without rowid;
create table if not exists whole (
  device integer, inode integer, size integer, mtime_ns integer, ctime_ns integer, sha256 text, check_sum integer,
  primary key (device, inode)) without rowid;
create table if not exists body (
  device integer, inode integer, size integer, mtime_ns integer, ctime_ns integer, sha256 text, check_sum integer,
  primary key (device, inode)) without rowid;
"""
Part = Literal["whole", "body"]  # what a sha256 is of: a file, or a safetensors file after its header
_FIND_CONTENT = (
    "select size, mtime_ns, ctime_ns, model, digests, payloads, nonfinite, low, high, samples, check_sum from content "
    "where device = ? and inode = ?"
)
_KEEP = "insert or replace into {} values ({})"
_FIND_SHA256 = "select size, mtime_ns, ctime_ns, sha256, check_sum from {} where device = ? and inode = ?"


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
        path = folder / f"memo-{VERSION}.sqlite"
        self._database = Database(path, VERSION, _SCHEMA, warn=warn, unused="digests are not remembered")
        self._database.do(lambda db: None, create=True)

    def find(self, at: Fingerprint) -> Known | None:
        row = self._row(_FIND_CONTENT, at)
        if row is None:
            return None
        *facts, check = row
        if _check_sum(at, *facts) != check:
            return None
        model, digests, payloads, nonfinite, low, high, samples = facts
        return Known(model, _split(digests), _split(payloads), tuple(array.array("q", nonfinite)), low, high, samples)

    def remember(self, at: Fingerprint, known: Known) -> None:
        digests, payloads = b"".join(known.digests), b"".join(known.payloads)
        nonfinite = array.array("q", known.nonfinite).tobytes()
        self._keep("content", at, (known.model, digests, payloads, nonfinite, known.low, known.high, known.samples))

    def find_sha256(self, at: Fingerprint, part: Part = "whole") -> str | None:
        row = self._row(_FIND_SHA256.format(part), at)
        return None if row is None or _check_sum(at, row[0]) != row[1] else str(row[0])

    def remember_sha256(self, at: Fingerprint, sha256: str, part: Part = "whole") -> None:
        self._keep(part, at, (sha256,))

    def _row(self, query: str, at: Fingerprint) -> tuple[Any, ...] | None:
        """What stands for a file besides its fingerprint; None where that is another."""
        place = signed(at.device), signed(at.inode)
        row = self._database.do(lambda db: db.execute(query, place).fetchone(), create=False)
        return None if row is None or row[:3] != at[2:] else row[3:]

    def _keep(self, table: str, at: Fingerprint, facts: tuple[object, ...]) -> None:
        row = (signed(at.device), signed(at.inode), *at[2:], *facts, _check_sum(at, *facts))
        query = _KEEP.format(table, ",".join("?" * len(row)))
        self._database.do(lambda db: db.execute(query, row), create=True)

    def close(self) -> None:
        self._database.close()


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


def _split(blob: bytes) -> tuple[bytes, ...]:
    return tuple([blob[i : i + DIGEST_SIZE] for i in range(0, len(blob), DIGEST_SIZE)])


def _check_sum(at: Fingerprint, *facts: object) -> int:
    """Bit rot in the database must not become a wrong digest, nor that of another file. A fact may be of any type, once
    a row has rotted."""
    check = zlib.crc32(repr(tuple(at)).encode())
    for fact in facts:
        check = zlib.crc32(fact if isinstance(fact, bytes) else repr(fact).encode(), check)
    return check
