"""One file over HTTP into a partial file beside its place, going on where an earlier attempt had stopped.

What comes is only taken for the rest of what is there when the server says that it is (If-Range, ETag, Content-Range);
otherwise the file is begun anew. Nothing here says that the bytes are the right ones: downloads.py does, before the
file gets its name.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergeflow.errors import IntegrityError, MergeflowError, MissingInput, ResourceError
from mergeflow.events import PhaseEnded, PhaseStarted, Progressed, Reporter
from mergeflow.formats.files import explain_os_error
from mergeflow.formats.parts import check_space, write_text_file
from mergeflow.sources.addresses import Remote, resolved
from mergeflow.sources.search import Wanted
from mergeflow.sources.web import Answer, Interrupted, Web, shown
from mergeflow.tensors import human_bytes

_RANGE = re.compile(r"bytes (?:([0-9]{1,18})-[0-9]{1,18}|\*)/([0-9]{1,18}|\*)")  # of fewer digits than Python refuses


@dataclass(frozen=True, slots=True)
class Received:
    """What a server sent, and what it said of it. `resumed`: it is made of more than one answer."""

    origin: str
    said: Wanted
    resumed: bool


class Partial:
    """What is there of a file so far, and which version of it (the server's ETag) that is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._state = path.with_name(path.name + ".json")

    @property
    def size(self) -> int:
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def version(self) -> dict[str, Any]:
        """What was written down of it; nothing when there is none, or it is damaged: then it is begun anew."""
        try:
            found = json.loads(self._state.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def begin(self, url: str, etag: str, total: int | None) -> None:
        self.discard()
        write_text_file(self._state, json.dumps({"url": shown(url), "etag": etag, "total": total}))

    def discard(self) -> None:
        for path in (self.path, self._state):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()

    def published(self) -> None:
        """The file has its name: what was written down is of no use any more."""
        with contextlib.suppress(FileNotFoundError):
            self._state.unlink()


def receive(web: Web, remote: Remote, partial: Partial, wanted: Wanted, report: Reporter) -> Received:
    """Bring the partial file to its full length.

    Raises:
        MissingInput: the server has no such file, or the connection breaks again and again; what came is kept.
        IntegrityError: the server says that its file is another one.
        ResourceError: the disk is full, or cannot be written to.
    """
    url, failures, resumed = remote.url, 0, False
    while True:
        before, began = partial.size, time.monotonic()
        try:
            received = _attempt(web, remote, url, partial, wanted, report)
        except Interrupted as error:
            gained = partial.size - before
            # A few bytes at each attempt would keep us as long as a few bytes a second do.
            enough = web.patience.least * (web.patience.pause + time.monotonic() - began)
            failures = 1 if gained > enough else failures + 1
            resumed |= gained > 0
            if failures >= web.patience.attempts:
                kept = f"; {human_bytes(partial.size)} of it are kept, and fetching again goes on there"
                raise MissingInput(
                    f"{remote.origin}: {error}" + (kept if partial.size else ""),
                    hint="see whether the network works, or fetch the file by other means and put it there",
                ) from error
            time.sleep(max(error.after, web.patience.pause * (2 ** (failures - 1))))
        else:
            return Received(received.origin, received.said, resumed or received.resumed)


def _attempt(web: Web, remote: Remote, url: str, partial: Partial, wanted: Wanted, report: Reporter) -> Received:
    have, version = partial.size, partial.version()
    etag = str(version.get("etag", ""))
    go_on = have > 0 and version.get("url") == shown(url) and bool(etag or wanted.sha256)
    headers = {}
    if go_on:
        headers = {"Range": f"bytes={have}-", **({"If-Range": etag} if etag else {})}
    with web.get(url, headers) as answer:
        origin, said = resolved(remote.origin, answer.on_the_way)
        said = Wanted(said.sha256 or remote.said.sha256, None, said.size or remote.said.size)
        _check_said(remote, said, wanted)
        start, total = _stretch(answer, have if go_on else 0, version, checked=wanted.sha256 is not None)
        if start is None:
            partial.discard()
            raise Interrupted(f"{remote.origin}: the server does not go on where it was")
        expected = wanted.size or said.size
        if total is not None and expected is not None and total != expected:
            partial.discard()
            raise IntegrityError(
                f"{shown(answer.url)}: the server's file has {total:,} bytes, {expected:,} are expected",
                hint="it was replaced since, or the address is another file's",
            )
        total = total if total is not None else expected
        if total is None and not (wanted.sha256 or said.sha256) and not _ends_itself(answer):
            raise MissingInput(
                f"{shown(answer.url)}: the server does not say how long the file is, so that nobody could tell "
                "whether all of it came",
                hint="with the file's sha256: in the recipe it can be checked",
            )
        _refuse_page(answer, wanted)
        if start == 0:
            partial.begin(url, _strong(answer.response.headers.get("etag", "")), total)
        if total is None or start < total or start == 0:  # an empty file is one, too
            _write(answer, partial, start, total, remote, report)
    if total is not None and partial.size != total:
        raise Interrupted(f"{remote.origin}: {partial.size:,} of {total:,} bytes came")
    return Received(origin, said, start > 0)


def _stretch(answer: Answer, asked: int, version: dict[str, Any], *, checked: bool) -> tuple[int | None, int | None]:
    """Where the body begins in the file (None: not where it was asked for), and how long the file is, if that is
    said. A part is taken for the same version's if its ETag is; without one, only if the whole is `checked` later."""
    headers, status = answer.response.headers, answer.response.status_code
    given = _RANGE.fullmatch(headers.get("content-range", "").strip())
    whole = int(given[2]) if given and given[2] != "*" else None
    if status == 200:
        length = headers.get("content-length", "")
        return 0, int(length) if re.fullmatch("[0-9]{1,18}", length) else None
    tags = _strong(headers.get("etag", "")), str(version.get("etag", ""))
    same_version = tags[0] == tags[1] or (checked and "" in tags)
    same_length = version.get("total") in (None, whole)
    if not given or not asked or not same_version or not same_length:
        return None, whole
    if status == 416:  # nothing is left: the rest was there already
        return (asked, whole) if whole == asked else (None, whole)
    return (asked, whole) if given[1] == str(asked) and whole is not None else (None, whole)


def _write(answer: Answer, partial: Partial, start: int, total: int | None, remote: Remote, report: Reporter) -> None:
    check_space(partial.path, (total or start) - start)
    report(PhaseStarted("fetching", remote.name, (total or start) - start))
    most = total if total is not None else room(partial.path.parent) // 2
    at = start
    try:
        with partial.path.open("r+b" if start else "wb") as file:
            file.seek(start)
            file.truncate()
            for chunk in answer.body():
                if at + len(chunk) > most:
                    raise _too_much(answer, most, said=total is not None)
                file.write(chunk)
                at += len(chunk)
                report(Progressed(len(chunk)))
    except MergeflowError:
        partial.discard()
        raise
    except OSError as error:
        raise explain_os_error(error, "downloading into it", partial.path) from error
    report(PhaseEnded("fetching", remote.name))


def room(folder: Path) -> int:
    """Free bytes of the disk."""
    return shutil.disk_usage(folder).free


def _too_much(answer: Answer, most: int, *, said: bool) -> MergeflowError:
    if said:
        return IntegrityError(f"{shown(answer.url)}: the server sends more bytes than it said ({most:,})")
    return ResourceError(
        f"{shown(answer.url)}: the server does not say how long the file is, and it is longer than half of the free "
        f"space ({human_bytes(most)})",
        hint="free some space; size: in the recipe says how long it is",
    )


def _check_said(remote: Remote, said: Wanted, wanted: Wanted) -> None:
    """Refuse before gigabytes come."""
    if said.sha256 and wanted.sha256 and said.sha256 != wanted.sha256:
        raise IntegrityError(
            f"{remote.origin}: the file there now has the sha256 {said.sha256[:12]}…, "
            f"{wanted.sha256[:12]}… is expected",
            hint="it was replaced since: ask for the revision that is meant, or accept the new one by a new lock",
        )


def _refuse_page(answer: Answer, wanted: Wanted) -> None:
    kind = answer.response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in ("text/html", "application/xhtml+xml") and not wanted.sha256:
        raise MissingInput(
            f"{shown(answer.url)}: there is a web page, not a file",
            hint="it may ask for a login, or for terms to be accepted; or the address is the page about the file",
        )


def _ends_itself(answer: Answer) -> bool:
    """Whether a body of no stated length has a mark at its end, so that a cut one is noticed."""
    return "chunked" in answer.response.headers.get("transfer-encoding", "").lower()


def _strong(etag: str) -> str:
    """An ETag that stands for the very bytes, and can be sent back; '' for any other."""
    return etag if re.fullmatch(r'"[\x20\x21\x23-\x7e]*"', etag) else ""
