"""Which outputs are made in one pass over their sources, and where each pass runs.

Reading is most of the work of a merge, so outputs that share a source are made together: a sweep of five reads its
models once. An output joins the first pass that it shares a source with, unless the joint pass would have to do with
fewer workers or smaller units than it has alone; then it begins a pass of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mergeflow.errors import ResourceError
from mergeflow.plan.place import Budget, Footprint, Placement, footprint, place
from mergeflow.plan.program import Program, Staged, TensorWork


@dataclass(slots=True)
class Scan:
    """One pass: the numbers of its outputs, what they read, and where it runs."""

    members: list[int]
    works: list[Sequence[TensorWork]]
    sources: frozenset[int]
    placement: Placement


def scans(
    outputs: Sequence[tuple[int, Sequence[TensorWork]]],
    programs: Sequence[Program],
    budget: Budget,
    staged: Sequence[Staged] = (),
    *,
    device: str,
    workers: int | None,
) -> list[Scan]:
    """The passes over `outputs`, each with its number and its works.

    Raises:
        ResourceError: an output that does not fit into memory even alone.
    """
    passes: list[Scan] = []
    for number, works in outputs:
        sources = frozenset(source for work in works for source, _ in work.reads)
        alone = place(footprint(programs, [works], staged), budget, device=device, workers=workers)
        for scan in passes:
            together = [*scan.works, works]
            shared = bool(sources & scan.sources)
            joint = _joint(footprint(programs, together, staged), budget, device, workers) if shared else None
            if joint is not None and _as_good(joint, scan.placement) and _as_good(joint, alone):
                scan.members.append(number)
                scan.works, scan.sources, scan.placement = together, scan.sources | sources, joint
                break
        else:
            passes.append(Scan([number], [works], sources, alone))
    return passes


def _joint(need: Footprint, budget: Budget, device: str, workers: int | None) -> Placement | None:
    try:
        return place(need, budget, device=device, workers=workers)
    except ResourceError:
        return None


def _as_good(joint: Placement, other: Placement) -> bool:
    return joint.workers >= other.workers and joint.unit >= other.unit
