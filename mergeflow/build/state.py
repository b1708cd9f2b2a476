"""The state of an output's files: are they there, are they what a build of ours wrote, and of which build."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mergeflow.build.kept import new_tensors
from mergeflow.digest import parse_digest
from mergeflow.errors import MergeflowError
from mergeflow.events import Reporter
from mergeflow.formats.files import Fingerprint, ReadFile, fingerprint
from mergeflow.formats.layout import Ending
from mergeflow.formats.output import checksums, hash_tensors
from mergeflow.formats.torchlayout import CLAIMS, read_claims
from mergeflow.plan.embed import DIGEST
from mergeflow.plan.explain import Found
from mergeflow.plan.plans import OutputPlan
from mergeflow.provenance.claims import claims_of
from mergeflow.sources.identify import Identified, identify
from mergeflow.sources.memo import Memo
from mergeflow.store.records import OutputRecord, Records


def look(output: OutputPlan, records: Records, memo: Memo, report: Reporter, workers: int) -> Found:
    """By the records when no file has been touched since; else by reading what they claim and checking it.

    An output proves itself: it carries its own model digest, and all that is not tensors can be made again from the
    plan. So a lost record, a copied or a touched file costs one hashing and nothing else.
    """
    record = records.find(output.target)
    snapshot = record.snapshot if record else None
    if not output.target.exists():
        return Found(snapshot=snapshot)
    if record is not None and is_recorded(output.target, record):
        others = (records.find(path) for path in output.files[:-1])
        wanted = zip(output.files, others, strict=False)
        if record.key != output.key or all(
            r is not None and r.key == record.key and is_recorded(path, r) for path, r in wanted
        ):
            changed = None if record.key == output.key else new_tensors(output, records)
            return Found(exists=True, intact=True, key=record.key, snapshot=snapshot, changed=changed)
    found = _prove(output.target, memo, report, workers)
    if found is None:
        return Found(exists=True, intact=False, snapshot=snapshot)
    at = _as_planned(output, found)
    if at is None:
        return Found(exists=True, intact=True, key=None, snapshot=snapshot)
    put_records(records, output, at, found.model)
    return Found(exists=True, intact=True, key=output.key, snapshot=snapshot)


def put_records(
    records: Records, output: OutputPlan, at: Sequence[Fingerprint], digest: str, made: Mapping[str, Any] | None = None
) -> None:
    """A row for each file. Only the one by which the output is known says what it was made from, and how the build
    went (`made`), where there was one."""
    whole = output.snapshot.to_json() | ({"made": dict(made)} if made else {})
    for path, found in zip(output.files, at, strict=True):
        told = whole if path == output.target else {}
        records.put(path, OutputRecord(found, output.key, digest, told))


def is_recorded(path: Path, record: OutputRecord | None) -> bool:
    """Whether a file has not been touched since it was recorded."""
    try:
        return record is not None and fingerprint(path.stat()) == record.at
    except OSError:
        return False


def is_ours(path: Path, records: Records, memo: Memo, report: Reporter) -> bool:
    """Whether a file is the untouched result of some build, and may be replaced or removed."""
    if is_recorded(path, records.find(path)):
        return True
    if path.name.endswith(CLAIMS):
        return read_claims(path) is not None
    return _prove(path, memo, report, 1) is not None


def _prove(target: Path, memo: Memo, report: Reporter, workers: int) -> Identified | None:
    """A file's content, when it is the one that it claims to be."""
    try:
        with ReadFile(target) as file:
            if file.size < 8:
                return None
        found = identify(target, memo, report, workers=workers)
    except MergeflowError:
        return None
    claimed = claims_of(target, found.metadata).get(DIGEST, "")
    try:
        return found if parse_digest(claimed) == found.known.model else None
    except ValueError:
        return None


def _as_planned(output: OutputPlan, found: Identified) -> tuple[Fingerprint, ...] | None:
    """What the files are now, when a build would write them just so; tensors are compared by their digests."""
    layout = output.layout
    if found.digests.keys() != {t.name for t in layout.tensors}:
        return None
    with ExitStack() as stack:
        try:
            files = [stack.enter_context(ReadFile(path)) for path in output.files]
        except MergeflowError:
            return None
        at = tuple(file.opened for file in files)
        if tuple(file.size for file in files) != layout.sizes(output.target) or not set(found.at) <= set(at):
            return None

        def read(view: memoryview, file: int, offset: int) -> None:
            files[file].read_into(view, offset)

        ending = Ending(
            [found.digests[t.name] for t in layout.tensors],
            checksums(layout, read) if layout.checksums else (),
            hash_tensors(layout, read) if layout.hashed else "",
        )
        pieces = layout.rest(output.target, ending)
        return at if all(files[p.file].read(len(p.data), p.at) == p.data for p in pieces) else None
