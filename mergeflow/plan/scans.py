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
from mergeflow.plan.needs import Needs, needs
from mergeflow.plan.outlook import loads, together
from mergeflow.plan.place import Budget, Footprint, Placement, footprint, footprint_of, place
from mergeflow.plan.program import Program, Staged, TensorWork


@dataclass(slots=True)
class Scan:
    """One pass: the numbers of its outputs, what they read and need, and where it runs."""

    members: list[int]
    works: list[Sequence[TensorWork]]
    sources: frozenset[int]
    needs: Needs
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
        sources = frozenset([source for work in works for source, _ in work.reads])
        own = needs(programs, works, staged, compiled=compiled)
        need = footprint_of(programs, own, compiled=compiled)
        alone = place(need, budget, workers=workers)
        for scan in passes:
            if not sources & scan.sources:
                continue
            both = scan.needs + own
            more = footprint_of(programs, both, compiled=compiled)
            joint = _joint(more, budget, workers)
            if joint is not None and _as_good(joint, scan.placement) and _as_good(joint, alone):
                scan.members.append(number)
                scan.works.append(works)
                scan.sources, scan.needs, scan.need, scan.placement = scan.sources | sources, both, more, joint
                break
        else:
            passes.append(Scan([number], [works], sources, own, need, alone))
    for scan in passes:
        parts = loads(scan.works, programs, staged)
        each = [footprint(programs, part.works, staged, compiled=compiled) for part in parts]
        chosen = choose(scan.need, together(parts), budget, choice)
        scan.placement = with_kernels(chosen, parts, each, choice)
    return passes


def _joint(need: Footprint, budget: Budget, workers: int | None) -> Placement | None:
    try:
        return place(need, budget, workers=workers)
    except ResourceError:
        return None


def _as_good(joint: Placement, other: Placement) -> bool:
    return joint.workers >= other.workers and joint.unit >= other.unit
