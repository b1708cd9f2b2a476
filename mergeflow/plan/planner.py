"""The whole plan: every output resolved, lowered, keyed, laid out, decided and placed; a graph of what will run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from mergeflow.errors import MergeflowError, UnknownName
from mergeflow.formats.containers import lay_out_as
from mergeflow.formats.layout import canonical_order
from mergeflow.plan import a1111
from mergeflow.plan.a1111_lower import A1111Lowering
from mergeflow.plan.announce import announced
from mergeflow.plan.assertions import check_claim
from mergeflow.plan.bound import Bound
from mergeflow.plan.dependencies import dependencies
from mergeflow.plan.embed import file_key, metadata
from mergeflow.plan.explain import nonfinite_notes, reason, snapshot
from mergeflow.plan.facts import Facts
from mergeflow.plan.fitting import check_quantised
from mergeflow.plan.lower import Lowering
from mergeflow.plan.plans import OutputPlan, Plan, Request
from mergeflow.plan.program import TensorWork
from mergeflow.plan.related import stranger_notes
from mergeflow.plan.resolve import Resolved, resolve_output, sources_of
from mergeflow.plan.reuse import Reuse, bytes_read
from mergeflow.plan.scans import scans
from mergeflow.plan.stored import ObjectPlan
from mergeflow.plan.surgery import constant_preimage, constants, dtypes, trim
from mergeflow.recipe import Output
from mergeflow.recipe.shared import text_with_overrides
from mergeflow.tensors import DType

Cosines = dict[tuple[int, int], float | None]  # between sources, by their numbers


def make_plan(bound: Bound, facts: Facts, request: Request) -> Plan:
    """Decide everything about the wanted outputs.

    Raises:
        RecipeError: the recipe does not mean anything that can be built.
        ResourceError: it can, but not in this memory.
    """
    lowering = _lowering(bound, facts)
    notes = [note for claim in bound.claims if (note := check_claim(bound, claim, facts))]
    cosines: Cosines = {}
    drafts: list[OutputPlan] = []
    for path in request.targets:
        request.told(len(drafts), len(request.targets))
        drafts.append(_draft(bound, path, facts, request, lowering, cosines))
    outputs = [_decide(draft, request) for draft in drafts]
    reuse = Reuse(bound, facts, request, lowering)
    placed = _placed(reuse.outputs(outputs), request, lowering)
    objects = _placed_objects(reuse.objects, request, lowering)
    graph = dependencies(bound, facts, placed)
    programs = tuple(lowering.programs), tuple(lowering.staged)
    keeping = reuse.keeping
    request.told(len(drafts), len(drafts))
    return Plan(
        bound, facts, *programs, tuple(placed), tuple(notes), graph, tuple(keeping.files), keeping.checks,
        tuple(objects), tuple(reuse.declined), reuse.rates,
    )  # fmt: skip


def _draft(
    bound: Bound, path: str, facts: Facts, request: Request, lowering: Lowering | A1111Lowering, cosines: Cosines
) -> OutputPlan:
    """An output resolved, lowered, keyed and laid out, but not decided about. `cosines` are those of sources that were
    compared for outputs before it."""
    (node, output), options = bound.outputs[path], bound.recipe.options
    try:
        resolved = trim(resolve_output(bound, node, facts), output)
        merger = a1111.moves(node, output, facts) if isinstance(lowering, A1111Lowering) else ()
        works = {w.name: w for w in _lowered(lowering, resolved, output, merger)}
        works |= {w.name: w for w in constants(works.values(), output)}
        check_quantised(resolved, tuple(works.values()), facts)
        order = canonical_order((w.name, w.dtype, w.shape) for w in works.values())
        ordered = [works[name] for name, _, _ in order]
        text = text_with_overrides(bound.recipe) if output.embed == "recipe" else None
        own = announced(bound, output, resolved, ordered, facts, request.originals)
        said = metadata(resolved, facts, output.dtype, _compute(bound), own, text, merger, options.seed)
        layout = lay_out_as(path, order, said, output.shard_size)
        strangers = stranger_notes(resolved, resolved.facts, cosines)
        warnings = (*resolved.notes, *_nonfinite(bound, ordered, resolved.facts), *strangers)
    except MergeflowError as error:
        error.place = error.place or output.expr.place(0)
        raise
    key, now = file_key(ordered, layout), snapshot(bound, path, resolved, facts)
    nbytes = bytes_read(ordered, lowering)
    return OutputPlan(
        path, request.targets[path], resolved, tuple(ordered), layout, key, now, True, "", None, None, warnings, nbytes
    )


def _compute(bound: Bound) -> DType | None:
    """The dtype that the recipe computes in; None: by the outputs' own."""
    compute = bound.recipe.options.compute
    return compute if isinstance(compute, DType) else None


def _lowering(bound: Bound, facts: Facts) -> Lowering | A1111Lowering:
    options = bound.recipe.options
    if options.policy == a1111.NAME:
        return A1111Lowering(facts)
    keeping = any(step.keep for step in bound.recipe.steps.values())
    return Lowering(facts, _compute(bound), options.seed, keeping=keeping)


def _lowered(
    lowering: Lowering | A1111Lowering, resolved: Resolved, output: Output, merger: Sequence[a1111.Move]
) -> Iterator[TensorWork]:
    if isinstance(lowering, A1111Lowering):
        return lowering.output(resolved, merger)
    return lowering.output(resolved, dtypes(resolved, output))


def _decide(draft: OutputPlan, request: Request) -> OutputPlan:
    build, why = reason(draft.key, request.found(draft), draft.snapshot)
    if request.force and not build:
        build, why = True, "it was asked for (--force)"
    return replace(draft, build=build, reason=why)


def _placed(outputs: Sequence[OutputPlan], request: Request, lowering: Lowering | A1111Lowering) -> list[OutputPlan]:
    """The outputs, those to build with their pass and where it runs."""
    placed = list(outputs)
    to_build = [(i, output.actions) for i, output in enumerate(outputs) if output.build]
    passes = scans(to_build, lowering.programs, request.budget, lowering.staged, choice=request.choice)
    for number, scan in enumerate(passes):
        for i in scan.members:
            placed[i] = replace(outputs[i], scan=number, placement=scan.placement)
    return placed


def _placed_objects(
    objects: Sequence[ObjectPlan], request: Request, lowering: Lowering | A1111Lowering
) -> list[ObjectPlan]:
    """New objects, each in a pass of its own."""
    placed = []
    for planned in objects:
        (scan,) = scans(
            [(0, planned.actions)], lowering.programs, request.budget, lowering.staged, choice=request.choice
        )
        placed.append(replace(planned, placement=scan.placement))
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
    if isinstance(lowering, A1111Lowering):
        merger = a1111.moves(plan.bound.outputs[output.path][0], declared, plan.facts)
        return lowering.preimage(resolved, merger, index)
    return lowering.preimage(resolved, dtypes(resolved, declared)[index], index)


def needed_sources(bound: Bound, outputs: Sequence[str]) -> list[int]:
    """The sources that these outputs and the recipe's assertions read."""
    roots = [bound.outputs[path][0] for path in outputs]
    for claim in bound.claims:
        roots += [claim.left, claim.right]
    return sorted(sources_of(roots))
