"""The plan as data: what each output is made of, what a build would do, and how the planner was asked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import networkx as nx

from mergeflow.formats.layout import Layout
from mergeflow.plan.bound import Bound
from mergeflow.plan.cost import Rates
from mergeflow.plan.devices import DeviceChoice
from mergeflow.plan.explain import Found, Snapshot
from mergeflow.plan.facts import Facts
from mergeflow.plan.jobs import Job, jobs
from mergeflow.plan.kept import Check, Kept, KeptFile, nothing
from mergeflow.plan.originals import Originals
from mergeflow.plan.outlook import Machine
from mergeflow.plan.place import Budget, Placement
from mergeflow.plan.program import Program, Staged, TensorWork
from mergeflow.plan.resolve import Resolved
from mergeflow.plan.stored import Declined, ObjectPlan, Storing
from mergeflow.plan.units import Unit, cut


@dataclass(frozen=True, slots=True)
class OutputPlan:
    """One output: what it would be made of, and whether it has to be. `works` are in the order of the file; outputs of
    one `scan` are made in one pass and share its placement."""

    path: str
    target: Path
    resolved: Resolved
    works: tuple[TensorWork, ...]
    layout: Layout
    key: str
    snapshot: Snapshot
    build: bool
    reason: str
    scan: int | None
    placement: Placement | None
    warnings: tuple[str, ...]
    bytes_read: int
    kept: Mapping[str, TensorWork] = field(default_factory=dict)

    @property
    def actions(self) -> Sequence[TensorWork]:
        """The works as they will be done: what an earlier build has made already is copied."""
        return [self.kept.get(work.name, work) for work in self.works] if self.kept else self.works

    @property
    def files(self) -> tuple[Path, ...]:
        """All that the output consists of; the last is `target`."""
        return self.layout.paths(self.target)


@dataclass(frozen=True, slots=True)
class Plan:
    """Pure data: what a build would do. `programs` are shared by all outputs, `graph` is for people and tools.

    Works may read of `kept_files` what an earlier build has made: their numbers come after the sources', and `checks`
    says what has to be hashed before it is used. `objects` are made for the store before the outputs that read them;
    what could be stored and is not is `declined`; the `rates` of the store's disk, where they were asked for, decide.
    """

    bound: Bound
    facts: Facts
    programs: tuple[Program, ...]
    staged: tuple[Staged, ...]
    outputs: tuple[OutputPlan, ...]
    notes: tuple[str, ...]
    graph: nx.DiGraph[str]
    kept_files: tuple[KeptFile, ...] = ()
    checks: Mapping[int, Sequence[Check]] = field(default_factory=dict)
    objects: tuple[ObjectPlan, ...] = ()
    declined: tuple[Declined, ...] = ()
    rates: Rates | None = None

    @property
    def first_kept(self) -> int:
        """The number of the first of the kept files: they come after the sources."""
        return len(self.bound.sources)

    def passes(self) -> list[list[OutputPlan]]:
        """The outputs to build, those that share a pass over their sources together."""
        together: dict[int, list[OutputPlan]] = {}
        for output in self.outputs:
            if output.scan is not None:
                together.setdefault(output.scan, []).append(output)
        return list(together.values())

    def work(
        self, outputs: Sequence[OutputPlan | ObjectPlan], only: Sequence[Collection[str]] | None = None
    ) -> tuple[Sequence[Job], Sequence[Unit]]:
        """What has to be done in one pass: the tensors that kernels are applied in, and all other work. `only` names
        the tensors of each output that are to be made."""
        placement = outputs[0].placement
        assert placement is not None
        actions = [(o.actions, o.layout.tensors) for o in outputs]
        return jobs(actions, only), tuple(cut(actions, self.programs, placement.unit, only))


@dataclass(frozen=True, slots=True)
class Request:
    """How the planner was asked. `targets`: the output file of each wanted output; `found` looks at one. `originals`
    tells of the sources' files what outputs with `metadata_for:` say. `kept` looks for tensors, by their keys, in
    outputs that earlier builds have left, `storing` in the store. `machine` tells how fast things are, and what
    accelerators there are; it is asked when something is to be placed. `told` is how many of how many outputs are
    planned, as planning goes on."""

    targets: Mapping[str, Path]
    found: Callable[[OutputPlan], Found]
    budget: Budget
    workers: int | None = None
    device: str = "cpu"
    force: bool = False
    originals: Originals = field(default_factory=Originals)
    kept: Callable[[Collection[str]], Mapping[str, Kept]] = nothing
    storing: Storing = field(default_factory=Storing)
    machine: Callable[[], Machine] = Machine
    told: Callable[[int, int], None] = lambda done, total: None

    @property
    def choice(self) -> DeviceChoice:
        return DeviceChoice(self.device, self.workers, self.machine)
