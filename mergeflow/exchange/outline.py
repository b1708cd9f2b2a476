"""What an export reads: one output of a bound recipe as steps, each a sum of models and earlier steps, or something
that is no sum. Nothing of models' files is known here."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import PurePosixPath
from typing import NamedTuple

from mergeflow.errors import Place, RecipeError, UnknownName
from mergeflow.ir.nodes import Apply, Free, Like, Load, Named, Node, Pick, Replace, Round, Sum, topological
from mergeflow.ir.numbers import ONE, ZERO, Number, Varying
from mergeflow.plan.bind import bind
from mergeflow.plan.bound import Bound
from mergeflow.recipe import Output, Recipe
from mergeflow.recipe.tokens import clip


class Exported(NamedTuple):
    """The text, and a line for everything that it has not, or has otherwise."""

    text: str
    losses: tuple[str, ...]


@dataclass(slots=True)
class Outline:
    """An output with its graph, inputs first. `owner`: the step (or output) that each node was written in."""

    bound: Bound
    path: str
    root: Node
    output: Output
    order: list[Node]
    owner: dict[int, Named]
    losses: dict[str, None] = field(default_factory=dict)

    def lose(self, what: str) -> None:
        self.losses.setdefault(what)

    def name_of(self, load: Load) -> str:
        return self.bound.sources[load.source].name

    def refuse(self, node: Node, what: str, hint: str = "") -> RecipeError:
        """An error about a node, at the step that it was written in."""
        named = self.owner.get(id(node))
        place = named.place if named is not None else self.output.place
        return RecipeError(f"{clip(named.name if named is not None else self.path)} {what}", place=place, hint=hint)


def outline(recipe: Recipe, wanted: str | None) -> Outline:
    """The output `wanted` of a recipe, or its only one.

    Raises:
        RecipeError: the recipe does not hold together, it has several outputs, or there is no such one.
    """
    bound = bind(recipe)
    file = Place(str(recipe.path)) if recipe.path else None
    if not bound.outputs:
        raise RecipeError("the recipe has no outputs", place=file)
    if wanted is None and len(bound.outputs) > 1:
        shown = ", ".join(list(bound.outputs)[:6]) + (" …" if len(bound.outputs) > 6 else "")
        raise RecipeError(
            "the recipe has several outputs, and one is exported", place=file, hint=f"name one of {shown}"
        )
    matching = [path for path in bound.outputs if wanted in (None, path, PurePosixPath(path).name)]
    if not matching:
        raise UnknownName("output", wanted or "", bound.outputs, place=file)
    root, output = bound.outputs[matching[0]]
    order = topological([root])
    owner: dict[int, Named] = {}
    stack: list[tuple[Node, Named | None]] = [(root, None)]
    while stack:
        node, named = stack.pop()
        if id(node) in owner:
            continue
        named = node if isinstance(node, Named) else named
        if named is not None:
            owner[id(node)] = named
        stack += [(child, named) for child in node.inputs()]
    return Outline(bound, matching[0], root, output, order, owner)


class Term(NamedTuple):
    share: Number
    leaf: Node


def terms(root: Node, stops: set[int]) -> list[Term]:
    """The sum that a node is, over sources, the nodes `stops`, and whatever is no sum; in the order in which it is
    written, equal leaves added up where their shares are numbers."""
    shares: dict[int, Number] = {id(root): ONE}
    leaves: list[Node] = []
    below = topological([root])
    order = {id(node): i for i, node in enumerate(_written(root, stops))}
    for node in reversed(below):
        share = shares.get(id(node))
        if share is None:
            continue
        if (id(node) in stops and node is not root) or not isinstance(node, Sum | Named | Free):
            leaves.append(node)
            continue
        pairs = node.terms if isinstance(node, Sum) else ((ONE, node.of),)
        for factor, child in pairs:
            here = factor * share
            shares[id(child)] = shares[id(child)] + here if id(child) in shares else here
    found = [Term(shares[id(leaf)], leaf) for leaf in leaves]
    found.sort(key=lambda term: order[id(term.leaf)])
    return [term for term in found if isinstance(term.share, Varying) or term.share != 0 or term is found[0]]


def _written(root: Node, stops: set[int]) -> list[Node]:
    """The nodes of a sum from left to right."""
    seen: dict[int, Node] = {}
    stack = [root]
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen[id(node)] = node
        if (id(node) in stops and node is not root) or not isinstance(node, Sum | Named | Free):
            continue
        stack += reversed(node.inputs())
    return list(seen.values())


def degrees(order: list[Node]) -> dict[int, Fraction | None]:
    """What each node counts as: 1 a model, 0 a difference, None where it depends on the tensor."""
    found: dict[int, Fraction | None] = {}
    for node in order:
        if isinstance(node, Sum):
            total: Fraction | None = ZERO
            for share, child in node.terms:
                inner = found[id(child)]
                if inner is None or total is None or (isinstance(share, Varying) and inner):
                    total = None
                elif isinstance(share, Fraction):
                    total += share * inner
            found[id(node)] = total
        elif isinstance(node, Named | Round | Replace | Like):
            found[id(node)] = found[id(node.of)]
        elif isinstance(node, Pick):
            found[id(node)] = found[id(node.of[0])]
        elif isinstance(node, Apply):
            found[id(node)] = ZERO if node.kernel.result == "delta" else ONE
        else:
            found[id(node)] = ONE
    return found
