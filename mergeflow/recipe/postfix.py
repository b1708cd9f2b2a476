"""What an expression becomes: postfix instructions, each with the place of the token it came from."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, TypeAlias

Op = Literal["number", "name", "sum", "mul", "div", "neg", "list", "weight", "call"]


@dataclass(frozen=True, slots=True)
class Call:
    """A call's shape: its operands are `positional` values, then one per keyword."""

    name: str
    positional: int
    keywords: tuple[str, ...] = ()


Operand: TypeAlias = Fraction | str | tuple[int, ...] | Call | int | None


@dataclass(frozen=True, slots=True)
class Instr:
    """One postfix instruction; how many operands it pops follows from op and value.

    number: a Fraction. name: its text. sum: a tuple of +1 and -1, one per operand. mul, div: two operands. neg: one.
    list: how many items. weight: value and weight. call: a Call.
    """

    op: Op
    value: Operand
    offset: int
