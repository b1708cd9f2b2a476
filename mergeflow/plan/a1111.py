"""The policy `a1111`: the bytes of the checkpoint merger of AUTOMATIC1111's webui (`run_modelmerger`, since 2023-08).

Nothing is fused. An output is a chain of that tool's merges:

    weighted sum     (1 − M)·A + M·B
    add difference   A + M·(B − C)

Here an expression is read as that chain, or refused; `plan.a1111_lower` says what each merge does to a tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from mergeflow.errors import Place, RecipeError
from mergeflow.ir.nodes import Apply, Load, Named, Node, Round, Sum, topological
from mergeflow.ir.numbers import ONE, Varying, decimal
from mergeflow.plan.facts import Facts
from mergeflow.recipe import Output
from mergeflow.recipe.tokens import clip
from mergeflow.tensors import DType

NAME = "a1111"
_KINDS = "a1111 knows weighted_sum(a, b, m) and add_difference(a, b, c, m), one after the other"


class Read(NamedTuple):
    """A file."""

    source: int


class Merge(NamedTuple):
    """One run of the merger over the results of earlier moves: a weighted sum, or with `c` an add difference."""

    a: int
    b: int
    c: int | None
    m: Fraction


class Half(NamedTuple):
    """`save_as_half` of the run before it: float32 tensors that it merged become float16."""

    of: int


Move = Read | Merge | Half


class _Difference(NamedTuple):
    b: int
    c: int


def moves(root: Node, output: Output, facts: Facts) -> list[Move]:
    """What the merger would be asked to do for an output, in order; the last move is the result.

    Raises:
        RecipeError: something that it could not be asked.
    """
    reader = _Reader(facts, _owners(root))
    for node in topological([root]):
        reader.read(node)
    result = reader.model(root)
    if output.dtypes or output.dtype not in (None, DType.F16):
        raise RecipeError(
            f"policy {NAME}: an output keeps its tensors' dtypes, or has dtype: float16 (save as half)",
            place=output.place,
            hint="write dtype: float16, or leave dtype: out",
        )
    assert result == len(reader.moves) - 1  # all others lead to it
    if output.dtype is DType.F16:
        reader.moves.append(Half(result))
    return reader.moves


@dataclass(slots=True)
class _Owner:
    name: str
    place: Place


def _owners(root: Node) -> Mapping[int, _Owner]:
    """The step (or output) that each node was written in."""
    found: dict[int, _Owner] = {}
    stack: list[tuple[Node, _Owner]] = [(root, _Owner("the output", Place()))]
    while stack:
        node, owner = stack.pop()
        if id(node) in found:
            continue
        if isinstance(node, Named):
            owner = _Owner(node.name, node.place)
        found[id(node)] = owner
        stack += [(child, owner) for child in node.inputs()]
    return found


class _Reader:
    """Reads a graph, inputs first, as moves. What a node comes to is a number times a move or a difference of two."""

    def __init__(self, facts: Facts, owners: Mapping[int, _Owner]) -> None:
        self._facts, self._owners = facts, owners
        self._known: dict[int, tuple[Fraction, int | _Difference]] = {}
        self.moves: list[Move] = []

    def read(self, node: Node) -> None:
        if isinstance(node, Load):
            if self._facts[node.source].delta:
                raise self._refuse(node, f"{self._facts[node.source].name} is a difference, not a model")
            self._known[id(node)] = ONE, self._add(Read(node.source))
        elif isinstance(node, Named):
            self._known[id(node)] = self._known[id(node.of)]
        elif isinstance(node, Round):
            if node.dtype is not DType.F16:
                raise self._refuse(node, f"round: {node.dtype.label}", "round: float16 is its save as half")
            self._known[id(node)] = ONE, self._add(Half(self.model(node.of)))
        elif isinstance(node, Sum):
            self._known[id(node)] = self._sum(node)
        else:
            if isinstance(node, Apply):
                raise self._refuse(node, f"the method {node.kernel.name}")
            shown = {
                "Replace": "replace:",
                "Like": "like:",
                "Free": "scale() or normalize=false",
                "Pick": "pick or fallback",
            }
            raise self._refuse(node, shown[type(node).__name__])

    def model(self, node: Node) -> int:
        factor, what = self._known[id(node)]
        if isinstance(what, int) and factor == 1:
            return what
        raise self._refuse(node, "a result that is no model" if isinstance(what, _Difference) else "a scaled model")

    def _sum(self, node: Sum) -> tuple[Fraction, int | _Difference]:
        terms: list[tuple[Fraction, int | _Difference]] = []
        for share, child in node.terms:
            if isinstance(share, Varying):
                raise self._refuse(node, "a number that differs from tensor to tensor")
            factor, what = self._known[id(child)]
            terms.append((share * factor, what))
        if len(terms) == 1:
            return terms[0]
        if len(terms) > 2:
            raise self._refuse(node, f"a sum of {len(terms):,} terms", "write a + (b - c) * 0.3, with the brackets")
        (f, x), (g, y) = terms
        if isinstance(x, int) and isinstance(y, int):
            if f + g == 1:
                return ONE, self._add(Merge(x, y, None, g))
            if {f, g} == {ONE, -ONE}:
                return ONE, _Difference(x, y) if f == 1 else _Difference(y, x)
            shown = f"{decimal(f)}·x + {decimal(g)}·y"
            raise self._refuse(node, f"the sum {shown}", "a difference is scaled as a whole: (b - c) * 0.3")
        if isinstance(x, _Difference):
            (f, x), (g, y) = (g, y), (f, x)
        if isinstance(x, int) and isinstance(y, _Difference) and f == 1:
            return ONE, self._add(Merge(x, y.b, y.c, g))
        raise self._refuse(node, "a sum of differences" if isinstance(x, _Difference) else "a scaled model")

    def _add(self, move: Move) -> int:
        self.moves.append(move)
        return len(self.moves) - 1

    def _refuse(self, node: Node, what: str, hint: str = _KINDS) -> RecipeError:
        owner = self._owners[id(node.of if isinstance(node, Round) else node)]
        return RecipeError(
            f"policy {NAME}: {clip(owner.name)} holds {what}, which that merger cannot do", place=owner.place, hint=hint
        )


def graph_entry(done: Sequence[Move], facts: Facts) -> list[list[str | int]]:
    """The moves for a file's metadata: a file by its model digest, a merge by the numbers of earlier entries."""
    entries: list[list[str | int]] = []
    for move in done:
        if isinstance(move, Read):
            entries.append(["model", facts[move.source].model])
        elif isinstance(move, Half):
            entries.append(["half", move.of])
        elif move.c is None:
            entries.append(["weighted sum", move.a, move.b, repr(float(move.m))])
        else:
            entries.append(["add difference", move.a, move.b, move.c, repr(float(move.m))])
    return entries
