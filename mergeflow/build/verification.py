"""Whether a file is what it says it is: its tensors, its graph, the hashes that it and the files beside it state.

Everything is read again; what the memo knows is not asked.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mergeflow.build.rebuild import Rebuilder, damage_of
from mergeflow.digest import shortened
from mergeflow.errors import IntegrityError, MergeflowError, MissingInput, NotReproducible, RecipeError, ResourceError
from mergeflow.events import Reporter
from mergeflow.formats.files import Fingerprint
from mergeflow.formats.layout import TENSOR_HASH, canonical_order
from mergeflow.formats.many import ReadFiles
from mergeflow.formats.sharded import index_of_shard
from mergeflow.plan.embed import DIGEST
from mergeflow.provenance.beside import read_sums, statement_path, sums_path
from mergeflow.provenance.claims import claims_of
from mergeflow.provenance.making import check_tensors, read_making
from mergeflow.provenance.statement import read_statement, subjects
from mergeflow.sources.hashes import sha256
from mergeflow.sources.identify import Identified, identify
from mergeflow.sources.memo import Known, Memo, Part

OK, UNKNOWN, MISSING, UNREAD = "ok", "unknown", "missing", "not read"
DIFFERS, UNLIKE, DAMAGED = "differs", "not reproduced", "damaged"
_STEP = 1 << 22
_HASH = re.compile("0x[0-9a-f]{64}")  # what else stands there a recipe has put there


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one file, and why, in one line; what may help, where something does."""

    file: str
    verdict: str
    why: str
    digest: str | None = None
    hint: str = ""


class Unknowing(Memo):
    """A memo that knows nothing, so that every byte is read."""

    def __init__(self) -> None: ...

    def find(self, at: Fingerprint) -> Known | None:
        return None

    def remember(self, at: Fingerprint, known: Known) -> None: ...

    def find_sha256(self, at: Fingerprint, part: Part = "whole") -> str | None:
        return None

    def remember_sha256(self, at: Fingerprint, sha256: str, part: Part = "whole") -> None: ...


@dataclass(frozen=True, slots=True)
class Again:
    """That a file is to be built again, and with what."""

    rebuilder: Rebuilder
    recipe: Path | None = None
    output: str | None = None


def check(
    file: Path, expected: Mapping[str, str], report: Reporter, *, shown: str = "", workers: int = 1,
    again: Again | None = None,
) -> Verdict:  # fmt: skip
    """Read one file whole and judge it. `expected`: the digests that a lock allows it and whose they are, none where no
    lock knows it."""
    name = shown or str(file)
    try:
        found = identify(file, Unknowing(), report, workers=workers)
        verdict = _judge(file, name, found, expected, report)
    except MergeflowError as error:
        kind = {MissingInput: MISSING, ResourceError: UNREAD}.get(type(error), DAMAGED)
        return Verdict(name, kind, error.message.removeprefix(f"{file}: "), hint=error.hint)
    if again is None or verdict.verdict == DIFFERS:
        return verdict
    return _built_again(found, verdict, again)


def _judge(file: Path, name: str, found: Identified, expected: Mapping[str, str], report: Reporter) -> Verdict:
    digest, claims = found.model, claims_of(file, found.metadata)
    claimed = claims.get(DIGEST)
    if claimed is not None and claimed != digest:
        return Verdict(
            name, DAMAGED, f"its tensors are {shortened(digest)}, it claims to be {shortened(claimed)}", digest
        )
    try:
        held = list(_claims_that_hold(file, found, claims, report))
    except IntegrityError as error:
        return Verdict(name, DAMAGED, error.message, digest, error.hint)
    if expected and digest not in expected:
        one = next(iter(expected.items())) if len(expected) == 1 else None
        locked = f"the lock says {shortened(one[0])} ({one[1]})" if one else "which is none that the lock names"
        return Verdict(name, DIFFERS, f"it is {shortened(digest)}, {locked}", digest)
    held = [*(["as it claims"] if claimed else []), *([f"as locked ({expected[digest]})"] if expected else []), *held]
    if held:
        return Verdict(name, OK, f"{shortened(digest)}, {', '.join(held)}", digest)
    return Verdict(name, UNKNOWN, f"{shortened(digest)}; it claims nothing, and no lock knows it", digest)


def _claims_that_hold(file: Path, found: Identified, claims: Mapping[str, str], report: Reporter) -> Iterator[str]:
    """What else the file and those beside it say, checked; a phrase for each that is worth telling.

    Raises:
        IntegrityError: something does not hold.
    """
    making = read_making(claims)
    if index_of_shard(file) is None:  # a shard carries what is said of the whole
        if making is not None:
            check_tensors(making, found.tensors)
        _check_tensor_hash(file, found, claims)
    stated_beside = {
        sums_path(file).name: read_sums(sums_path(file)),
        statement_path(file).name: subjects(read_statement(statement_path(file)) or {}),
    }
    for path in dict.fromkeys((*found.files, file)):
        lists = {beside: said[path.name] for beside, said in stated_beside.items() if path.name in said}
        whole = sha256(path, Unknowing(), report) if lists else ""
        for beside, said in lists.items():
            if whole != said:
                raise IntegrityError(f"the sha256 of {path.name} is {whole[:12]}…, {beside} says {said[:12]}…")
    if told := [beside for beside, said in stated_beside.items() if said]:
        yield f"as {' and '.join(told)} {'say' if len(told) > 1 else 'says'}"


def _check_tensor_hash(file: Path, found: Identified, claims: Mapping[str, str]) -> None:
    """The hash of ModelSpec, which is one of mergeflow's in single safetensors files that it made.

    Raises:
        IntegrityError: it is another.
    """
    stated = claims.get(TENSOR_HASH, "")
    if found.files != (file,) or file.suffix.lower() != ".safetensors" or DIGEST not in claims:
        return
    if _HASH.fullmatch(stated) and stated != (tensors := f"0x{_hash_of_tensors(found)}"):
        raise IntegrityError(f"{TENSOR_HASH} is {tensors[:14]}…, it claims {stated[:14]}…")


def _hash_of_tensors(found: Identified) -> str:
    """The sha256 of all tensors' bytes in the canonical order of a safetensors file."""
    hasher = hashlib.sha256()
    order = canonical_order([(t.name, t.dtype, t.shape) for t in found.tensors.values()])
    with ReadFiles(found.files) as files:
        for name, _, _ in order:
            spec = found.tensors[name]
            for start in range(0, spec.nbytes, _STEP):
                data = bytearray(min(_STEP, spec.nbytes - start))
                files.read_into(memoryview(data), spec.start + start)
                hasher.update(data)
    return hasher.hexdigest()


def _built_again(found: Identified, verdict: Verdict, again: Again) -> Verdict:
    """The verdict once the file has been built again. That its tensors are not what they claim stays what is said of a
    file, with which of them they are."""
    name, digest = verdict.file, verdict.digest
    damaged = verdict.verdict == DAMAGED
    try:
        rebuilt = again.rebuilder.rebuild(found, again.recipe, again.output)
    except MergeflowError as error:
        if damaged:
            return Verdict(name, DAMAGED, f"{verdict.why}; it was not built again: {error.message}", digest, error.hint)
        kind = {NotReproducible: UNLIKE, MissingInput: MISSING, RecipeError: UNKNOWN}.get(type(error))
        if kind is None:
            raise
        return Verdict(name, kind, error.message, digest, error.hint)
    if rebuilt.differing:
        why = damage_of(rebuilt)
        return Verdict(name, DAMAGED if damaged else UNLIKE, f"{verdict.why}: {why}" if damaged else why, digest)
    if damaged:
        return verdict
    same = "the same, byte for byte" if rebuilt.identical else "the same tensors, in a file that is written otherwise"
    if rebuilt.off:
        same = f"the same but for {rebuilt.off:.2g} of a tensor's size, as methods that are not exact may be"
    return Verdict(name, OK, f"{shortened(found.model)}, built again from its sources: {same}", digest)
