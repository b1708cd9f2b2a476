"""What planning has to know of a kernel: a formula that is no sum, computed on the values of one tensor.

The numbers themselves are computed elsewhere; here are its name and version, which enter keys, and what its operands
and result are, from which degrees, primaries and missing tensors follow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

from mergeflow.errors import RecipeError
from mergeflow.ir.numbers import decimal

Access = Literal["elementwise", "two_phase", "tensor"]
Side = Literal["model", "delta"]
Tier = Literal["exact", "stable", "native"]
Choice = str | bool  # the value of an option


@dataclass(frozen=True, slots=True)
class Range:
    """The values a number may have; an end may be left open. None: no limit on that side."""

    low: Fraction | None = None
    high: Fraction | None = None
    above: bool = False  # `low` itself is not allowed
    whole: bool = False

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        if self.low is not None and self.high is not None:
            between = f"above {decimal(self.low)} and at most" if self.above else f"from {decimal(self.low)} to"
            return f"{kind} {between} {decimal(self.high)}"
        if self.low is not None:
            return f"{kind} {'above' if self.above else 'of at least'} {decimal(self.low)}"
        return kind

    def holds(self, value: Fraction) -> bool:
        if self.low is not None and (value < self.low or (self.above and value == self.low)):
            return False
        return (self.high is None or value <= self.high) and not (self.whole and value.denominator != 1)


@dataclass(frozen=True, slots=True)
class Kernel:
    """The declaration of a kernel.

    `operands`: what each operand is; with `many` the last kind may come any number of times. `result`: what comes out.
    `symmetric`: the order of the operands means nothing. `zeros`: operands that are zero everywhere change nothing, and
    with no others the result is zero. `same`: the result of equal operands is that operand. `origin`: of a kernel that
    does not come with mergeflow, the digest of its source. A random kernel's bytes depend on the seed and on the
    tensor's name. `cost`: nanoseconds for an element of an operand, on one core, about: it decides what is stored.
    `paired`: every second operand holds numbers about the one before, and is no model. `only`: names of the tensors
    that the formula is about, in any other it leaves its first operand as it is; none: it is about all.
    """

    name: str
    version: int
    access: Access
    operands: tuple[Side, ...]
    many: bool
    result: Side
    ranges: Mapping[str, Range] = field(default_factory=dict, hash=False)
    symmetric: bool = False
    random: bool = False
    zeros: bool = False
    same: bool = False
    tier: Tier = "exact"
    origin: str = ""
    cost: float = 1.0
    paired: bool = False
    only: tuple[str, ...] = ()

    def side(self, position: int) -> Side:
        """What the operand at a position has to be."""
        return self.operands[min(position, len(self.operands) - 1)]

    def check(self, name: str, value: Fraction) -> None:
        """Refuse a number that the kernel's formula has no meaning for."""
        allowed = self.ranges.get(name)
        if allowed is not None and not allowed.holds(value):
            raise RecipeError(f"{self.name}: {name} is {allowed}, not {decimal(value)}")
