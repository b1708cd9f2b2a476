"""From the graph to the normal form of a tensor: (n1·X1 + n2·X2 + …) / d with integers, or a copy of one X.

Two linear passes over the graph for each *case* (a case is all that can differ between two tensors: which sources
have it, the values of the profiles there, the component it belongs to):

1. upwards: degree, primary, and whether the tensor is there at all, by the rules for missing tensors;
2. downwards: each node's share in the result, so that a graph of depth 100 with 2**100 paths costs its edges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm

from mergeflow.errors import Place, RecipeError
from mergeflow.ir.nodes import Free, Like, Load, Named, Node, Replace, Round, Sum
from mergeflow.ir.numbers import ONE, ZERO, decimal, evaluate, exact_sum
from mergeflow.tensors import DType


@dataclass(frozen=True, slots=True)
class Case:
    """What is particular about a tensor. `absent` are the sources that lack it, `component` matches Replace parts."""

    absent: frozenset[int]
    profiles: Mapping[str, Fraction]
    components: frozenset[str]


@dataclass(frozen=True, slots=True, eq=False)
class Rounded:
    """A rounding point inside a form: the inner form's value in a dtype."""

    form: Form
    dtype: DType


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """Σ shares·terms, exact; terms are sources (by index) or rounding points. No term has share zero."""

    terms: tuple[tuple[Fraction, int | Rounded], ...]

    def integers(self) -> tuple[tuple[int, ...], int]:
        """The same over one denominator, in lowest terms: (n1, n2, …), d."""
        d = lcm(*(share.denominator for share, _ in self.terms)) if self.terms else 1
        return tuple(int(share * d) for share, _ in self.terms), d


def inner_first(root: Form, dtype: DType) -> list[Rounded]:
    """The rounding points under `root`, inner ones before those that use them, each once; `root` itself, as if
    rounded to `dtype`, is the last."""
    last = Rounded(root, dtype)
    order: list[Rounded] = []
    done: set[tuple[int, DType]] = set()
    stack: list[tuple[Rounded, bool]] = [(last, False)]
    while stack:
        point, expanded = stack.pop()
        if (id(point.form), point.dtype) in done:
            continue
        if expanded:
            done.add((id(point.form), point.dtype))
            order.append(point)
        else:
            stack.append((point, True))
            stack += [(leaf, False) for _, leaf in point.form.terms if isinstance(leaf, Rounded)]
    return order


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
        for node in order:
            self._states[id(node)] = self._up(node)

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
        try:
            shares = [evaluate(share, self.case.profiles) for share, _ in node.terms]
        except ZeroDivisionError:
            raise RecipeError("a number of the recipe is divided by zero") from None
        states = [self._states[id(child)] for _, child in node.terms]
        degrees = [share * s.degree for share, s in zip(shares, states, strict=True)]
        total, lead, running = ZERO, 0, states[0].delta
        for i, s in enumerate(states):
            if i and running and not s.delta:
                lead = i
            total += degrees[i]
            running = s.delta if not i else total == 0
        delta = states[0].delta if len(states) == 1 else total == 0
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

    def _part(self, node: Replace) -> Node:
        for component, donor in node.parts:
            if component in self.case.components:
                return donor
        return node.of

    def form(self, root: Node) -> Form:
        """The normal form of `root` for this case; empty when nothing is left (a difference of equals)."""
        finished: dict[int, Form] = {}  # by the node a form was taken of: the root, and what Round nodes hold
        stack = [root]
        while stack:
            node = stack[-1]
            shares, rounds = self._down(node)
            waiting = [r for r in rounds if id(r.of) not in finished]
            if waiting:
                stack += [r.of for r in waiting]
                continue
            sources = sorted((source, share) for source, share in shares.items() if share)
            terms: list[tuple[Fraction, int | Rounded]] = [(share, source) for source, share in sources]
            terms += [(share, Rounded(finished[id(r.of)], r.dtype)) for r, share in rounds.items() if share]
            finished[id(node)] = Form(tuple(terms))
            stack.pop()
        return finished[id(root)]

    def _down(self, root: Node) -> tuple[dict[int, Fraction], dict[Round, Fraction]]:
        """The shares of sources and rounding points in `root`; does not look below a rounding point."""
        arriving: dict[int, list[Fraction]] = {id(root): [ONE]}
        shares: dict[int, list[Fraction]] = {}
        rounds: dict[Round, Fraction] = {}
        for node in reversed(self.order[: self._position[id(root)] + 1]):
            given = arriving.pop(id(node), None)
            if given is None:
                continue
            share = exact_sum(given)
            if isinstance(node, Load):
                if node.source not in self.case.absent:
                    shares.setdefault(node.source, []).append(share)
            elif isinstance(node, Round) and node is not root:
                rounds[node] = share
            else:
                for factor, child in self._states[id(node)].used:
                    arriving.setdefault(id(child), []).append(factor * share)
        return {source: exact_sum(parts) for source, parts in shares.items()}, rounds


def check_degree(name: str, place: Place, degree: Fraction) -> None:
    """Refuse what is neither a model nor a difference, and say how to make it one."""
    if degree in (0, 1):
        return
    shown = decimal(degree)
    if degree == 2:
        raise RecipeError(
            f"{name} adds two whole models: the shares add up to 2, a model needs 1, a difference 0",
            place=place,
            hint="add a difference, as in a + (b - base), or mix, as in a*0.5 + b*0.5; "
            "on purpose: linear([a, b], normalize=false)",
        )
    raise RecipeError(
        f"the shares of {name} add up to {shown}; a model needs 1, a difference 0",
        place=place,
        hint="make them add up, as in a*0.5 + b*0.5, or let linear([a @ 0.7, b @ 0.4], normalize=true) divide by their "
        "sum; on purpose: linear(…, normalize=false) or scale(x, k)",
    )
