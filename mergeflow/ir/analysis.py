"""From the graph to the normal form of a tensor.

Two linear passes over the graph for each *case* (a case is all that can differ between two tensors: which sources
have it, the values of the profiles there, the component it belongs to):

1. upwards: degree, primary, and whether the tensor is there at all, by the rules for missing tensors;
2. downwards: each node's share in the result, so that a graph of depth 100 with 2**100 paths costs its edges. What
   was found below one root is not gone through again for the next: all steps of a chain cost as much as the last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from heapq import heappop, heappush

from mergeflow.errors import Place, RecipeError
from mergeflow.ir.degrees import check_degree, check_side
from mergeflow.ir.forms import Applied, Form, Leaf, Rounded
from mergeflow.ir.nodes import Apply, Free, Like, Load, Named, Node, Pick, Replace, Round, Sum
from mergeflow.ir.numbers import ONE, ZERO, Number, decimal, evaluate, exact_sum, times


@dataclass(frozen=True, slots=True)
class Case:
    """What is particular about a tensor. `absent` are the sources that lack it, `components` those that Replace
    names and that it belongs to."""

    absent: frozenset[int]
    profiles: Mapping[str, Fraction]
    components: frozenset[str]


@dataclass(slots=True)
class _State:
    """What the upward pass knows of a node: its degree, whether it is a difference, whose tensors it has, whether it
    has this tensor, and, for a sum, the terms that count for this tensor."""

    degree: Fraction
    delta: bool
    primary: int
    present: bool
    used: Sequence[tuple[Fraction, Node]]


class Analysis:
    """The upward pass over a graph for one case; `form` runs the downward pass from any of its nodes."""

    def __init__(self, order: Sequence[Node], case: Case, deltas: frozenset[int] = frozenset()) -> None:
        """`order` is topological; `deltas` are the sources whose files hold differences, not models."""
        self.order, self.case, self.deltas = order, case, deltas
        self._position = {id(node): i for i, node in enumerate(order)}
        self._states: dict[int, _State] = {}
        self._below: dict[int, tuple[dict[int, Fraction], dict[Round | Apply, Fraction]]] = {}  # of roots before
        for node in order:
            try:
                self._states[id(node)] = self._up(node)
            except RecipeError as error:
                error.place = error.place or self._place_of(node)
                raise

    def degree(self, node: Node) -> Fraction:
        return self._states[id(node)].degree

    def is_delta(self, node: Node) -> bool:
        return self._states[id(node)].delta

    def primary(self, node: Node) -> int:
        """The source whose tensors, integers and dtypes the node's value has."""
        return self._states[id(node)].primary

    def _up(self, node: Node) -> _State:
        states = self._states
        if isinstance(node, Load):
            present, delta = node.source not in self.case.absent, node.source in self.deltas
            return _State(ZERO if delta else ONE, delta, node.source, present, ())
        if isinstance(node, Sum):
            return self._up_sum(node)
        if isinstance(node, Apply):
            return self._up_apply(node)
        if isinstance(node, Pick):
            return self._up_pick(node)
        if isinstance(node, Replace):
            chosen = self._part(node)
            s, of = states[id(chosen)], states[id(node.of)]
            return _State(of.degree, of.delta, s.primary, s.present, ((ONE, chosen),))
        inner = node.inputs()[0]
        s = states[id(inner)]
        used: tuple[tuple[Fraction, Node], ...] = ((ONE, inner),)
        if isinstance(node, Named):
            check_degree(node.name, node.place, s.degree)
        if isinstance(node, Free):
            return _State(ZERO if s.delta else ONE, s.delta, s.primary, s.present, used)
        if isinstance(node, Like):
            like = states[id(node.primary)]
            present = s.present or like.present
            return _State(s.degree, s.delta, like.primary, present, used if s.present else ((ONE, node.primary),))
        return _State(s.degree, s.delta, s.primary, s.present, used)

    def _up_sum(self, node: Sum) -> _State:
        """`x ± y` takes x's primary, unless x is a difference and y a model. Where an operand lacks the tensor: a
        difference adds nothing; a lacking model leaves the whole sum to its primary (a difference of which one side
        is lacking is itself lacking)."""
        shares = [self._number(share) for share, _ in node.terms]
        states = [self._states[id(child)] for _, child in node.terms]
        total, lead, running = ZERO, 0, states[0].delta
        for i, (share, s) in enumerate(zip(shares, states, strict=True)):
            if i and running and not s.delta:
                lead = i
            if s.degree is not ZERO:
                added = times(share, s.degree)
                total = added if total is ZERO else _shared(total + added)
            running = s.delta if not i else not total
        delta = states[0].delta if len(states) == 1 else not total
        primary = states[lead].primary
        if all(s.present for s in states):
            used = [(share, child) for share, (_, child) in zip(shares, node.terms, strict=True)]
            return _State(total, delta, primary, True, used)
        if any(not s.present and not s.delta for s in states):
            if delta or not states[lead].present:
                return _State(total, delta, primary, False, ())
            share = total / states[lead].degree if states[lead].degree else ONE
            return _State(total, delta, primary, True, [(share, node.terms[lead][1])])
        used = [(share, child) for share, (_, child), s in zip(shares, node.terms, states, strict=True) if s.present]
        return _State(total, delta, primary, bool(used), used)

    def _up_apply(self, node: Apply) -> _State:
        """The primary is the first operand's. A model that is lacking leaves the result to the primary; of differences
        those that are lacking are left out, and the result is lacking when none is left."""
        kernel = node.kernel
        states = [self._states[id(operand)] for operand in node.operands]
        for i, (operand, s) in enumerate(zip(node.operands, states, strict=True)):
            check_side(kernel, i, s.degree, s.delta, operand)
        delta = kernel.result == "delta"
        degree, primary = ZERO if delta else ONE, states[0].primary
        if all(s.present for s in states):
            return _State(degree, delta, primary, True, ())
        lacking = [i for i, s in enumerate(states) if not s.present]
        if any(kernel.side(i) == "model" or not kernel.many for i in lacking):
            keeps = states[0].present and kernel.side(0) == kernel.result == "model"
            return _State(degree, delta, primary, keeps, ((ONE, node.operands[0]),) if keeps else ())
        return _State(degree, delta, primary, len(lacking) < len(states), ())

    def _up_pick(self, node: Pick) -> _State:
        """A number keeps the first operand's tensors, and that one's value where the one with the number lacks the
        tensor; without one the tensors are those that any operand has."""
        states = [self._states[id(operand)] for operand in node.of]
        first = states[0]
        if any((s.degree, s.delta) != (first.degree, first.delta) for s in states):
            raise RecipeError(
                "some of those to choose from are models, others differences of models",
                hint="add each difference to a model first: base + x",
            )
        here = [(s, of) for s, of in zip(states, node.of, strict=True) if s.present]
        if node.number is None:
            found, of = here[0] if here else (first, node.of[0])
            return _State(first.degree, first.delta, found.primary, bool(here), ((ONE, of),))
        number = self._number(node.number)
        if number.denominator != 1 or not 1 <= number <= len(states):
            raise RecipeError(f"pick: number is a whole number from 1 to {len(states)}, not {decimal(number)}")
        of = node.of[int(number) - 1]
        chosen = of if self._states[id(of)].present else node.of[0]
        present = self._states[id(chosen)].present
        return _State(first.degree, first.delta, first.primary, present, ((ONE, chosen),))

    def _number(self, number: Number) -> Fraction:
        try:
            return evaluate(number, self.case.profiles)
        except ZeroDivisionError:
            raise RecipeError("a number of the recipe is divided by zero") from None

    def _place_of(self, node: Node) -> Place | None:
        """Where the step or output that a node belongs to is written."""
        users = {id(node)}
        for other in self.order[self._position[id(node)] :]:
            if any(id(inner) in users for inner in other.inputs()):
                users.add(id(other))
                if isinstance(other, Named):
                    return other.place
        return None

    def _part(self, node: Replace) -> Node:
        for component, donor in node.parts:
            if component in self.case.components:
                return donor
        return node.of

    def form(self, root: Node) -> Form:
        """The normal form of `root` for this case; empty when nothing is left (a difference of equals)."""
        finished: dict[int, Form] = {}  # by the node a form was taken of: the root, what Round nodes and kernels take
        made: dict[int, Applied] = {}
        stack = [root]
        while stack:
            node = stack[-1]
            shares, opaque = self._down(node, below=node is root)
            waiting = [of for leaf in opaque for of in self._taken(leaf) if id(of) not in finished]
            if waiting:
                stack += waiting
                continue
            sources = sorted((source, share) for source, share in shares.items() if share)
            terms: list[tuple[Fraction, Leaf]] = [(share, source) for source, share in sources]
            for leaf, share in opaque.items():
                if not share:
                    continue
                if isinstance(leaf, Round):
                    terms.append((share, Rounded(finished[id(leaf.of)], leaf.dtype)))
                else:
                    if id(leaf) not in made:
                        made[id(leaf)] = self._applied(leaf, finished)
                    terms.append((share, made[id(leaf)]))
            finished[id(node)] = Form(tuple(terms))
            stack.pop()
        return finished[id(root)]

    def _taken(self, leaf: Round | Apply) -> list[Node]:
        """The nodes whose forms a leaf is made of."""
        if isinstance(leaf, Round):
            return [leaf.of]
        return [operand for operand in leaf.operands if self._states[id(operand)].present]

    def _applied(self, node: Apply, finished: dict[int, Form]) -> Applied:
        kernel = node.kernel
        arguments = tuple((name, self._number(number)) for name, number in node.arguments)
        for name, value in arguments:
            kernel.check(name, value)
        present = [self._states[id(operand)].present for operand in node.operands]
        operands = tuple(Rounded(finished[id(operand)], None) for operand in self._taken(node))
        weights = tuple(self._number(w) for w, here in zip(node.weights, present, strict=False) if here)
        for w in weights:
            kernel.check("weight", w)
        return Applied(kernel, operands, arguments, weights, node.options)

    def _down(self, root: Node, *, below: bool) -> tuple[dict[int, Fraction], dict[Round | Apply, Fraction]]:
        """The shares of sources, rounding points and applied kernels in `root`; does not look below those, unless
        `root` itself is a rounding point and what is `below` it is asked for."""
        arriving: dict[int, list[Fraction]] = {id(root): [ONE]}
        waiting = [-self._position[id(root)]]  # users before what they use
        shares: dict[int, list[Fraction]] = {}
        opaque: dict[Round | Apply, list[Fraction]] = {}
        while waiting:
            node = self.order[-heappop(waiting)]
            share = exact_sum(arriving.pop(id(node)))
            state = self._states[id(node)]
            if node is not root and id(node) in self._below:
                sources, leaves = self._below[id(node)]
                for source, part in sources.items():
                    shares.setdefault(source, []).append(times(part, share))
                for leaf, part in leaves.items():
                    opaque.setdefault(leaf, []).append(times(part, share))
            elif isinstance(node, Load):
                if node.source not in self.case.absent:
                    shares.setdefault(node.source, []).append(share)
            elif isinstance(node, Apply) and not state.used:
                if state.present:
                    opaque.setdefault(node, []).append(share)
            elif isinstance(node, Round) and not (below and node is root):
                opaque.setdefault(node, []).append(share)
            else:
                for factor, child in state.used:
                    if id(child) not in arriving:
                        arriving[id(child)] = []
                        heappush(waiting, -self._position[id(child)])
                    arriving[id(child)].append(times(factor, share))
        ordered = sorted(opaque.items(), key=lambda item: -self._position[id(item[0])])
        found = (
            {source: exact_sum(parts) for source, parts in shares.items()},
            {leaf: exact_sum(parts) for leaf, parts in ordered},
        )
        if not isinstance(root, Round):
            self._below[id(root)] = found
        return found


def _shared(degree: Fraction) -> Fraction:
    """Zero and one as the constants, which are told by identity."""
    return ZERO if not degree else ONE if degree == 1 else degree
