"""The graph that a recipe's expressions become. Nodes are immutable and shared; everything walks with a stack.

A value in the language is a `Scaled`: an exact number times a node. Scaling therefore makes no node, and
`a + (b - c) * m` is Sum[(1, a), (m, Sum[(1, b), (-1, c)])].
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import final

from mergeflow.errors import Place
from mergeflow.ir.kernels import Choice, Kernel
from mergeflow.ir.numbers import MINUS_ONE, ONE, Number
from mergeflow.tensors import DType


class Node:
    """Base of all nodes; identity is equality."""

    __slots__ = ()

    def inputs(self) -> tuple[Node, ...]:
        raise NotImplementedError  # abstract: each node below answers

    def numbers(self) -> tuple[Number, ...]:
        """The numbers that its value depends on, besides those of its inputs."""
        return ()


@final
class Load(Node):
    """A source, by its number."""

    __slots__ = ("source",)

    def __init__(self, source: int) -> None:
        self.source = source

    def inputs(self) -> tuple[Node, ...]:
        return ()


@final
class Sum(Node):
    """A linear combination, in the order written: the order decides the primary."""

    __slots__ = ("_inputs", "terms")

    def __init__(self, terms: Iterable[tuple[Number, Node]]) -> None:
        self.terms = tuple(terms)
        self._inputs = tuple([node for _, node in self.terms])  # asked for at every walk

    def inputs(self) -> tuple[Node, ...]:
        return self._inputs

    def numbers(self) -> tuple[Number, ...]:
        return tuple([share for share, _ in self.terms])


@final
class Named(Node):
    """A step, or an output's expression: the place where the degree must be 0 or 1. Otherwise transparent."""

    __slots__ = ("name", "of", "place")

    def __init__(self, name: str, of: Node, place: Place) -> None:
        self.name, self.of, self.place = name, of, place

    def inputs(self) -> tuple[Node, ...]:
        return (self.of,)


@final
class Round(Node):
    """Rounded to a dtype, on request: what follows sees the rounded tensor."""

    __slots__ = ("dtype", "of")

    def __init__(self, of: Node, dtype: DType) -> None:
        self.of, self.dtype = of, dtype

    def inputs(self) -> tuple[Node, ...]:
        return (self.of,)


@final
class Replace(Node):
    """`of`, but the tensors of each named component are exactly the donor's."""

    __slots__ = ("of", "parts")

    def __init__(self, of: Node, parts: Iterable[tuple[str, Node]]) -> None:
        self.of, self.parts = of, tuple(parts)

    def inputs(self) -> tuple[Node, ...]:
        return (self.of, *(node for _, node in self.parts))


@final
class Like(Node):
    """`of`, with another model as its primary."""

    __slots__ = ("of", "primary")

    def __init__(self, of: Node, primary: Node) -> None:
        self.of, self.primary = of, primary

    def inputs(self) -> tuple[Node, ...]:
        return (self.of, self.primary)


@final
class Pick(Node):
    """One of several models, tensor by tensor: the one with this number, from 1 on; where there is no number, the first
    that has the tensor."""

    __slots__ = ("number", "of")

    def __init__(self, of: Iterable[Node], number: Number | None = None) -> None:
        self.of, self.number = tuple(of), number

    def inputs(self) -> tuple[Node, ...]:
        return self.of

    def numbers(self) -> tuple[Number, ...]:
        return () if self.number is None else (self.number,)

    @property
    def fills(self) -> bool:
        """Whether it has tensors that its first model lacks."""
        return self.number is None


@final
class Free(Node):
    """A sum whose shares need not add up, on purpose: it counts as a model whatever they are."""

    __slots__ = ("of",)

    def __init__(self, of: Node) -> None:
        self.of = of

    def inputs(self) -> tuple[Node, ...]:
        return (self.of,)


@final
class Apply(Node):
    """A kernel applied to operands. `arguments` are its numbers by name, `weights` one number for each operand where
    the kernel weighs them, `options` its other arguments."""

    __slots__ = ("arguments", "kernel", "operands", "options", "weights")

    def __init__(
        self,
        kernel: Kernel,
        operands: Iterable[Node],
        arguments: Iterable[tuple[str, Number]] = (),
        weights: Iterable[Number] = (),
        options: Iterable[tuple[str, Choice]] = (),
    ) -> None:
        self.kernel, self.operands, self.arguments = kernel, tuple(operands), tuple(arguments)
        self.weights, self.options = tuple(weights), tuple(options)

    def inputs(self) -> tuple[Node, ...]:
        return self.operands

    def numbers(self) -> tuple[Number, ...]:
        return (*(number for _, number in self.arguments), *self.weights)


@dataclass(frozen=True, slots=True)
class Scaled:
    """A value of the language: `factor` times `node`. Python operators build the graph, so that a linear method is
    its formula."""

    factor: Number
    node: Node

    def __add__(self, other: Scaled) -> Scaled:
        return combine([self, other])

    def __sub__(self, other: Scaled) -> Scaled:
        return combine([self, -other])

    def __neg__(self) -> Scaled:
        return Scaled(MINUS_ONE if self.factor is ONE else -self.factor, self.node)

    def __mul__(self, number: Number) -> Scaled:
        return Scaled(number if self.factor is ONE else self.factor * number, self.node)


def combine(values: Sequence[Scaled]) -> Scaled:
    """One sum of all, at one level: a tensor that one of the models lacks is resolved for the sum as a whole."""
    return Scaled(ONE, Sum([(v.factor, v.node) for v in values]))


def as_node(value: Scaled) -> Node:
    if value.factor is ONE or value.factor == ONE:
        return value.node
    return Sum([(value.factor, value.node)])


def topological(roots: Iterable[Node]) -> list[Node]:
    """All nodes under `roots`, inputs before users, each once."""
    order: list[Node] = []
    done: set[int] = set()
    stack = list(roots)
    while stack:
        node = stack[-1]
        if id(node) in done:
            stack.pop()
        elif waiting := [child for child in node.inputs() if id(child) not in done]:
            stack += waiting
        else:
            done.add(id(stack.pop()))
            order.append(node)
    return order
