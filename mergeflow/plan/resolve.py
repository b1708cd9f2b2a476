"""From an output's graph and the sources' headers to the normal form of each of its tensors.

Tensors that do not differ in anything that matters (which sources have them, what profiles say there, which component
they are in) share a case, and each case is analysed once: 50,000 tensors are usually one or two cases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from mergeflow.arch import Architecture, find
from mergeflow.errors import RecipeError, UnknownName
from mergeflow.ir.forms import Analysis, Applied, Case, Form, inner_first
from mergeflow.ir.nodes import Load, Node, Replace, Sum, topological
from mergeflow.ir.numbers import Varying, profiles_in
from mergeflow.plan.bound import Bound, Claim, Profile
from mergeflow.plan.facts import SourceFacts
from mergeflow.plan.parts import at_home, check_fit, check_parts
from mergeflow.plan.profiles import Table, resolve
from mergeflow.recipe.tokens import clip
from mergeflow.tensors import BY_LABEL, DType, TensorSpec

Facts = Mapping[int, SourceFacts]


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


@dataclass(slots=True)
class _Graph:
    """A root and all under it, analysed case by case."""

    root: Node
    order: Sequence[Node]
    deltas: frozenset[int]
    sources: frozenset[int]
    profiles: frozenset[str]
    parts: frozenset[str]
    done: dict[Case, Analysis] = field(default_factory=dict)


def sources_of(roots: Sequence[Node]) -> frozenset[int]:
    """The sources that these nodes read."""
    return frozenset(node.source for node in topological(roots) if isinstance(node, Load))


def resolve_output(bound: Bound, root: Node, facts: Facts) -> Resolved:
    """All of an output's tensors with their forms.

    Raises:
        RecipeError: a degree that is not 0 or 1, models that do not fit together, a profile with holes, a component
            that the architecture does not have, and with `missing: error` a tensor that some model lacks.
    """
    graph = _graph(root, facts)
    start = Analysis(
        graph.order, Case(frozenset(), _any_values(bound.profiles, graph.profiles), frozenset()), graph.deltas
    )
    primary = start.primary(root)
    architecture = _architecture(bound, facts[primary])
    _check_components(graph, architecture, facts[primary])
    check_parts(facts[i] for i in sorted(_summed(root)))
    facts = at_home(facts, graph.sources, architecture)
    names, primaries = _tensor_names(graph, start, facts, architecture, bound)
    _check_relatives(graph, facts, primary, architecture)
    tables = {name: resolve(bound.profiles[name], names, architecture) for name in sorted(graph.profiles)}
    cases, analyses = _cases(graph, names, facts, tables, architecture, start)
    for analysis, components in analyses:
        if not components and analysis.primary(root) != primary:
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


def check_claim(bound: Bound, claim: Claim, facts: Facts) -> str:
    """Whether the two sides of an assertion have the same normal forms. Returns a note when only primaries differ.

    Raises:
        RecipeError: they have not; the message shows both.
    """
    both = Sum([(Fraction(1), claim.left), (Fraction(1), claim.right)])
    graph = _graph(both, facts)
    start = Analysis(
        graph.order, Case(frozenset(), _any_values(bound.profiles, graph.profiles), frozenset()), graph.deltas
    )
    primary = start.primary(claim.left)
    architecture = _architecture(bound, facts[primary])
    names = list(facts[primary].tensors)
    tables = {name: resolve(bound.profiles[name], names, architecture) for name in sorted(graph.profiles)}
    _, analyses = _cases(graph, names, facts, tables, architecture, start)
    label = {i: facts[i].name for i in graph.sources}
    same = {i: min(j for j in graph.sources if facts[j].model == facts[i].model) for i in graph.sources}
    for analysis, _ in analyses:
        left, right = (canonical(analysis.form(side), same) for side in (claim.left, claim.right))
        if left != right:
            raise RecipeError(
                f"the assertion does not hold: {claim.text}",
                place=claim.place,
                hint=f"left is {_shown(left, label)}, right is {_shown(right, label)}",
            )
    if start.primary(claim.left) != start.primary(claim.right):
        return f"{claim.text}: the sums are equal, but the first takes its tensors from {facts[primary].name}"
    return ""


Canonical = tuple[tuple[Fraction, object], ...]


def canonical(form: Form, same: Mapping[int, int]) -> Canonical:
    """A form as plain tuples that compare equal exactly when the forms are; `same` maps equal sources to one."""
    numbers: dict[object, int] = {}  # each inner form, once seen, is known by a number
    seen: dict[tuple[int, DType | None, DType], int] = {}
    result: Canonical = ()
    for point in inner_first(form, DType.F64):
        if isinstance(point.leaf, Applied):
            call = (_call(point.leaf, [seen[part.identity] for part in point.parts()]),)
            seen[point.identity] = numbers.setdefault(((Fraction(0), call),), len(numbers))
            continue
        shares: dict[object, Fraction] = {}
        for share, leaf in point.leaf.form.terms:
            if isinstance(leaf, int):
                key: object = same[leaf]
            else:
                what = leaf.kernel.name if isinstance(leaf, Applied) else str(leaf.dtype and leaf.dtype.label)
                key = ("inner", seen[point.within(leaf).identity], what)
            shares[key] = shares.get(key, Fraction(0)) + share
        result = tuple(sorted(((s, k) for k, s in shares.items() if s), key=lambda t: str(t[1])))
        seen[point.identity] = numbers.setdefault(result, len(numbers))
    inner = tuple(k for k, _ in sorted(numbers.items(), key=lambda item: item[1])[:-1])
    return (*result, *((Fraction(0), k) for k in inner))


def _call(leaf: Applied, operands: list[int]) -> tuple[object, ...]:
    """What a kernel is applied with, by value; operands are known by numbers."""
    weights = leaf.weights or (Fraction(1),) * len(operands)
    taken = list(zip(weights, operands, strict=True))
    kernel = leaf.kernel
    return kernel.name, kernel.version, leaf.arguments, leaf.options, *(sorted(taken) if kernel.symmetric else taken)


def _shown(form: Canonical, label: Mapping[int, str]) -> str:
    from mergeflow.plan.text import join_terms

    return join_terms([(s, label[k] if isinstance(k, int) else f"({_kind(k)})") for s, k in form if s])


def _kind(key: object) -> str:
    """What an inner form shows as: the kernel that makes it, or that it is rounded."""
    assert isinstance(key, tuple)
    return "rounded" if key[2] in BY_LABEL else f"{key[2]} …"


def _graph(root: Node, facts: Facts) -> _Graph:
    order = topological([root])
    sources = frozenset(node.source for node in order if isinstance(node, Load))
    profiles: set[str] = set()
    parts: set[str] = set()
    for node in order:
        for number in node.numbers():
            if isinstance(number, Varying):
                profiles |= profiles_in(number)
        if isinstance(node, Replace):
            parts |= {component for component, _ in node.parts}
    deltas = frozenset(i for i in sources if facts[i].delta)
    return _Graph(root, order, deltas, sources, frozenset(profiles), frozenset(parts))


def _any_values(profiles: Mapping[str, Profile], wanted: frozenset[str]) -> Mapping[str, Fraction]:
    """Some value of each profile, for what must not depend on them."""
    return {name: profiles[name].sample for name in wanted}


def _architecture(bound: Bound, primary: SourceFacts) -> Architecture:
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


def _check_components(graph: _Graph, architecture: Architecture, primary: SourceFacts) -> None:
    for part in sorted(graph.parts):
        if part not in architecture.component_names:
            if not architecture.component_names:
                raise RecipeError(
                    f"replace: {clip(part)}: the architecture of {primary.name} is not known, nor are its components",
                    hint="name it with `arch:` at the top of the recipe",
                )
            raise UnknownName(f"component of a {architecture.title} model", part, architecture.component_names)


def _check_relatives(graph: _Graph, facts: Facts, primary: int, architecture: Architecture) -> None:
    """Refuse sums over models that have nothing in common: what came out would quietly be the first of them."""
    first = facts[primary]
    for node in graph.order:
        for part, donor in node.parts if isinstance(node, Replace) else ():
            for i in sorted(_summed(donor)):
                check_fit([part], architecture, first, facts[i])
    for top in [graph.root, *(donor for node in graph.order if isinstance(node, Replace) for _, donor in node.parts)]:
        summed = [facts[i] for i in sorted(_summed(top))]
        known = [source for source in summed if source.architecture.component_names]
        for other in known[1:]:
            if other.architecture.name != known[0].architecture.name:
                raise RecipeError(
                    f"{known[0].name} is {known[0].architecture.title}, {other.name} is {other.architecture.title}: "
                    "models of different architectures cannot be merged",
                    hint="`mergeflow inspect FILE` shows what a file is",
                )
        for other in summed if top is graph.root else ():
            if other.tensors.keys().isdisjoint(first.tensors):
                such = next(iter(first.tensors), "")
                lacks = f"{other.name} has none of the tensors of {first.name}, such as {such}"
                raise RecipeError(
                    f"{lacks if such else f'{first.name} has no tensors'}: there is nothing to merge",
                    hint="`mergeflow inspect FILE` shows what a file holds",
                )


def _summed(root: Node) -> frozenset[int]:
    """The sources under a node, without those that only give components to it."""
    found: set[int] = set()
    seen: set[int] = set()
    stack = [root]
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, Load):
            found.add(node.source)
        stack += [node.of] if isinstance(node, Replace) else node.inputs()
    return frozenset(found)


def _tensor_names(
    graph: _Graph, start: Analysis, facts: Facts, architecture: Architecture, bound: Bound
) -> tuple[list[str], list[int]]:
    """The result's tensors and whose they are: the primary's, but in a replaced component the donor's."""
    if not graph.parts:
        primary = start.primary(graph.root)
        names = list(facts[primary].tensors)
        return names, [primary] * len(names)
    values = start.case.profiles
    by_parts: dict[frozenset[str], int] = {}
    names, primaries = [], []
    universe = dict.fromkeys(name for i in sorted(graph.sources) for name in facts[i].tensors)
    for name in universe:
        parts = _parts_of(name, graph.parts, architecture)
        if parts not in by_parts:
            case = Case(frozenset(), values, parts)
            by_parts[parts] = Analysis(graph.order, case, graph.deltas).primary(graph.root)
        primary = by_parts[parts]
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


def _parts_of(name: str, parts: frozenset[str], architecture: Architecture) -> frozenset[str]:
    return frozenset(part for part in parts if architecture.matches(part, name))


def _cases(
    graph: _Graph, names: Sequence[str], facts: Facts, tables: Mapping[str, Table], architecture: Architecture,
    start: Analysis,
) -> tuple[list[int], list[tuple[Analysis, frozenset[str]]]]:  # fmt: skip
    """The case of each tensor, and the analysis of each case. `start` is of the case in which nothing is particular."""
    here = set(names)
    lacking = {i: here - facts[i].tensors.keys() for i in sorted(graph.sources)}
    lacking = {i: missing for i, missing in lacking.items() if missing}
    columns = list(tables.items())
    numbers: dict[tuple[object, ...], int] = {}
    analyses: list[tuple[Analysis, frozenset[str]]] = []
    cases: list[int] = []
    if not lacking and not columns and not graph.parts:
        return [0] * len(names), [(start, frozenset())]
    for position, name in enumerate(names):
        absent = frozenset(i for i, missing in lacking.items() if name in missing)
        parts = _parts_of(name, graph.parts, architecture) if graph.parts else frozenset[str]()
        values = tuple(table.values[position] for _, table in columns)
        number = numbers.setdefault((absent, parts, values), len(numbers))
        if number == len(analyses):
            profiles = {key: table.values[position] for key, table in columns}
            try:
                analyses.append((Analysis(graph.order, Case(absent, profiles, parts), graph.deltas), parts))
            except RecipeError as error:
                error.message += f" (for the tensor {name})"
                raise
        cases.append(number)
    return cases, analyses


def _notes(bound: Bound, graph: _Graph, names: Sequence[str], facts: Facts, primary: int) -> tuple[str, ...]:
    """One line for each model that does not have the result's tensors, or has others."""
    here, notes = set(names), []
    for i in sorted(graph.sources - {primary}):
        source = facts[i]
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
