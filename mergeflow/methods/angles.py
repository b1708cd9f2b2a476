"""Sines and angles to 50 digits. The C library's differ in the last bit between platforms; decimals do not."""

from __future__ import annotations

from decimal import Context, Decimal, getcontext, localcontext
from fractions import Fraction
from functools import cache

_DIGITS = Context(prec=50 + 10)  # ten to lose on the way


def slerp_shares(cosine: Decimal, t: Fraction) -> tuple[Decimal, Decimal]:
    """sin((1 − t)Ω) / sin Ω and sin(tΩ) / sin Ω for the Ω with this cosine, which is between −1 and 1, both left
    out."""
    with localcontext(_DIGITS):
        angle = 2 * _arctangent(((1 - cosine) / (1 + cosine)).sqrt())
        share = Decimal(t.numerator) / Decimal(t.denominator)
        whole = _sine(angle)
        return _sine((1 - share) * angle) / whole, _sine(share * angle) / whole


def quotient(top: float, under: float, root: float) -> Decimal:
    """top / sqrt(under · root), the floats being taken exactly."""
    with localcontext(_DIGITS):
        return Decimal(top) / (Decimal(under) * Decimal(root)).sqrt()


def mixed_length(first: float, second: float, t: Fraction) -> tuple[Decimal, Decimal]:
    """((1 − t)·A + t·B) / A and the same / B, for lengths given by their squares."""
    with localcontext(_DIGITS):
        a, b = Decimal(first).sqrt(), Decimal(second).sqrt()
        share = Decimal(t.numerator) / Decimal(t.denominator)
        length = (1 - share) * a + share * b
        return length / a, length / b


def arc(cosine: Decimal) -> Decimal:
    """The angle that has this cosine, which is above −1, to the digits of the context."""
    return 2 * _arctangent(((1 - cosine) / (1 + cosine)).sqrt())


def sine_and_cosine(x: Decimal) -> tuple[Decimal, Decimal]:
    """To the digits of the context."""
    return _sine(x), _sine(2 * _arctangent(Decimal(1)) - x)


def cosine_of(halves: Fraction) -> float:
    """cos(π·halves), the nearest double; exactly 1, 0 or −1 where it is."""
    if (2 * halves).denominator == 1:
        return (1.0, 0.0, -1.0, 0.0)[int(2 * halves) % 4]
    with localcontext(_DIGITS):
        turn = 4 * _arctangent(Decimal(1)) * halves.numerator / halves.denominator
        return float(sine_and_cosine(turn)[1])


def _sine(x: Decimal) -> Decimal:
    x %= _turn(getcontext().prec)
    term, total, n = x, Decimal(0), 1
    while total + term != total:
        total += term
        n += 2
        term *= -x * x / (n * (n - 1))
    return total


@cache
def _turn(digits: int) -> Decimal:
    """2π to so many digits, as a context of these computes it."""
    with localcontext(Context(prec=digits)):
        return 8 * _arctangent(Decimal(1))


def _arctangent(x: Decimal) -> Decimal:
    """Halved until the series converges fast: arctan x = 2 arctan(x / (1 + √(1 + x²)))."""
    halvings = 0
    while abs(x) > Decimal("0.05"):
        x /= 1 + (1 + x * x).sqrt()
        halvings += 1
    power, total, n = x, Decimal(0), 1
    while total + power / n != total:
        total += power / n
        power *= -x * x
        n += 2
    return total * (1 << halvings)
