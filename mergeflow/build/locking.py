"""A plan and the lock: what the lock is to say of it, and whether it holds what the lock says."""

from __future__ import annotations

from mergeflow.build.finding import file_of
from mergeflow.build.sources import Sources
from mergeflow.errors import NotReproducible
from mergeflow.events import Reporter
from mergeflow.plan.facts import SourceFacts
from mergeflow.plan.plans import OutputPlan, Plan
from mergeflow.provenance import lock as locks
from mergeflow.recipe import Source
from mergeflow.sources.hashes import sha256
from mergeflow.sources.identify import Identified
from mergeflow.sources.memo import Memo
from mergeflow.store.records import Records


def make_lock(plan: Plan, sources: Sources, records: Records, memo: Memo, report: Reporter) -> locks.Lock:
    """The lock as it should be now: sources hashed, outputs' digests where they are built and up to date."""
    locked = {}
    for i, facts in plan.facts.items():
        ref, found = plan.bound.sources[i], sources.identified(i)
        one_file = found.files == (found.path,)
        digest = sha256(found.path, memo, report) if one_file else None
        locked[ref.name] = _source(ref.declared, facts, found, digest)
    outputs = {output.path: _output(output, records, memo, report) for output in plan.outputs}
    return locks.Lock(sources=locked, outputs=outputs)


def _source(declared: Source, facts: SourceFacts, found: Identified, digest: str | None) -> locks.LockedSource:
    from mergeflow.sources.downloads import record_of  # which knows the network's words: of no use to a build

    fetched = record_of(declared.url) if declared.url else None
    resolved = fetched.resolved if fetched is not None and fetched.sha256 == digest else None
    return locks.LockedSource(
        digest=facts.model,
        sha256=digest,
        size=found.size,
        tensors=len(facts.tensors),
        dtypes=", ".join(sorted({spec.dtype.label for spec in facts.tensors.values()})),
        architecture=facts.architecture.name,
        file=file_of(declared.path) if declared.path is not None and not declared.given else None,
        url=declared.url if not declared.given else None,
        resolved=resolved if resolved != declared.url and not declared.given else None,
    )


def _output(output: OutputPlan, records: Records, memo: Memo, report: Reporter) -> locks.LockedOutput:
    record = records.find(output.target) if not output.build else None
    if record is None:
        return locks.LockedOutput(key=output.key)
    one_file = output.files == (output.target,)
    digest = sha256(output.target, memo, report) if one_file else None
    return locks.LockedOutput(key=output.key, digest=record.model, sha256=digest)


def check_lock(plan: Plan, lock: locks.Lock, name: str) -> None:
    """Raises NotReproducible where sources, numerics or outputs are not as locked, all of it in words."""
    sources = {facts.name: facts.model for facts in plan.facts.values()}
    lines = locks.drift(lock, sources, {output.path: output.key for output in plan.outputs})
    if lines:
        shown = "; ".join(lines[:3]) + (f" (and {len(lines) - 3} more)" if len(lines) > 3 else "")
        raise NotReproducible(
            f"{name} does not hold: {shown}", hint="`mergeflow lock` accepts the change, when it is meant"
        )
