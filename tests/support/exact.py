"""Exact arithmetic on every dtype, as an oracle: nothing here comes from mergeflow, torch or ml_dtypes.

Numbers are decoded into fractions, expressions are evaluated exactly and rounded once, to nearest, ties to even.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from math import lcm

import numpy as np


@dataclass(frozen=True)
class Format:
    """A binary floating point format. `finite` formats ("fn") have no infinities and one NaN per sign."""

    code: str
    label: str
    size: int
    exponent: int
    mantissa: int
    finite: bool = False

    @property
    def bias(self) -> int:
        return (1 << (self.exponent - 1)) - 1

    @property
    def unsigned(self) -> type[np.unsignedinteger]:
        return {8: np.uint64, 4: np.uint32, 2: np.uint16, 1: np.uint8}[self.size]

    @property
    def lowest(self) -> int:
        """The exponent of the smallest subnormal: everything is a multiple of 2**lowest."""
        return 1 - self.bias - self.mantissa

    @property
    def largest(self) -> Fraction:
        if self.finite:
            return (2 - Fraction(2, 1 << self.mantissa)) * power(self.bias + 1)
        return (2 - Fraction(1, 1 << self.mantissa)) * power(self.bias)


F64 = Format("F64", "float64", 8, 11, 52)
F32 = Format("F32", "float32", 4, 8, 23)
F16 = Format("F16", "float16", 2, 5, 10)
BF16 = Format("BF16", "bfloat16", 2, 8, 7)
E4M3 = Format("F8_E4M3", "float8_e4m3fn", 1, 4, 3, finite=True)
E5M2 = Format("F8_E5M2", "float8_e5m2", 1, 5, 2)
FORMATS = {f.code: f for f in (F64, F32, F16, BF16, E4M3, E5M2)}


def power(n: int) -> Fraction:
    return Fraction(1 << n) if n >= 0 else Fraction(1, 1 << -n)


def decode(f: Format, bits: int) -> Fraction | None:
    """The value of a bit pattern; None when it is infinite or no number."""
    sign = -1 if bits >> (8 * f.size - 1) else 1
    field = (bits >> f.mantissa) & ((1 << f.exponent) - 1)
    fraction = bits & ((1 << f.mantissa) - 1)
    top = field == (1 << f.exponent) - 1
    if top and (not f.finite or fraction == (1 << f.mantissa) - 1):
        return None
    if field == 0:
        return sign * fraction * power(f.lowest)
    return sign * (fraction | 1 << f.mantissa) * power(field - 1 + f.lowest)


def magnitude(x: Fraction) -> int:
    """The e with 2**e <= |x| < 2**(e + 1)."""
    n, d = abs(x.numerator), x.denominator
    e = n.bit_length() - d.bit_length()
    return e if abs(x) >= power(e) else e - 1


def ulp(f: Format, x: Fraction) -> Fraction:
    """The distance of neighbouring numbers around x, as if exponents had no upper end."""
    return power(f.lowest if x == 0 else max(magnitude(x) - f.mantissa, f.lowest))


def unbounded(f: Format, x: Fraction) -> Fraction:
    step = ulp(f, x)
    n, rest = divmod(abs(x), step)
    n += rest * 2 > step or (rest * 2 == step and n % 2)
    return (n if x >= 0 else -n) * step


def rounded(f: Format, x: Fraction) -> Fraction | None:
    """x rounded to the format; None when it is too large for it."""
    value = unbounded(f, x)
    return None if abs(value) > f.largest else value


def representable(f: Format, x: Fraction) -> bool:
    return rounded(f, x) == x


def encode(f: Format, x: Fraction) -> int:
    """The bits of x rounded to the format; overflow is infinity, or NaN where there is none."""
    value = rounded(f, x)
    sign = (1 << (8 * f.size - 1)) if x < 0 else 0
    if value is None:
        top = ((1 << f.exponent) - 1) << f.mantissa
        return sign | top | ((1 << f.mantissa) - 1 if f.finite else 0)
    value = abs(value)
    if value < power(1 - f.bias):
        return sign | int(value / power(f.lowest))
    e = magnitude(value)
    fraction = int(value / power(e - f.mantissa)) - (1 << f.mantissa)
    return sign | (e + f.bias) << f.mantissa | fraction


def values(f: Format, data: bytes) -> list[Fraction | None]:
    return [decode(f, int(b)) for b in np.frombuffer(data, f.unsigned)]


@cache
def _table(code: str) -> np.ndarray:
    f = FORMATS[code]
    return np.array([np.nan if (v := decode(f, b)) is None else float(v) for b in range(1 << (8 * f.size))])


def doubles(f: Format, data: bytes) -> np.ndarray:
    """All values as float64, exactly (NaN for what is not finite)."""
    if f.size <= 2:
        return _table(f.code)[np.frombuffer(data, f.unsigned)]
    with np.errstate(invalid="ignore"):  # signalling NaNs
        return np.frombuffer(data, np.float32 if f is F32 else np.float64).astype(np.float64)


def halves_of_sum(terms: list[tuple[int, np.ndarray]], divisor: int) -> np.ndarray:
    """round_to_float16(Σ nᵢ·xᵢ / d) for float16 xᵢ, as float64 values, in integers alone, for millions of elements.

    Exact because: a float16 is k·2**-24 with whole k. Where Σ|nᵢ|·max|k| < 2**52 the sum S of nᵢ·kᵢ is an int64 that
    float64 holds too, so that frexp gives the bit length of S // d, which is that of S / d. Then the float16 nearest to
    S / d is the nearest multiple of step = 2**max(0, length - 11), found by divmod.
    """
    largest = max(float(np.abs(x).max(initial=0)) for _, x in terms) * 2**24
    assert sum(abs(n) for n, _ in terms) * largest < 1 << 52
    total = np.zeros(terms[0][1].shape, np.int64)
    for n, x in terms:
        k = x * 2.0**24
        whole = k.astype(np.int64)
        assert (whole == k).all()
        total += n * whole
    size = np.abs(total)
    _, length = np.frexp((size // divisor).astype(np.float64))
    step = np.int64(1) << np.maximum(0, length - 11).astype(np.int64)
    n, rest = np.divmod(size, step * divisor)
    twice = 2 * rest
    n += (twice > step * divisor) | ((twice == step * divisor) & (n % 2 == 1))
    result = (n * step).astype(np.float64) * 2.0**-24
    assert (result <= 65504).all(), "this oracle does not do overflow"
    return np.where(total < 0, -result, result)


@dataclass(frozen=True)
class Expected:
    """What one element may be: `value` (None: too large), and how far from it."""

    value: Fraction | None
    exact: Fraction
    slack: Fraction
    certain: bool


def linear(terms: list[tuple[Fraction, Fraction]], compute: Format, to: Format) -> Expected:
    """What Σ share·x may be when sums are taken as integers over one denominator in `compute`, then rounded to `to`.

    The bound: integers and denominator fit the compute dtype, each x does, and all products are multiples of one power
    of two g with Σ|product| <= 2**bits·g. Then every product and every partial sum, in any order, is a number of the
    compute dtype, and the only roundings are those of the division and of the result.
    """
    exact = sum((share * x for share, x in terms), Fraction(0))
    divisor = lcm(*(share.denominator for share, _ in terms))
    products = [share * divisor * x for share, x in terms]
    limit = 1 << (compute.mantissa + 1)
    fits = divisor <= limit and all(abs(share * divisor) <= limit for share, _ in terms)
    fits = fits and all(representable(compute, x) for _, x in terms)
    whole = sum(abs(p) for p in products)
    if fits and whole:
        lowest = min(_last_bit(p) for p in products if p)
        fits = whole <= limit * power(lowest) and lowest >= compute.lowest and whole <= compute.largest
    if fits:
        quotient = rounded(compute, exact)  # a division that is not exact rounds, and the result rounds again
        assert quotient is not None
        if (compute.mantissa, to.mantissa) == (F64.mantissa, F64.mantissa):
            return Expected(quotient, exact, Fraction(0), True)
        once, twice = rounded(to, exact), rounded(to, quotient)
        if compute is F64 and to.size < 4:
            return Expected(once, exact, Fraction(0), True)
        if divisor.bit_length() < compute.mantissa - to.mantissa:
            assert once == twice  # no quotient by a small number lies so close to the middle of two numbers
        return Expected(twice, exact, Fraction(0), True)
    largest = max([abs(exact), *(abs(share * x) for share, x in terms)])
    roundings = 1 if to.mantissa < compute.mantissa else len(terms) + 1
    coarse = to if to.mantissa < compute.mantissa else compute
    return Expected(rounded(to, exact), exact, ulp(coarse, largest) * roundings, False)


def accepts(e: Expected, to: Format, found: Fraction | None) -> bool:
    if e.certain:
        return found == e.value
    if found is None or e.value is None:
        return abs(e.exact) + e.slack > to.largest
    return abs(found - e.value) <= e.slack


def _last_bit(x: Fraction) -> int:
    """The exponent of the lowest set bit of a dyadic number."""
    n = abs(x.numerator)
    return (n & -n).bit_length() - 1 - (x.denominator.bit_length() - 1)
