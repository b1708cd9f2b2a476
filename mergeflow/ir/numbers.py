"""Exact numbers of the recipe language: rationals, and values that differ from tensor to tensor (profiles).

A number is a Fraction, or a Varying: a small expression over profiles that becomes a Fraction once it is known which
tensor is meant. Constants are folded as the expression is made, so most recipes hold no Varying at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from math import gcd
from typing import final


@final
class Varying:
    """`op` is 'profile' (args: its name), or one of + * / over two numbers. Python's operators build it up, mixed with
    Fractions and ints as the formulas of methods need."""

    __slots__ = ("args", "op")

    def __init__(self, op: str, *args: Fraction | Varying | str) -> None:
        self.op, self.args = op, args

    def __add__(self, other: Number | int) -> Varying:
        return Varying("+", self, _number(other))

    def __sub__(self, other: Number | int) -> Varying:
        return Varying("+", self, Varying("*", Fraction(-1), _number(other)))

    def __rsub__(self, other: Number | int) -> Varying:
        return Varying("+", _number(other), -self)

    def __mul__(self, other: Number | int) -> Varying:
        return Varying("*", self, _number(other))

    def __truediv__(self, other: Number | int) -> Varying:
        if other == 0:
            raise ZeroDivisionError
        return Varying("/", self, _number(other))

    def __rtruediv__(self, other: Number | int) -> Varying:
        return Varying("/", _number(other), self)

    def __neg__(self) -> Varying:
        return Varying("*", Fraction(-1), self)

    __radd__, __rmul__ = __add__, __mul__


Number = Fraction | Varying
ONE, ZERO = Fraction(1), Fraction(0)
MINUS_ONE = Fraction(-1)


def profile(name: str) -> Varying:
    return Varying("profile", name)


def _number(value: Number | int) -> Number:
    return Fraction(value) if isinstance(value, int) else value


def profiles_in(number: Number) -> set[str]:
    """Names of the profiles that a number depends on."""
    found: set[str] = set()
    seen: set[int] = set()
    stack: list[Number | str] = [number]
    while stack:
        n = stack.pop()
        if isinstance(n, Varying) and id(n) not in seen:
            seen.add(id(n))
            if n.op == "profile":
                found.add(str(n.args[0]))
            else:
                stack += n.args
    return found


def evaluate(number: Number, values: Mapping[str, Fraction]) -> Fraction:
    """The value for one tensor, given each profile's value there. Iterative: users nest as deep as they like."""
    if isinstance(number, Fraction):
        return number
    done: dict[int, Fraction] = {}
    stack: list[Varying] = [number]
    while stack:
        n = stack[-1]
        if n.op == "profile":
            done[id(n)] = values[str(n.args[0])]
            stack.pop()
            continue
        waiting = [a for a in n.args if isinstance(a, Varying) and id(a) not in done]
        if waiting:
            stack += waiting
            continue
        x, y = (done[id(a)] if isinstance(a, Varying) else a for a in n.args)
        assert isinstance(x, Fraction)
        assert isinstance(y, Fraction)
        done[id(n)] = x + y if n.op == "+" else x * y if n.op == "*" else x / y
        stack.pop()
    return done[id(number)]


def times(x: Fraction, y: Fraction) -> Fraction:
    """x·y; most factors of a recipe are one, and Python's fractions take their time."""
    return y if x is ONE else x if y is ONE else x * y


def exact_sum(numbers: Iterable[Fraction]) -> Fraction:
    """A sum over one common denominator: thousands of terms with denominators of thousands of digits stay cheap,
    where adding fractions one by one takes a gcd of long numbers at every step."""
    parts = list(numbers)
    if len(parts) == 1:
        return parts[0]
    parts.sort(key=lambda f: -f.denominator.bit_length())
    common = 1
    for f in parts:
        if common % f.denominator:
            common *= f.denominator // gcd(common, f.denominator)
    return Fraction(sum(f.numerator * (common // f.denominator) for f in parts), common)


def decimal(value: Fraction) -> str:
    """As short as exactness allows: 3/10 -> '0.3', 1/3 -> '1/3', -2 -> '-2'."""
    n, d = value.numerator, value.denominator
    if d == 1:
        return str(n)
    twos = (d & -d).bit_length() - 1
    fives, rest = 0, d >> twos
    while rest % 5 == 0:
        rest //= 5
        fives += 1
    digits = max(twos, fives)
    if rest != 1 or digits > 17:
        return f"{n}/{d}" if len(str(d)) <= 12 else f"{n / d:.6g}"
    text = str(abs(n) * 10**digits // d).rjust(digits + 1, "0")
    return ("-" if n < 0 else "") + f"{text[:-digits]}.{text[-digits:]}"
