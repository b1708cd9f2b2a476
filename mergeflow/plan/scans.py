"""Which outputs are made in one pass over their sources, and where each pass runs.

Reading is most of the work of a merge, so outputs that share a source are made together: a sweep of five reads its
models once. An output joins the first pass that it shares a source with, unless the joint pass would have to do with
fewer workers or smaller units than it has alone; then it begins a pass of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mergeflow.errors import ResourceError
from mergeflow.plan.devices import DeviceChoice, choose, with_kernels
from mergeflow.plan.outlook import loads, together
from mergeflow.plan.place import Budget, Footprint, Placement, footprint, place
from mergeflow.plan.program import Program, Staged, TensorWork


@dataclass(slots=True)
class Scan:
    """One pass: the numbers of its outputs, what they read and need, and where it runs."""

    members: list[int]
    works: list[Sequence[TensorWork]]
    sources: frozenset[int]
    need: Footprint
    placement: Placement


def scans(
    outputs: Sequence[tuple[int, Sequence[TensorWork]]],
    programs: Sequence[Program],
    budget: Budget,
    staged: Sequence[Staged] = (),
    *,
    choice: DeviceChoice,
) -> list[Scan]:
    """The passes over `outputs`, each with its number and its works. They are put together by what fits on the CPU;
    then each is given its device.

    Raises:
        ResourceError: an output that does not fit into memory even alone.
    """
    workers = choice.workers
    compiled = choice.machine().compiled if outputs else True
    passes: list[Scan] = []
    for number, works in outputs:
        sources = frozenset(source for work in works for source, _ in work.reads)
        own = footprint(programs, [works], staged, compiled=compiled)
        alone = place(own, budget, workers=workers)
        for scan in passes:
            both = [*scan.works, works]
            shared = bool(sources & scan.sources)
            need = footprint(programs, both, staged, compiled=compiled) if shared else own
            joint = _joint(need, budget, workers) if shared else None
            if joint is not None and _as_good(joint, scan.placement) and _as_good(joint, alone):
                scan.members.append(number)
                scan.works, scan.sources = both, scan.sources | sources
                scan.need, scan.placement = need, joint
                break
        else:
            passes.append(Scan([number], [works], sources, own, alone))
    for scan in passes:
        parts = loads(scan.works, programs, staged)
        needs = [footprint(programs, part.works, staged, compiled=compiled) for part in parts]
        chosen = choose(scan.need, together(parts), budget, choice)
        scan.placement = with_kernels(chosen, parts, needs, choice)
    return passes


def _joint(need: Footprint, budget: Budget, workers: int | None) -> Placement | None:
    try:
        return place(need, budget, workers=workers)
    except ResourceError:
        return None


def _as_good(joint: Placement, other: Placement) -> bool:
    return joint.workers >= other.workers and joint.unit >= other.unit
