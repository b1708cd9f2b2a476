"""From an output's graph and the sources' headers to the normal form of each of its tensors, and what forbids one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mergeflow.arch import Architecture, find
from mergeflow.errors import RecipeError, UnknownName
from mergeflow.ir.analysis import Analysis, Case
from mergeflow.ir.forms import Form
from mergeflow.ir.nodes import Load, Node, Replace, topological
from mergeflow.plan.bound import Bound
from mergeflow.plan.cases import Graph, all_names, cases_of, first_analysis, graph_of, parts_of, summed
from mergeflow.plan.facts import Facts, SourceFacts
from mergeflow.plan.parts import at_home, check_fit, check_parts
from mergeflow.plan.profiles import Table, resolve
from mergeflow.recipe.tokens import clip
from mergeflow.tensors import TensorSpec


@dataclass(frozen=True, slots=True)
class Resolved:
    """An output, tensor by tensor: `specs[i]` is the primary's tensor, `forms[cases[i]]` its normal form, and
    `primaries[i]` the source it takes the rest from. `facts` are those of the sources as this output sees them: a VAE
    that is put into a model has that model's names."""

    primary: int
    delta: bool
    architecture: Architecture
    specs: tuple[TensorSpec, ...]
    primaries: tuple[int, ...]
    cases: tuple[int, ...]
    forms: tuple[Form, ...]
    tables: Mapping[str, Table]
    notes: tuple[str, ...]
    facts: Facts = field(repr=False, compare=False)


def sources_of(roots: Sequence[Node]) -> frozenset[int]:
    """The sources that these nodes read."""
    return frozenset(node.source for node in topological(roots) if isinstance(node, Load))


def resolve_output(bound: Bound, root: Node, facts: Facts) -> Resolved:
    """All of an output's tensors with their forms.

    Raises:
        RecipeError: a degree that is not 0 or 1, models that do not fit together, a profile with holes, a component
            that the architecture does not have, and with `missing: error` a tensor that some model lacks.
    """
    graph = graph_of(root, facts)
    start = first_analysis(graph, bound.profiles)
    primary = start.primary(root)
    architecture = architecture_of(bound, facts[primary])
    _check_components(graph, architecture, facts[primary])
    whole = facts[primary].kind is None  # and may be filled up with a part, such as a VAE
    check_parts(facts[i] for i in sorted(summed(root) - (graph.spare if whole else frozenset())))
    facts = at_home(facts, graph.sources, architecture)
    names, primaries = _tensor_names(graph, start, facts, architecture)
    _check_relatives(graph, facts, primary, architecture)
    tables = {name: resolve(bound.profiles[name], names, architecture) for name in sorted(graph.profiles)}
    cases, analyses = cases_of(graph, names, facts, tables, architecture, start)
    for number, expected in dict(zip(cases, primaries, strict=True)).items():
        analysis, components = analyses[number]
        if not components and analysis.primary(root) != expected:
            raise RecipeError(
                "which model comes first depends on a profile's values, so the result's tensors are not defined",
                hint="name it with `like:`",
            )
    specs = tuple(facts[p].tensors[name] for name, p in zip(names, primaries, strict=True))
    forms = tuple(analysis.form(root) for analysis, _ in analyses)
    notes = _notes(bound, graph, names, facts, primary)
    return Resolved(
        primary, start.is_delta(root), architecture, specs, tuple(primaries), tuple(cases), forms, tables, notes, facts
    )


def architecture_of(bound: Bound, primary: SourceFacts) -> Architecture:
    if bound.recipe.arch is None:
        return primary.architecture
    declared = find(bound.recipe.arch)
    if primary.kind is not None and primary.architecture.component_names:
        return primary.architecture  # a VAE alone: arch: says what the whole models of the recipe are
    if primary.architecture.component_names and primary.architecture.name != declared.name:
        raise RecipeError(
            f"the recipe says arch: {declared.name}, but {primary.name} is {primary.architecture.title}",
            hint=f"write arch: {primary.architecture.name}, or leave it out",
        )
    return declared


def _check_components(graph: Graph, architecture: Architecture, primary: SourceFacts) -> None:
    for part in sorted(graph.parts):
        if part not in architecture.component_names:
            if not architecture.component_names:
                raise RecipeError(
                    f"replace: {clip(part)}: the architecture of {primary.name} is not known, nor are its components",
                    hint="name it with `arch:` at the top of the recipe",
                )
            raise UnknownName(f"component of a {architecture.title} model", part, architecture.component_names)


def _check_relatives(graph: Graph, facts: Facts, primary: int, architecture: Architecture) -> None:
    """Refuse sums over models that have nothing in common: what came out would quietly be the first of them."""
    first = facts[primary]
    for node in graph.order:
        for part, donor in node.parts if isinstance(node, Replace) else ():
            for i in sorted(summed(donor)):
                check_fit([part], architecture, first, facts[i])
    for top in [graph.root, *(donor for node in graph.order if isinstance(node, Replace) for _, donor in node.parts)]:
        sources = [facts[i] for i in sorted(summed(top))]
        known = [source for source in sources if source.architecture.component_names]
        for other in known[1:]:
            if other.architecture.name != known[0].architecture.name:
                raise RecipeError(
                    f"{known[0].name} is {known[0].architecture.title}, {other.name} is {other.architecture.title}: "
                    "models of different architectures cannot be merged",
                    hint="`mergeflow inspect FILE` shows what a file is",
                )
        for other in [facts[i] for i in sorted(summed(top) - graph.spare)] if top is graph.root else ():
            if other.tensors.keys().isdisjoint(first.tensors):
                such = next(iter(first.tensors), "")
                lacks = f"{other.name} has none of the tensors of {first.name}, such as {such}"
                raise RecipeError(
                    f"{lacks if such else f'{first.name} has no tensors'}: there is nothing to merge",
                    hint="`mergeflow inspect FILE` shows what a file holds",
                )


def _tensor_names(
    graph: Graph, start: Analysis, facts: Facts, architecture: Architecture
) -> tuple[list[str], list[int]]:
    """The result's tensors and whose they are: the primary's, but in a replaced component the donor's, and where a
    primary is filled up those that others have."""
    if not graph.parts and not graph.filled:
        primary = start.primary(graph.root)
        names = list(facts[primary].tensors)
        return names, [primary] * len(names)
    values = start.case.profiles
    found: dict[tuple[frozenset[str], frozenset[int]], int] = {}
    names, primaries = [], []
    for name in all_names(graph, facts):
        parts = parts_of(name, graph.parts, architecture)
        absent = frozenset(i for i in graph.sources if graph.filled and name not in facts[i].tensors)
        if (parts, absent) not in found:
            case = Case(absent, values, parts)
            found[parts, absent] = Analysis(graph.order, case, graph.deltas).primary(graph.root)
        primary = found[parts, absent]
        if name in facts[primary].tensors:
            names.append(name)
            primaries.append(primary)
    for part in sorted(graph.parts):
        if not any(architecture.matches(part, name) for name in names):
            raise RecipeError(
                f"replace: {part}: the model that is to give it has no tensor of that component",
                hint="`mergeflow inspect FILE` shows what a file holds",
            )
    return names, primaries


def _notes(bound: Bound, graph: Graph, names: Sequence[str], facts: Facts, primary: int) -> tuple[str, ...]:
    """One line for each model that does not have the result's tensors, or has others."""
    here, notes = set(names), []
    for i in sorted(graph.sources - {primary}):
        source = facts[i]
        if i in graph.spare:
            continue
        if graph.parts and not source.tensors.keys() >= here:
            continue  # a donor of a component is not expected to have the rest
        missing = [name for name in names if name not in source.tensors]
        if missing and bound.recipe.options.missing == "error":
            raise RecipeError(
                f"{source.name} lacks {len(missing):,} of {len(names):,} tensors, such as {missing[0]}",
                hint="options: { missing: keep } keeps the first model's",
            )
        if missing:
            count = f"{len(missing):,} of {len(names):,} tensors"
            notes.append(f"{source.name} lacks {count}, such as {missing[0]}: kept as they are")
        extra = len(source.tensors.keys() - here)
        if extra:
            notes.append(f"{source.name} has {extra:,} tensors that {facts[primary].name} has not: left out")
    return tuple(notes)
