"""The journal of a temporary file: which of its tensors are done, for the build that comes after a kill.

It lies beside the file and is called `<temporary file>.journal`. Lines of text, UTF-8:

    1  a JSON object, the heading: `schema`; `output`, whose file it is; `first`, the number of the file's first chunk
       among those of all tensors of the output; `sources`, the files that it is made of, each as [path, inode, size,
       mtime_ns, ctime_ns]; and by tensor, in file order, `keys`, `offsets`, `sizes` (in bytes) and `payloads` (the
       digest that the bytes must have, "" where it was not known)
    2  the digest of line 1
    …  `<number of a chunk> <digests of it and of those after it, in hexadecimal>` for what was written, in any order;
       of two lines about one chunk the later holds

A line is appended when its bytes are in the file. Nothing is synced: after a kill the system has both, after a power
failure it may have neither. So a journal is a claim. Lines that cannot be read are passed over, and whoever copies a
tensor hashes it.

What hashing cannot find is excluded here. Bytes that were made of a source which somebody was just then writing to
have the right digest and the wrong key: a journal counts only while the sources are what they were. And a tensor that
was itself copied from an earlier build has to be what that build had said.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mergeflow.digest import DIGEST_SIZE, chunk_count, hash_bytes, payload_digest, printable
from mergeflow.formats.files import Fingerprint, fingerprint
from mergeflow.formats.parts import journal_path

SCHEMA = "mergeflow/journal/1"


class SourceFile(NamedTuple):
    """A file that is read, and what it was when it was hashed."""

    path: Path
    at: Fingerprint


class Entry(NamedTuple):
    """A tensor that is to be written: `nbytes` from `offset` of the file on; `payload` is what they are known to be,
    b'' where they are not."""

    key: str
    offset: int
    nbytes: int
    payload: bytes


class Done(NamedTuple):
    """A tensor that was written whole: where, and the digest of its bytes."""

    offset: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Interrupted:
    """What a build has left that did not come to its end: a temporary file of an output, what it looks like now, and
    its finished tensors by their keys."""

    part: Path
    at: Fingerprint
    output: str
    tensors: Mapping[str, Done]


class Journal:
    """Written by several threads at once. It saves time after a kill and nothing else: where it cannot be written, on a
    full disk say, it is given up without a word, and the build goes on."""

    def __init__(self, part: Path) -> None:
        self._part, self._path = part, journal_path(part)
        self._first = self._stop = 0
        self._lock = threading.Lock()
        self._fd: int | None = None

    def begin(self, output: str, first: int, entries: Sequence[Entry], sources: Sequence[SourceFile]) -> None:
        """Say what the file is going to hold. `first` is the number of its first chunk among those of the output.
        Not done by the constructor: what is interrupted here has to be found by whoever calls `end`."""
        self._first = first
        self._stop = first + sum(chunk_count(entry.nbytes) for entry in entries)
        heading = json.dumps(_heading(output, first, entries, sources), separators=(",", ":")).encode()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | getattr(os, "O_BINARY", 0)
        with contextlib.suppress(OSError):
            self._fd = os.open(self._path, flags | getattr(os, "O_CLOEXEC", 0), 0o666)
        self._append(heading + b"\n" + printable(hash_bytes(heading)).encode() + b"\n")

    def note(self, chunk: int, digests: bytes) -> None:
        """Chunks from this one on are written, and these are their digests; those of other files are passed over."""
        begin = max(chunk, self._first)
        end = min(chunk + len(digests) // DIGEST_SIZE, self._stop)
        if begin < end:
            mine = digests[(begin - chunk) * DIGEST_SIZE : (end - chunk) * DIGEST_SIZE]
            self._append(f"{begin} {mine.hex()}\n".encode())

    def _append(self, line: bytes) -> None:
        with self._lock:
            if self._fd is None:
                return
            try:
                written = os.write(self._fd, line)
            except OSError:
                written = 0
            if written < len(line):
                self._close()
                self._remove()

    def end(self) -> None:
        """The file has its name, or is gone. One that could not be renamed stays for the next build, with this."""
        with self._lock:
            self._close()
            if not self._part.exists():
                self._remove()

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


def _heading(output: str, first: int, entries: Sequence[Entry], sources: Sequence[SourceFile]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "output": output,
        "first": first,
        "sources": [[str(path), *_lasting(at)] for path, at in sources],
        "keys": [entry.key for entry in entries],
        "offsets": [entry.offset for entry in entries],
        "sizes": [entry.nbytes for entry in entries],
        "payloads": [entry.payload.hex() for entry in entries],
    }


def _lasting(at: Fingerprint) -> list[int]:
    """Without the device, which may have another number after a start of the system."""
    return list(at[1:])


def read_journal(part: Path) -> Interrupted | None:
    """What is done of a temporary file; None where nothing of it can be used."""
    try:
        lines = journal_path(part).read_bytes().split(b"\n")
        at = fingerprint(part.stat())
    except OSError:
        return None
    if len(lines) < 3 or lines[1] != printable(hash_bytes(lines[0])).encode():
        return None
    try:
        heading = json.loads(lines[0])
        if heading["schema"] != SCHEMA or not all(_unchanged(*source) for source in heading["sources"]):
            return None
        chunks = _chunks(lines[2:-1])  # behind the last line break is nothing, or a torn line
        return Interrupted(part, at, str(heading["output"]), _done(heading, chunks, at.size))
    except (ValueError, TypeError, LookupError, RecursionError):
        return None


def _unchanged(path: str, *at: int) -> bool:
    try:
        return _lasting(fingerprint(Path(path).stat())) == list(at)
    except OSError:
        return False


def _chunks(lines: Sequence[bytes]) -> dict[int, bytes]:
    """The digests of the chunks that were written, by number."""
    found = {}
    for line in lines:
        number, _, digits = line.partition(b" ")
        try:
            first, digests = int(number), bytes.fromhex(digits.decode())
        except ValueError:
            continue
        for i in range(len(digests) // DIGEST_SIZE):
            found[first + i] = digests[i * DIGEST_SIZE : (i + 1) * DIGEST_SIZE]
    return found


def _done(heading: Mapping[str, Any], chunks: Mapping[int, bytes], file_size: int) -> dict[str, Done]:
    """The tensors all of whose chunks were written, by key."""
    found = {}
    first = heading["first"]
    columns = (heading["keys"], heading["offsets"], heading["sizes"], heading["payloads"])
    for key, offset, nbytes, known in zip(*columns, strict=True):
        numbers = range(first, first + chunk_count(nbytes))
        first += chunk_count(nbytes)
        if offset < 0 or nbytes < 0 or offset + nbytes > file_size:
            continue
        if all(number in chunks for number in numbers):
            payload = payload_digest(b"".join([chunks[number] for number in numbers]))
            if known in ("", payload.hex()):
                found[str(key)] = Done(offset, payload)
    return found
