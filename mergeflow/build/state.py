"""The state of an output's file: is it there, is it what a build of ours wrote, and of which build."""

from __future__ import annotations

import struct
from pathlib import Path

from mergeflow.digest import parse_digest
from mergeflow.errors import MergeflowError
from mergeflow.events import Reporter
from mergeflow.formats.files import ReadFile, fingerprint
from mergeflow.plan.embed import DIGEST
from mergeflow.plan.explain import Found
from mergeflow.plan.planner import OutputPlan
from mergeflow.sources.identify import Identified, identify
from mergeflow.sources.memo import Memo
from mergeflow.store.records import OutputRecord, Records


def look(output: OutputPlan, records: Records, memo: Memo, report: Reporter, workers: int) -> Found:
    """By the record when the file has not been touched since; else by reading what the file claims and checking it.

    A file proves itself: it carries its own model digest, and the header that a build would write can be made again
    from the plan. So a lost record, a copied or a touched file costs one hashing and nothing else.
    """
    record = records.find(output.target)
    try:
        status = output.target.stat()
    except OSError:
        return Found(snapshot=record.snapshot if record else None)
    if record is not None and fingerprint(status) == record.at:
        return Found(exists=True, intact=True, key=record.key, snapshot=record.snapshot)
    snapshot = record.snapshot if record else None
    found = _prove(output.target, memo, report, workers)
    if found is None:
        return Found(exists=True, intact=False, snapshot=snapshot)
    claims = {**output.layout.metadata, DIGEST: found.model}
    if _header(output.target) == output.layout.header_with(claims):
        records.put(output.target, OutputRecord(found.at[0], output.key, found.model, output.snapshot.to_json()))
        return Found(exists=True, intact=True, key=output.key, snapshot=snapshot)
    return Found(exists=True, intact=True, key=None, snapshot=snapshot)


def is_ours(target: Path, records: Records, memo: Memo, report: Reporter) -> bool:
    """Whether a file is the untouched result of some build, and may be replaced or removed."""
    record = records.find(target)
    if record is not None and fingerprint(target.stat()) == record.at:
        return True
    return _prove(target, memo, report, 1) is not None


def _prove(target: Path, memo: Memo, report: Reporter, workers: int) -> Identified | None:
    """The file's content, when it is the one its own metadata claims."""
    try:
        with ReadFile(target) as file:
            if file.size < 8:
                return None
        found = identify(target, memo, report, workers=workers)
    except MergeflowError:
        return None
    claimed = found.metadata.get(DIGEST, "")
    try:
        return found if parse_digest(claimed) == found.known.model else None
    except ValueError:
        return None


def _header(path: Path) -> bytes:
    with ReadFile(path) as file:
        (length,) = struct.unpack("<Q", file.read(8, 0))
        return file.read(8 + length, 0)
