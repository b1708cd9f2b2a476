"""The graph of names, for people and tools: what each step and output is made of, as far as some outputs need it.

What stands for many files is one node: an entry of `outputs:` with sweeps, and a step that depends on sweeps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import networkx as nx

from mergeflow.ir.nodes import Load, Node, topological
from mergeflow.plan.bound import Bound, Variant
from mergeflow.plan.facts import Facts

if TYPE_CHECKING:
    from mergeflow.plan.plans import OutputPlan


def variants(bound: Bound, outputs: Iterable[str]) -> dict[str, list[Variant]]:
    """The steps as these outputs use them: once, or once for each choice among the sweeps that they depend on. A step
    that none of them uses is there once."""
    used = {id(node) for node in topological([bound.outputs[path][0] for path in outputs])}
    found = {}
    for name, node in bound.steps.items():
        here = [variant for variant in bound.variants.get(name, ()) if id(variant.node) in used]
        found[name] = here or [Variant({}, "", node)]
    return found


def dependencies(bound: Bound, facts: Facts, outputs: Iterable[OutputPlan]) -> nx.DiGraph[str]:
    """Sources, steps and outputs by name; edges lead from what is used. Of an output: whether it would be built, why,
    and as how many files."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    entries: dict[str, list[OutputPlan]] = {}
    for output in outputs:
        entries.setdefault(bound.points[output.path].template, []).append(output)
    steps = variants(bound, (output.path for entry in entries.values() for output in entry))
    label = {id(node): name for name, node in bound.nodes.items()}
    label |= {id(variant.node): name for name, several in steps.items() for variant in several}
    for i, fact in facts.items():
        graph.add_node(bound.sources[i].name, kind="source", digest=fact.model)
    for name, several in steps.items():
        graph.add_node(name, kind="step")
        for variant in several:
            graph.add_edges_from((used, name) for used in _direct(variant.node, label, name, bound))
    wanted = []
    for template, entry in entries.items():
        name = template if len(entry) > 1 else entry[0].path
        wanted.append(name)
        building = [output for output in entry if output.build]
        reason = (building or entry)[0].reason
        graph.add_node(name, kind="output", build=bool(building), reason=reason, files=len(entry))
        for output in entry:
            graph.add_edges_from((used, name) for used in _direct(bound.outputs[output.path][0], label, name, bound))
    keep = set(wanted).union(*(nx.ancestors(graph, name) for name in wanted))
    graph.remove_nodes_from([name for name in graph if name not in keep])
    return graph


def _direct(root: Node, label: Mapping[int, str], own: str, bound: Bound) -> list[str]:
    """The names that a node's expression mentions: the nearest named nodes below it."""
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
