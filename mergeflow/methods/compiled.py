"""What a kernel comes to where kernels are compiled: what is to be found of its whole operands, and what is then done
with each element.

Both are plain data that follow from the numbers a kernel is applied with; the executor has the code for them. A kernel
says so beside its functions over tiles (`kernel(…, compiled=…)`), which must give the same bytes: they are used where
nothing could be compiled. A kernel that says nothing is computed by its functions alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from mergeflow.methods.kernels import Given


@dataclass(frozen=True, slots=True)
class Rank:
    """The k-th largest magnitude (k from 1) of the only operand: its bits, as `methods.selection` finds them."""

    k: int


@dataclass(frozen=True, slots=True)
class Dots:
    """The dot products of all pairs of operands: a table, as `methods.gram` finds it."""

    from_first: bool = False


@dataclass(frozen=True, slots=True)
class Lengths:
    """Σ|x| in float64 of each operand, a list: running sums, as `methods.sums` takes them."""


@dataclass(frozen=True, slots=True)
class Sum:
    """Σ share·operand, in this order: (operand, share). The shares are rounded to the compute dtype."""

    terms: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Trim:
    """The operand where its magnitude is above a number (NaN is), else 0; None: 0 everywhere."""

    above: float | None


@dataclass(frozen=True, slots=True)
class Elect:
    """The sum or the mean of those operands, times their shares, that have the sign of most of them."""

    shares: tuple[float, ...]
    divisor: float  # of the sum
    by_count: bool
    mean: bool


@dataclass(frozen=True, slots=True)
class Drop:
    """The operand where the mask of this name and density keeps it (`methods.masks`), else 0."""

    name: bytes
    density: Fraction


Statistic: TypeAlias = Rank | Dots | Lengths
Operation: TypeAlias = Sum | Trim | Elect | Drop


@dataclass(frozen=True, slots=True)
class Compiled:
    """`operation(given, found)` with what `statistic(given)` asks to be found; None where that is nothing."""

    operation: Callable[[Given, Any], Operation]
    statistic: Callable[[Given], Statistic | None] = lambda given: None
