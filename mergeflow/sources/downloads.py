"""Fetched files: a folder for each address, with the file, and `origin.json` that says what it is and whence it came.

A file gets its name when it is complete and is what it has to be: the sha256 or short hash of the recipe or the lock,
the sha256 that its site publishes, and in any case a model file that can be read.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from mergeflow.digest import hash_bytes
from mergeflow.errors import IntegrityError, MergeflowError, MissingInput, ResourceError
from mergeflow.events import Reporter
from mergeflow.formats.contents import is_safetensors, read_contents
from mergeflow.formats.files import ReadFile, explain_os_error, fingerprint
from mergeflow.formats.parts import sync_folder, write_text_file
from mergeflow.sources.addresses import Remote, remote, safe_name
from mergeflow.sources.hashes import check_claims, sha256
from mergeflow.sources.memo import Memo
from mergeflow.sources.places import downloads_folder
from mergeflow.sources.search import SUFFIXES, Wanted
from mergeflow.sources.transfer import Partial, Received, receive
from mergeflow.sources.web import Interrupted, Patience, Web, is_open, not_installed, shown

_RECORD = "origin.json"


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file that was fetched. `origin`: as it was asked for; `resolved`: the address of this very content, where the
    site has one."""

    origin: str
    resolved: str
    file: str
    sha256: str
    size: int


def folder_of(origin: str) -> Path:
    """Where the file of an address is kept: by its host, for people, and a digest of all of it."""
    host = {"hf": "huggingface.co", "civitai": "civitai.com"}.get(origin.partition(":")[0])
    host = host or safe_name(urlsplit(origin).hostname or "")
    return downloads_folder() / f"{host}-{hash_bytes(origin.encode()).hex()[:16]}"


def record_of(origin: str) -> Fetched | None:
    """What was fetched from an address last; None where nothing was, or the record is damaged."""
    try:
        document = json.loads((folder_of(origin) / _RECORD).read_text(encoding="utf-8"))
        found = Fetched(
            **{key: str(document[key]) for key in ("origin", "resolved", "file", "sha256")}, size=int(document["size"])
        )
    except (OSError, ValueError, TypeError, LookupError):
        return None
    return found if found.origin == origin and Path(found.file).name == found.file else None


def kept(origin: str, memo: Memo, report: Reporter) -> Path | None:
    """The file that was fetched from an address; None where there is none, or it is no longer what was fetched."""
    record = record_of(origin)
    if record is None:
        return None
    path = folder_of(origin) / record.file
    if not path.is_file() or path.stat().st_size != record.size:
        return None
    return path if sha256(path, memo, report) == record.sha256 else None


def fetch(origin: str, wanted: Wanted, memo: Memo, report: Reporter, patience: Patience | None = None) -> Path:
    """Download a file and check it.

    Raises:
        MissingInput: it is not there, not for us, or cannot be reached; what came of it is kept.
        IntegrityError: it is not the file that is wanted, or no model.
        ResourceError: it cannot be written.
    """
    folder = folder_of(origin)
    with Web(report, patience) as web, _alone(folder):
        there = _remote(origin, web)
        if is_open(there.url) and wanted.sha256 is None:
            raise IntegrityError(
                f"{shown(there.url)}: what comes by http: may be anything, and the recipe does not say what it must be",
                hint="add the file's sha256:, or take it by https:",
            )
        partial = Partial(folder / f".{there.name}.incoming")
        received = receive(web, there, partial, wanted, report)
        try:
            digest = _verify(partial, received, wanted, memo, report)
        except IntegrityError:
            if not received.resumed:
                raise
            received = receive(web, there, partial, wanted, report)  # the parts may be of different files: all of it
            digest = _verify(partial, received, wanted, memo, report)
        return _publish(folder, there, partial, received, digest, memo, report)


def _remote(origin: str, web: Web) -> Remote:
    for attempt in range(web.patience.attempts):
        try:
            return remote(origin, web)
        except Interrupted as error:
            if attempt + 1 == web.patience.attempts:
                raise MissingInput(f"{origin}: {error}", hint="see whether the network works") from error
            time.sleep(max(error.after, web.patience.pause))
    raise AssertionError("unreachable")


def _verify(partial: Partial, received: Received, wanted: Wanted, memo: Memo, report: Reporter) -> str:
    """The sha256 of a complete file that is what it has to be. One that is not is removed, so that it cannot be taken
    for the beginning of anything."""
    try:
        digest = sha256(partial.path, memo, report)
        for expected, who in ((wanted.sha256, "expected"), (received.said.sha256, "what its site says")):
            if expected is not None and digest != expected:
                raise IntegrityError(
                    f"{received.origin}: what came has the sha256 {digest[:12]}…, {expected[:12]}… is {who}",
                    hint="the address is another file's, or the file was replaced; nothing of it was kept",
                )
        check_claims(partial.path, memo, report, sha256_claim=None, short=wanted.short, size=wanted.size)
        read_contents(partial.path)
    except MergeflowError as error:
        size = partial.size
        if isinstance(error, IntegrityError):
            partial.discard()
        error.message = error.message.replace(str(partial.path), f"{received.origin}, {size:,} bytes")
        raise
    return digest


def _publish(
    folder: Path, there: Remote, partial: Partial, received: Received, digest: str, memo: Memo, report: Reporter
) -> Path:
    """Give a verified file its name, and write down whence it is. Files of other content keep theirs."""
    name = there.name if Path(there.name).suffix.lower() in SUFFIXES else f"{there.name}{_suffix(partial.path)}"
    final = folder / name
    if final.exists() and sha256(final, memo, report) != digest:
        final = folder / f"{final.stem}.{digest[:10]}{final.suffix}"
    try:
        with partial.path.open("rb+") as file:
            os.fsync(file.fileno())
        partial.path.replace(final)
        sync_folder(folder)
        at = fingerprint(final.stat())
    except OSError as error:
        raise explain_os_error(error, "giving the download its name", final) from error
    partial.published()
    memo.remember_sha256(at, digest)
    record = Fetched(there.origin, received.origin, final.name, digest, at.size)
    write_text_file(folder / _RECORD, json.dumps(asdict(record), ensure_ascii=False, indent=1) + "\n")
    return final


def _suffix(path: Path) -> str:
    """For a file whose name tells nothing: what is in it."""
    with ReadFile(path) as file:
        return ".safetensors" if is_safetensors(file) else ".ckpt"


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two builds do not write into one partial file.

    Raises:
        ResourceError: another process is at it, or the folder cannot be written to.
    """
    try:
        import filelock
    except ModuleNotFoundError:
        raise not_installed("filelock") from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain_os_error(error, "making it", folder) from error
    lock = filelock.FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise ResourceError(
            f"{folder.name}: another mergeflow is fetching this file now", hint="wait until it is done"
        ) from None
    except OSError as error:
        raise explain_os_error(error, "locking it", folder) from error
    try:
        yield
    finally:
        lock.release()
