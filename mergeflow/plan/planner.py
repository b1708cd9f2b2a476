"""The whole plan: every output resolved, lowered, keyed, laid out, decided and placed; a graph of what will run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import networkx as nx

from mergeflow.errors import MergeflowError, UnknownName
from mergeflow.formats.layout import Layout, canonical_order, lay_out
from mergeflow.plan import a1111
from mergeflow.plan.bind import Bound
from mergeflow.plan.embed import file_key, metadata
from mergeflow.plan.explain import Found, Snapshot, nonfinite_notes, reason, snapshot
from mergeflow.plan.lower import Lowering, check_quantised
from mergeflow.plan.place import Budget, Placement, footprint, place
from mergeflow.plan.program import COPY, Program, TensorWork
from mergeflow.plan.related import stranger_notes
from mergeflow.plan.resolve import Facts, Resolved, check_claim, resolve_output, sources_of
from mergeflow.plan.surgery import constant_preimage, constants, dtypes, trim
from mergeflow.plan.units import Unit, cut
from mergeflow.recipe import Output
from mergeflow.tensors import DType


@dataclass(frozen=True, slots=True)
class OutputPlan:
    """One output: what it would be made of, and whether it has to be. `works` are in the order of the file."""

    path: str
    target: Path
    resolved: Resolved
    works: tuple[TensorWork, ...]
    layout: Layout
    key: str
    snapshot: Snapshot
    build: bool
    reason: str
    placement: Placement | None
    warnings: tuple[str, ...]
    bytes_read: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Pure data: what a build would do. `programs` are shared by all outputs, `graph` is for people and tools."""

    bound: Bound
    facts: Facts
    programs: tuple[Program, ...]
    outputs: tuple[OutputPlan, ...]
    notes: tuple[str, ...]
    graph: nx.DiGraph[str]

    def units(self, output: OutputPlan) -> Sequence[Unit]:
        assert output.placement is not None
        return tuple(cut(output.works, output.layout.tensors, self.programs, output.placement.unit))


@dataclass(frozen=True, slots=True)
class Request:
    """How the planner was asked. `targets`: the output file of each wanted output; `found` looks at one."""

    targets: Mapping[str, Path]
    found: Callable[[OutputPlan], Found]
    budget: Budget
    workers: int | None = None
    device: str = "cpu"
    force: bool = False


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
            layout = lay_out(order, metadata(resolved, facts, output.dtype, compute, output.metadata, text, merger))
            strangers = stranger_notes(resolved, facts, cosines)
            warnings = [*resolved.notes, *_nonfinite(bound, ordered, facts), *strangers]
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
            tuple(warnings),
            _bytes_read(ordered, lowering.programs),
        )
        outputs.append(_decide(draft, request, lowering.programs))
    plan = Plan(bound, facts, tuple(lowering.programs), tuple(outputs), tuple(notes), nx.DiGraph())
    _draw(plan)
    return plan


def _lowering(bound: Bound, facts: Facts) -> Lowering | a1111.A1111Lowering:
    options = bound.recipe.options
    if options.policy == a1111.NAME:
        return a1111.A1111Lowering(facts)
    return Lowering(facts, options.compute if isinstance(options.compute, DType) else None)


def _lowered(
    lowering: Lowering | a1111.A1111Lowering, resolved: Resolved, output: Output, merger: Sequence[a1111.Move]
) -> Iterator[TensorWork]:
    if isinstance(lowering, a1111.A1111Lowering):
        return lowering.output(resolved, merger)
    return lowering.output(resolved, dtypes(resolved, output))


def _bytes_read(works: Sequence[TensorWork], programs: Sequence[Program]) -> int:
    """What the executor will read of the sources."""
    per_element = [sum(d.size for d in p.inputs) for p in programs]
    copied = sum(w.nbytes for w in works if w.program == COPY)
    return copied + sum(w.nbytes // w.dtype.size * per_element[w.program] for w in works if w.program >= 0)


def _decide(draft: OutputPlan, request: Request, programs: Sequence[Program]) -> OutputPlan:
    build, why = reason(draft.key, request.found(draft), draft.snapshot)
    if request.force and not build:
        build, why = True, "it was asked for (--force)"
    if not build:
        return replace(draft, build=False, reason=why)
    placement = place(footprint(programs, draft.works), request.budget, device=request.device, workers=request.workers)
    return replace(draft, build=True, reason=why, placement=placement)


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


def _draw(plan: Plan) -> None:
    """The graph of names: sources, steps and outputs, with what each output will do."""
    graph, bound = plan.graph, plan.bound
    label = {id(node): name for name, node in bound.nodes.items()}
    for i, fact in plan.facts.items():
        graph.add_node(bound.sources[i].name, kind="source", digest=fact.model)
    for name, node in bound.steps.items():
        graph.add_node(name, kind="step")
        graph.add_edges_from((used, name) for used in _direct(node, label, name, bound))
    for output in plan.outputs:
        graph.add_node(output.path, kind="output", build=output.build, reason=output.reason)
        node, _ = bound.outputs[output.path]
        graph.add_edges_from((used, output.path) for used in _direct(node, label, output.path, bound))
    wanted = {o.path for o in plan.outputs}
    keep = wanted.union(*(nx.ancestors(graph, o) for o in wanted)) if wanted else set()
    graph.remove_nodes_from([n for n in graph if n not in keep])


def _direct(root: object, label: Mapping[int, str], own: str, bound: Bound) -> list[str]:
    """The names that a node's expression mentions: the nearest named nodes below it."""
    from mergeflow.ir.nodes import Load, Node

    assert isinstance(root, Node)
    found: list[str] = []
    seen: set[int] = set()
    stack: list[Node] = [root]
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        name = label.get(id(node))
        if name is not None and name != own:
            found.append(name)
        elif isinstance(node, Load):
            found.append(bound.sources[node.source].name)
        else:
            stack += node.inputs()
    return found


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
