"""The normal form of a tensor: (n1·X1 + n2·X2 + …) / d with integers, or a copy of one X.

An X is a source's tensor, a rounding point, or a kernel applied to operands that are normal forms themselves: linear
algebra goes on around what is not linear. `ir.analysis` makes forms of a graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from typing import NamedTuple

from mergeflow.ir.kernels import Choice, Kernel
from mergeflow.tensors import DType


@dataclass(frozen=True, slots=True, eq=False)
class Rounded:
    """A form's value in a dtype: a rounding point inside another form, or, where `dtype` is None, an operand of a
    kernel, which is taken in the compute dtype of what it is part of."""

    form: Form
    dtype: DType | None


@dataclass(frozen=True, slots=True, eq=False)
class Applied:
    """A kernel applied to operands, with its numbers exact. `weights` are of the operands, or none."""

    kernel: Kernel
    operands: tuple[Rounded, ...]
    arguments: tuple[tuple[str, Fraction], ...]
    weights: tuple[Fraction, ...]
    options: tuple[tuple[str, Choice], ...]


Leaf = int | Rounded | Applied


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """Σ shares·terms, exact; terms are sources (by index), rounding points or applied kernels. No term has share
    zero."""

    terms: tuple[tuple[Fraction, Leaf], ...]

    def integers(self) -> tuple[tuple[int, ...], int]:
        """The same over one denominator, in lowest terms: (n1, n2, …), d."""
        d = lcm(*(share.denominator for share, _ in self.terms)) if self.terms else 1
        return tuple(int(share * d) for share, _ in self.terms), d


class Point(NamedTuple):
    """Something inside a form that has a value of its own, and the dtype that is rounded to around it: the nearest
    rounding point's, which says what it is computed in."""

    leaf: Rounded | Applied
    context: DType

    @property
    def identity(self) -> tuple[int, DType | None, DType]:
        """Equal for points of one value."""
        if isinstance(self.leaf, Applied):
            return id(self.leaf), None, self.context
        return id(self.leaf.form), self.leaf.dtype, self.context

    def within(self, leaf: Rounded | Applied) -> Point:
        """A leaf of this point's form, or an operand of its kernel."""
        inner = leaf.dtype if isinstance(leaf, Rounded) else None
        return Point(leaf, self.context if inner is None else inner)

    def parts(self) -> list[Point]:
        """What it is made of, apart from sources."""
        if isinstance(self.leaf, Applied):
            return [self.within(operand) for operand in self.leaf.operands]
        return [self.within(leaf) for _, leaf in self.leaf.form.terms if not isinstance(leaf, int)]


def inner_first(root: Form, dtype: DType) -> list[Point]:
    """The points under `root`, inner ones before those that use them, each once; `root` itself, as if rounded to
    `dtype`, is the last."""
    order: list[Point] = []
    done: set[tuple[int, DType | None, DType]] = set()
    stack: list[tuple[Point, bool]] = [(Point(Rounded(root, dtype), dtype), False)]
    while stack:
        point, expanded = stack.pop()
        if point.identity in done:
            continue
        if expanded:
            done.add(point.identity)
            order.append(point)
        else:
            stack.append((point, True))
            stack += [(part, False) for part in point.parts()]
    return order


def sources_in(roots: Iterable[Form]) -> frozenset[int]:
    """The sources whose tensors are in these forms, however deep inside. Those that an expression names and that cancel
    out are not."""
    found: set[int] = set()
    for root in roots:
        for point in inner_first(root, DType.F64):
            if isinstance(point.leaf, Rounded):
                found |= {leaf for _, leaf in point.leaf.form.terms if isinstance(leaf, int)}
    return frozenset(found)


def kernels_in(root: Form) -> Iterator[Applied]:
    """The applied kernels in a form, inner ones first."""
    for point in inner_first(root, DType.F64):
        if isinstance(point.leaf, Applied):
            yield point.leaf
