"""An output's graph, and the cases that its tensors are: those that do not differ in anything that matters (which
sources have them, what profiles say there, which component they are in) share one, and each is analysed once. 50,000
tensors are usually one or two cases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mergeflow.arch import Architecture
from mergeflow.errors import RecipeError
from mergeflow.ir.analysis import Analysis, Case
from mergeflow.ir.nodes import Load, Node, Pick, Replace, topological
from mergeflow.ir.numbers import Varying, profiles_in
from mergeflow.plan.bound import Profile
from mergeflow.plan.facts import Facts
from mergeflow.plan.profiles import Table


@dataclass(slots=True)
class Graph:
    """A root and all under it, analysed case by case."""

    root: Node
    order: Sequence[Node]
    deltas: frozenset[int]
    sources: frozenset[int]
    profiles: frozenset[str]
    parts: frozenset[str]
    spare: frozenset[int]  # the sources that are only there to have what others lack
    filled: bool  # whether there may be tensors that the primary lacks


def graph_of(root: Node, facts: Facts) -> Graph:
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
    filled = any(isinstance(node, Pick) and node.fills for node in order)
    spare = sources - summed(root, filling=False) if filled else frozenset[int]()
    return Graph(root, order, deltas, sources, frozenset(profiles), frozenset(parts), spare, filled)


def summed(root: Node, *, filling: bool = True) -> frozenset[int]:
    """The sources under a node, without those that only give components to it, and without those, unless `filling`,
    that only fill in what another lacks."""
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
        if isinstance(node, Replace):
            stack.append(node.of)
        else:
            first_alone = isinstance(node, Pick) and node.fills and not filling
            stack += node.inputs()[:1] if first_alone else node.inputs()
    return frozenset(found)


def first_analysis(graph: Graph, profiles: Mapping[str, Profile]) -> Analysis:
    """Of the case in which no tensor is lacking and none replaced, with some value of each profile: for what must not
    depend on them."""
    values = {name: profiles[name].sample for name in graph.profiles}
    return Analysis(graph.order, Case(frozenset(), values, frozenset()), graph.deltas)


def all_names(graph: Graph, facts: Facts) -> list[str]:
    """The tensors that any of the sources has, in an order that tells nothing of the sources'."""
    return sorted({name for i in graph.sources for name in facts[i].tensors})


def parts_of(name: str, parts: frozenset[str], architecture: Architecture) -> frozenset[str]:
    return frozenset(part for part in parts if architecture.matches(part, name))


def cases_of(
    graph: Graph, names: Sequence[str], facts: Facts, tables: Mapping[str, Table], architecture: Architecture,
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
        parts = parts_of(name, graph.parts, architecture) if graph.parts else frozenset[str]()
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
