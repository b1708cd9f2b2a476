"""The hashes that people quote for a file: sha256, A1111's 10 and old 8 digits, AutoV3; and checking a claim.

- sha256: of the whole file; A1111 shows its first 10 digits.
- 8 digits: sha256 of 64 KiB from offset 1 MiB, first 8 digits (of nothing at all when the file is shorter).
- AutoV3: sha256 of a safetensors file after its header; 12 digits are shown.
"""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

from mergeflow.errors import IntegrityError, RecipeError
from mergeflow.events import PhaseEnded, PhaseStarted, Progressed, Reporter
from mergeflow.formats.files import ReadFile
from mergeflow.sources.memo import Memo, Part, quiet_since, wait_until_quiet

_STEP = 1 << 22
_OTHER_FILE = "point the source at the right file, with --source NAME=PATH or in the recipe"


def sha256(path: Path, memo: Memo, report: Reporter) -> str:
    """Of the whole file; remembered, also when the file was written a moment ago."""
    wait_until_quiet(path)
    with ReadFile(path) as file:
        return _remembered(file, "whole", 0, memo, report)


def old_hash(file: ReadFile) -> str:
    length = max(0, min(0x10000, file.size - 0x100000))
    return hashlib.sha256(file.read(length, 0x100000) if length else b"").hexdigest()[:8]


def autov3(file: ReadFile, memo: Memo, report: Reporter) -> str:
    """Of a safetensors file after its header; remembered.

    Raises:
        IntegrityError: it is none.
    """
    (length,) = struct.unpack("<Q", file.read(8, 0)) if file.size >= 8 else (file.size,)
    if 8 + length > file.size:
        raise IntegrityError(f"{file.path}: has no AutoV3 hash, which only safetensors files have")
    return _remembered(file, "body", 8 + length, memo, report)


def _remembered(file: ReadFile, part: Part, start: int, memo: Memo, report: Reporter) -> str:
    found = memo.find_sha256(file.opened, part)
    if found is not None:
        return found
    settled = quiet_since(file.opened, file.path)
    result = _sha256(file, start, file.size, report)
    file.check_unchanged()
    if settled:
        memo.remember_sha256(file.opened, result, part)
    return result


def check_claims(
    path: Path, memo: Memo, report: Reporter, *, sha256_claim: str | None, short: str | None, size: int | None = None
) -> None:
    """Compare a file with what the recipe says of it.

    Raises:
        IntegrityError: it is another file; the message gives both hashes.
        MissingInput: it is none.
    """
    if size is not None:
        with ReadFile(path) as file:  # which refuses what is none
            found = file.size
        if found != size:
            raise IntegrityError(f"{path}: is {found:,} bytes long, the recipe asks for {size:,}", hint=_OTHER_FILE)
    if sha256_claim is not None:
        _compare(path, "sha256", sha256(path, memo, report), sha256_claim)
    if short is None:
        return
    if len(short) == 8:
        with ReadFile(path) as file:
            _compare(path, "hash of 8 digits", old_hash(file), short)
    elif len(short) == 12:
        with ReadFile(path) as file:
            _compare(path, "AutoV3 hash", autov3(file, memo, report)[:12], short)
    elif len(short) in (10, 64):
        _compare(path, "sha256", sha256(path, memo, report)[: len(short)], short)
    else:
        raise RecipeError(f"{short} is no hash of 8, 10, 12 or 64 digits")


def check_model(path: Path, found: str, asked: str) -> None:
    """Compare the digest of a file's model with what the recipe says of it.

    Raises:
        IntegrityError: it is another model.
    """
    _compare(path, "model's digest", found, asked)


def _compare(path: Path, what: str, found: str, claimed: str) -> None:
    if found != claimed.lower():
        have, want = (h if len(h) <= 12 else f"{h[:12]}…" for h in (found, claimed.lower()))
        raise IntegrityError(f"{path}: its {what} is {have}, the recipe asks for {want}", hint=_OTHER_FILE)


def _sha256(file: ReadFile, start: int, stop: int, report: Reporter) -> str:
    report(PhaseStarted("hashing", file.path.name, stop - start))
    hasher, buffer = hashlib.sha256(), bytearray(_STEP)
    view = memoryview(buffer)
    while start < stop:
        n = min(_STEP, stop - start)
        file.read_into(view[:n], start)
        hasher.update(view[:n])
        start += n
        report(Progressed(n))
    report(PhaseEnded("hashing", file.path.name))
    return hasher.hexdigest()
