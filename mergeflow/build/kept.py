"""Where tensors are that earlier builds have made: in outputs that still lie where they were recorded, and in what
builds that were killed have left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from mergeflow.build.settings import Tally
from mergeflow.digest import hash_bytes
from mergeflow.errors import MergeflowError
from mergeflow.formats.contents import read_contents
from mergeflow.formats.files import Fingerprint, fingerprint
from mergeflow.formats.journal import read_journal
from mergeflow.formats.parts import clear_dead_parts, dead_parts
from mergeflow.plan.account import CAST, COMPUTED, COPIED, KEPT, account
from mergeflow.plan.kept import Kept, KeptFile
from mergeflow.plan.plans import OutputPlan, Plan
from mergeflow.sources.memo import Memo
from mergeflow.store.records import Records

_KEY, _PREFIX = 32, "k3:"


def note_keys(output: OutputPlan, at: Sequence[Fingerprint], records: Records) -> None:
    """Remember which file of an output holds which tensors, by their keys. They are bound to the file as it is now: a
    build beside this one may read them between two writes to the index, and keys of the file before would give the
    tensors of this one under wrong names."""
    for path, now, held in zip(output.files, at, output.layout.holds(), strict=True):
        works = sorted(output.works[held], key=lambda work: work.name)
        keys = b"".join([bytes.fromhex(work.key.removeprefix(_PREFIX)) for work in works])
        records.put_made(path, _mark(now, keys) + keys)


def _mark(at: Fingerprint, keys: bytes) -> bytes:
    """Over the keys as well: where the index was damaged, some of them may be those of another file."""
    return hash_bytes(" ".join(map(str, at)).encode() + b"\n" + keys)


def tally(plan: Plan, output: OutputPlan) -> Tally:
    """How its tensors were to be made when it was planned."""
    counts = account(plan, output)
    how = Counter(counts.how)
    return Tally(how[COMPUTED] + how[CAST], how[COPIED], how[KEPT], counts.bytes_kept, counts.bytes_alone)


def new_tensors(output: OutputPlan, records: Records) -> tuple[str, ...] | None:
    """The tensors that its files, as they were recorded, do not hold; None where that is not known."""
    there = {key for path in output.files for key in _keys(records.made(path)[_KEY:])}
    return tuple([work.name for work in output.works if work.key not in there]) if there else None


def find_kept(keys: Collection[str], records: Records, memo: Memo, folders: Iterable[Path]) -> Mapping[str, Kept]:
    """Those of these keys whose tensors lie in recorded outputs that nobody has touched since, or in what interrupted
    builds have left in these folders. The files are not read: their content is what the memo, or the journal, says of
    them."""
    found: dict[str, Kept] = {}
    left = set(keys)
    for path, at in _intact(records):
        if not left:
            break
        for key, kept in _tensors(path, at, left, records, memo).items():
            found[key] = kept
            left.discard(key)
    return {**found, **_unfinished(left, folders)} if left else found


def clear_interrupted(plan: Plan) -> None:
    """Remove what interrupted builds have left, when nothing of this one needs it any more."""
    for folder in {output.target.parent for output in plan.outputs if output.build}:
        clear_dead_parts(folder)


def _unfinished(keys: set[str], folders: Iterable[Path]) -> dict[str, Kept]:
    """Of several interrupted builds first that of which most can be used: a build that is killed again and again leaves
    files with ever more of the same, and those of which nothing is used can go."""
    journals = [journal for folder in folders for part in dead_parts(folder) if (journal := read_journal(part))]
    found: dict[str, Kept] = {}
    for journal in sorted(journals, key=lambda journal: -len(keys & journal.tensors.keys())):
        file = KeptFile(journal.part, journal.at, interrupted=journal.output)
        for key in sorted(keys & journal.tensors.keys() - found.keys()):
            found[key] = Kept(file, *journal.tensors[key])
    return found


def _intact(records: Records) -> Iterator[tuple[Path, Fingerprint]]:
    for path in records.paths():
        record = records.find(path)
        try:
            if record is not None and fingerprint(path.stat()) == record.at:
                yield path, record.at
        except OSError:
            continue


def _tensors(path: Path, at: Fingerprint, wanted: set[str], records: Records, memo: Memo) -> dict[str, Kept]:
    blob = records.made(path)
    keys = _keys(blob[_KEY:])
    if blob[:_KEY] != _mark(at, blob[_KEY:]) or wanted.isdisjoint(keys):
        return {}
    known = memo.find(at)
    try:
        tensors = read_contents(path).tensors
    except MergeflowError:
        return {}
    if known is None or not len(known.payloads) == len(tensors) == len(keys):
        return {}
    payloads = dict(zip(tensors, known.payloads, strict=True))
    file = KeptFile(path, at)
    pairs = zip(sorted(tensors), keys, strict=True)
    return {key: Kept(file, tensors[name].start, payloads[name]) for name, key in pairs if key in wanted}


def _keys(blob: bytes) -> list[str]:
    return [f"{_PREFIX}{blob[i : i + _KEY].hex()}" for i in range(0, len(blob), _KEY)]
