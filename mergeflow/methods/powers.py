"""Powers of magnitudes that have the same bits on every processor.

The powers of the C library, torch and numpy differ in the last bits from one machine to the next, and with the width of
vectors. Here they are additions, multiplications and divisions of float64, whose results IEEE 754 defines, one at a
time: log₂ from the series of the inverse hyperbolic tangent, 2^x from that of the exponential function. The error is
below 2⁻⁴⁰ of the result, far under what a float32 shows, unless that is a subnormal.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[Any]  # float64

_ROOT_HALF = 0.7071067811865476
_LN2 = 0.6931471805599453
_TWO_OVER_LN2 = 2.8853900817779268
_LOG_TERMS = tuple(1.0 / (2 * k + 1) for k in range(11))  # |s| is at most 0.172: the next term is below 2⁻⁶⁰
_EXP_TERMS = 16  # |x| is at most 0.347: the next term is below 2⁻⁶⁸


def power(x: Doubles, exponent: float) -> Doubles:
    """x ** exponent, for float64 values from 0 to infinity and an exponent from 0 to 1; NaN stays. 0 ** 0 is 1."""
    if exponent in (0.0, 1.0):
        return x.copy() if exponent else np.where(np.isnan(x), x, 1.0)
    plain = np.isfinite(x) & (x > 0)
    whole = np.multiply(log2(np.where(plain, x, 1.0)), exponent)
    return np.where(plain, exp2(whole), x)


def log2(x: Doubles) -> Doubles:
    """Of numbers above 0."""
    part, order = np.frexp(x)  # from ½ to 1
    low = part < _ROOT_HALF
    part, order = np.where(low, part * 2.0, part), order - low
    s = (part - 1.0) / (part + 1.0)
    square, total = s * s, np.full_like(s, _LOG_TERMS[-1])
    for term in reversed(_LOG_TERMS[:-1]):
        total *= square
        total += term
    return total * s * _TWO_OVER_LN2 + order


def exp2(x: Doubles) -> Doubles:
    """2 ** x, for finite x below a million either way."""
    order = np.rint(x)
    rest, total = (x - order) * _LN2, np.ones_like(x)
    for k in range(_EXP_TERMS, 0, -1):  # 1 + x/1·(1 + x/2·(1 + …))
        total *= rest
        total /= float(k)
        total += 1.0
    return np.ldexp(total, order.astype(np.int32))
