"""The whole plan: every output resolved, lowered, keyed, laid out, decided and placed; a graph of what will run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import networkx as nx

from mergeflow.errors import MergeflowError, UnknownName
from mergeflow.formats.containers import lay_out_as
from mergeflow.formats.layout import Layout, canonical_order
from mergeflow.plan import a1111
from mergeflow.plan.announce import announced
from mergeflow.plan.bound import Bound
from mergeflow.plan.dependencies import dependencies
from mergeflow.plan.embed import file_key, metadata
from mergeflow.plan.explain import Found, Snapshot, nonfinite_notes, reason, snapshot
from mergeflow.plan.jobs import Job, jobs, measured
from mergeflow.plan.kept import Keeping, Kept, KeptFile, nothing, take, wanted
from mergeflow.plan.lower import Lowering, check_quantised
from mergeflow.plan.originals import Originals
from mergeflow.plan.place import Budget, Placement
from mergeflow.plan.program import COPY, STAGED, Program, Staged, TensorWork
from mergeflow.plan.related import stranger_notes
from mergeflow.plan.resolve import Facts, Resolved, check_claim, resolve_output, sources_of
from mergeflow.plan.scans import scans
from mergeflow.plan.surgery import constant_preimage, constants, dtypes, trim
from mergeflow.plan.units import Unit, cut
from mergeflow.recipe import Output
from mergeflow.tensors import DType


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
    """Pure data: what a build would do. `programs` are shared by all outputs, `graph` is for people and tools."""

    bound: Bound
    facts: Facts
    programs: tuple[Program, ...]
    staged: tuple[Staged, ...]
    outputs: tuple[OutputPlan, ...]
    notes: tuple[str, ...]
    graph: nx.DiGraph[str]
    kept_files: tuple[KeptFile, ...] = ()

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
        self, outputs: Sequence[OutputPlan], only: Sequence[Collection[str]] | None = None
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
    tells of the sources' files what outputs with `metadata_for:` say. `kept` looks for tensors, by their keys, in what
    earlier builds have left."""

    targets: Mapping[str, Path]
    found: Callable[[OutputPlan], Found]
    budget: Budget
    workers: int | None = None
    device: str = "cpu"
    force: bool = False
    originals: Originals = field(default_factory=Originals)
    kept: Callable[[Collection[str]], Mapping[str, Kept]] = nothing


def make_plan(bound: Bound, facts: Facts, request: Request) -> Plan:
    """Decide everything about the wanted outputs.

    Raises:
        RecipeError: the recipe does not mean anything that can be built.
        ResourceError: it can, but not in this memory.
    """
    options = bound.recipe.options
    compute = options.compute if isinstance(options.compute, DType) else None
    lowering = _lowering(bound, facts)
    notes = [note for claim in bound.claims if (note := check_claim(bound, claim, facts))]
    cosines: dict[tuple[int, int], float | None] = {}
    outputs = []
    for path, target in request.targets.items():
        node, output = bound.outputs[path]
        try:
            resolved = resolve_output(bound, node, facts)
            resolved = trim(resolved, output)
            merger = a1111.moves(node, output, facts) if isinstance(lowering, a1111.A1111Lowering) else ()
            works = {w.name: w for w in _lowered(lowering, resolved, output, merger)}
            works |= {w.name: w for w in constants(works.values(), output)}
            check_quantised(resolved, tuple(works.values()), facts)
            order = canonical_order((w.name, w.dtype, w.shape) for w in works.values())
            ordered = [works[name] for name, _, _ in order]
            text = bound.recipe.text if output.embed == "recipe" else None
            own = announced(bound, output, resolved, ordered, facts, request.originals)
            said = metadata(resolved, facts, output.dtype, compute, own, text, merger, options.seed)
            layout = lay_out_as(path, order, said, output.shard_size)
            strangers = stranger_notes(resolved, resolved.facts, cosines)
            warnings = [*resolved.notes, *_nonfinite(bound, ordered, resolved.facts), *strangers]
        except MergeflowError as error:
            if error.place is None:
                error.place = output.expr.place(0)
            raise
        now = snapshot(bound, path, resolved, facts)
        draft = OutputPlan(
            path,
            target,
            resolved,
            tuple(ordered),
            layout,
            file_key(ordered, layout),
            now,
            True,
            "",
            None,
            None,
            tuple(warnings),
            _bytes_read(ordered, lowering),
        )
        outputs.append(_decide(draft, request))
    keeping = Keeping(len(bound.sources))
    outputs = _with_kept(outputs, request, keeping, lowering)
    placed = _placed(outputs, request, lowering)
    graph = dependencies(bound, facts, placed)
    programs = tuple(lowering.programs), tuple(lowering.staged)
    return Plan(bound, facts, *programs, tuple(placed), tuple(notes), graph, tuple(keeping.files))


def _lowering(bound: Bound, facts: Facts) -> Lowering | a1111.A1111Lowering:
    options = bound.recipe.options
    if options.policy == a1111.NAME:
        return a1111.A1111Lowering(facts)
    return Lowering(facts, options.compute if isinstance(options.compute, DType) else None, options.seed)


def _lowered(
    lowering: Lowering | a1111.A1111Lowering, resolved: Resolved, output: Output, merger: Sequence[a1111.Move]
) -> Iterator[TensorWork]:
    if isinstance(lowering, a1111.A1111Lowering):
        return lowering.output(resolved, merger)
    return lowering.output(resolved, dtypes(resolved, output))


def _bytes_read(works: Sequence[TensorWork], lowering: Lowering | a1111.A1111Lowering) -> int:
    """What the executor will read of the sources; of tensors that are gone through more than once, about."""
    per_element = [sum(d.size for d in p.inputs) for p in lowering.programs]
    copied = sum(w.nbytes for w in works if w.program == COPY and not w.payload)
    in_stages = [sum(d.size for d in p.inputs) * (2 if measured(p) else 1) for p in lowering.staged]
    applied = sum(w.nbytes // w.dtype.size * in_stages[w.staged] for w in works if w.program == STAGED)
    return copied + applied + sum(w.nbytes // w.dtype.size * per_element[w.program] for w in works if w.program >= 0)


def _decide(draft: OutputPlan, request: Request) -> OutputPlan:
    build, why = reason(draft.key, request.found(draft), draft.snapshot)
    if request.force and not build:
        build, why = True, "it was asked for (--force)"
    return replace(draft, build=build, reason=why)


def _with_kept(
    outputs: Sequence[OutputPlan], request: Request, keeping: Keeping, lowering: Lowering | a1111.A1111Lowering
) -> list[OutputPlan]:
    """The outputs to build, with the tensors that need not be computed again. `--force` computes all of them."""
    building = [output for output in outputs if output.build]
    if request.force or not building:
        return list(outputs)
    found = request.kept({key for output in building for key in wanted(output.works)})
    result = []
    for output in outputs:
        kept = take(output.works, found, keeping) if output.build else {}
        if kept:
            draft = replace(output, kept=kept)
            result.append(replace(draft, bytes_read=_bytes_read(draft.actions, lowering)))
        else:
            result.append(output)
    return result


def _placed(
    outputs: Sequence[OutputPlan], request: Request, lowering: Lowering | a1111.A1111Lowering
) -> list[OutputPlan]:
    """The outputs, those to build with their pass and where it runs."""
    placed = list(outputs)
    to_build = [(i, output.actions) for i, output in enumerate(outputs) if output.build]
    passes = scans(
        to_build, lowering.programs, request.budget, lowering.staged, device=request.device, workers=request.workers
    )
    for number, scan in enumerate(passes):
        for i in scan.members:
            placed[i] = replace(outputs[i], scan=number, placement=scan.placement)
    return placed


def _nonfinite(bound: Bound, works: Sequence[TensorWork], facts: Facts) -> list[str]:
    policy = bound.recipe.options.nonfinite
    if policy == "allow" or not any(source.nonfinite for source in facts.values()):
        return []
    used: dict[int, set[str]] = {}
    for w in works:
        for source, _ in w.reads:
            used.setdefault(source, set()).add(w.name)
    lines = nonfinite_notes(used, facts)
    if lines and policy == "error":
        raise MergeflowError(lines[0], hint="options: { nonfinite: warn } builds all the same")
    return lines


def tensor_preimage(plan: Plan, output: OutputPlan, name: str) -> str:
    """The text whose hash is the key of one tensor of an output.

    Raises:
        UnknownName: the output has no such tensor.
    """
    resolved, declared = output.resolved, plan.bound.outputs[output.path][1]
    set_outright = {w.name: w for w in constants(output.works, declared)}
    if name in set_outright:
        return constant_preimage(set_outright[name])
    names = [spec.name for spec in resolved.specs]
    if name not in names:
        raise UnknownName(f"tensor of {output.path}", name, names)
    lowering, index = _lowering(plan.bound, plan.facts), names.index(name)
    if isinstance(lowering, a1111.A1111Lowering):
        merger = a1111.moves(plan.bound.outputs[output.path][0], declared, plan.facts)
        return lowering.preimage(resolved, merger, index)
    return lowering.preimage(resolved, dtypes(resolved, declared)[index], index)


def needed_sources(bound: Bound, outputs: Sequence[str]) -> list[int]:
    """The sources that these outputs and the recipe's assertions read."""
    roots = [bound.outputs[path][0] for path in outputs]
    for claim in bound.claims:
        roots += [claim.left, claim.right]
    return sorted(sources_of(roots))
