"""Means that are no sums: medians and the geometric mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from mergeflow.ir.kernels import Range
from mergeflow.methods.gram import Table, add_up, dots, finite, quadratic
from mergeflow.methods.kernels import Given, Passes, kernel
from mergeflow.methods.registry import Model, Models, method
from mergeflow.methods.shares import shares_of, unweighted

if TYPE_CHECKING:
    import torch

_WEIGHTS = {"weight": Range(Fraction(0))}
_CLOSE = 2.0**-40  # shares that change by less, and slopes that differ by less, are equal
_STEPS = 1000


def _middle(given: Given, found: None, tiles: Sequence[torch.Tensor], begin: int, out: torch.Tensor) -> None:
    """Sorted value by value, by exchanging neighbours n times over; a NaN is handed on in each exchange."""
    import torch

    values, n = [x.clone() for x in tiles], len(tiles)
    for turn in range(n):
        for i in range(turn % 2, n - 1, 2):
            lower = torch.minimum(values[i], values[i + 1])
            torch.maximum(values[i], values[i + 1], out=values[i + 1])
            values[i] = lower
    if n % 2:
        torch.add(values[n // 2], 0.0, out=out)  # of zeros of both signs, any may come out: + 0 makes it one
    else:
        torch.add(values[n // 2 - 1], values[n // 2], out=out).mul_(0.5).add_(0.0)


MEDIAN = kernel(
    "median",
    cost=1.5,
    version=1,
    operands=("model",),
    many=True,
    result="model",
    apply=_middle,
    symmetric=True,
    same=True,
)


@method(MEDIAN)
def median(models: Models) -> Model:
    """the middle one of x1, x2, …, value by value; of an even number the mean of the two in the middle

    Coordinate-wise median: Yin et al. 2018, "Byzantine-robust distributed learning", arXiv:1803.01498. One model whose
    value is far off does not move it. Of two models it is their average. NaN in any model is NaN.

    No weights. mergekit and sd-mecha have none of this kind; `geometric_median` is the one of whole tensors.

    Example: `median([a, b, c])`
    """
    unweighted(models, "median", "it looks at the order of values alone")
    return MEDIAN(*(item.model for item in models))


# -- the geometric median ----------------------------------------------------------------------------------------------


def _nearest(given: Given, passes: Passes) -> list[float]:
    weights = [float(w) for w in given.weights]
    if len(weights) == 1:
        return weights
    table = dots(passes, len(weights), from_first=True)
    return weiszfeld(table, weights) if finite(table) else weights


def weiszfeld(table: Table, weights: Sequence[float]) -> list[float]:
    """The shares of the points in their geometric median, from the dot products of their differences from the first."""
    n = len(weights)
    whole = [[0.0] * n, *([0.0, *row] for row in table)]  # of all, the first being the origin
    for k in range(n):
        if _is_median(whole, weights, k):
            return [float(i == k) for i in range(n)]
    shares = list(weights)
    for _ in range(_STEPS):
        moved = _step(whole, weights, shares)
        still = max(abs(a - b) for a, b in zip(moved, shares, strict=True)) <= _CLOSE
        shares = moved
        if still:
            break
    return shares


def _distances(table: Table, shares: Sequence[float]) -> list[float]:
    """From the point with these shares to each of the points."""
    n = len(shares)
    return [math.sqrt(quadratic(table, [shares[j] - (i == j) for j in range(n)])) for i in range(n)]


def _is_median(table: Table, weights: Sequence[float], k: int) -> bool:
    """Whether point k is the median: all others pull at it with less than its own weight."""
    n = len(weights)
    distances = _distances(table, [float(i == k) for i in range(n)])
    pulls = [w / d if d else 0.0 for w, d in zip(weights, distances, strict=True)]
    here = sum(w for w, d in zip(weights, distances, strict=True) if not d)
    total = sum(pulls)
    return math.sqrt(quadratic(table, [p - total * (i == k) for i, p in enumerate(pulls)])) < here * (1 - _CLOSE)


def _step(table: Table, weights: Sequence[float], shares: Sequence[float]) -> list[float]:
    """Weiszfeld's step. A point that is met on the way is no median, so it may be left out of one step."""
    distances = _distances(table, shares)
    pulls = [w / d if d else 0.0 for w, d in zip(weights, distances, strict=True)]
    total = sum(pulls)
    return [p / total for p in pulls]


GEOMETRIC_MEDIAN = kernel(
    "geometric_median",
    cost=4.0,
    version=1,
    operands=("model",),
    many=True,
    result="model",
    measure=_nearest,
    apply=add_up,
    ranges=_WEIGHTS,
    symmetric=True,
    same=True,
)


@method(GEOMETRIC_MEDIAN)
def geometric_median(models: Models) -> Model:
    """the y with the least Σ wᵢ‖xᵢ − y‖, tensor by tensor

    Weiszfeld 1937; for models Pillutla et al. 2022, "Robust aggregation", arXiv:1912.13445. Weights are written `x @ w`
    and divided by their sum. With dᵢ = ‖xᵢ − y‖: a model at which the pulls of the others, wᵢ(xᵢ − y)/dᵢ, add up to
    less than its own weight is the result (so is one with more weight than all others together); else
    y ← Σ (wᵢ/dᵢ)xᵢ / Σ wᵢ/dᵢ, from Σ wᵢxᵢ on, until no share changes by more than 2⁻⁴⁰, 1000 times at most. Of two
    models of equal weight it is the average, where this begins and ends.

    sd-mecha's `geometric_median` has no weights, and stops after 100 steps.

    Example: `geometric_median([a, b, c])`
    """
    return GEOMETRIC_MEDIAN(*(item.model for item in models), weights=shares_of(models))


# -- the geometric mean ------------------------------------------------------------------------------------------------


def _product(given: Given, found: None, tiles: Sequence[torch.Tensor], begin: int, out: torch.Tensor) -> None:
    """In float64, as 2 to the Σ wᵢ·log2|xᵢ|, the whole numbers in that apart from the rest, so that none of its digits
    are lost; the logarithm and the power are series here, because those of libraries differ between processors."""
    import numpy as np
    import torch

    from mergeflow.methods.angles import cosine_of

    used = [(w, x.numpy().astype(np.float64)) for w, x in zip(given.weights, tiles, strict=True) if w]
    n = out.numel()
    whole, rest = np.zeros(n, np.int64), np.zeros(n)
    negative, signs = np.zeros(n, np.int64), {0: Fraction(0)}
    special = np.ones(n)  # 0, ∞ or NaN where an operand is
    with np.errstate(all="ignore"):
        for w, x in used:
            mantissa, exponent = np.frexp(np.abs(x))
            plain = np.isfinite(x) & (x != 0)
            special *= np.where(plain, 1.0, np.abs(x))
            mantissa, exponent = np.where(plain, mantissa, 0.5), np.where(plain, exponent, 0)
            quotients, remainders = _exponents(w)
            whole += quotients[exponent + _BIAS]
            rest += remainders[exponent + _BIAS]
            rest += _log2(mantissa) * float(w)
            negative, signs = _with_sign(negative, signs, x < 0, w)
        near = np.rint(rest)
        value = np.ldexp(_power_of_2(rest - near), (whole + near.astype(np.int64)).astype(np.intc))
        turned = np.array([cosine_of(signs[i]) for i in range(len(signs))])[negative]
        value = np.where(special == 1, value, special) * turned
    out.copy_(torch.from_numpy(value + 0.0))


def _with_sign(seen: Any, signs: dict[int, Fraction], here: Any, w: Fraction) -> tuple[Any, dict[int, Fraction]]:
    """The weight of all negative operands so far, value by value: its number in `signs`, and those there can be."""
    import numpy as np

    if not here.any():
        return seen, signs
    numbers: dict[Fraction, int] = {}
    plain = [numbers.setdefault(total, len(numbers)) for total in signs.values()]
    more = [numbers.setdefault(total + w, len(numbers)) for total in signs.values()]
    found = np.where(here, np.array(more)[seen], np.array(plain)[seen])
    kept, found = np.unique(found, return_inverse=True)
    totals = list(numbers)
    return found, {i: totals[k] for i, k in enumerate(kept)}


_BIAS = 1100  # exponents of float64 are from −1073 to 1024


@lru_cache(maxsize=64)
def _exponents(w: Fraction) -> tuple[Any, Any]:
    """w·e = q + r with q a whole number and 0 ≤ r < 1, for each exponent e."""
    import numpy as np

    products = [w * e for e in range(-_BIAS, _BIAS)]
    quotients = [math.floor(p) for p in products]
    rests = [float(p - q) for p, q in zip(products, quotients, strict=True)]
    return np.array(quotients, np.int64), np.array(rests)


_LN2 = 0.6931471805599453
_LOG2_E = 1.4426950408889634


def _log2(m: Any) -> Any:
    """Of numbers from 1/2 to 1: −1/2 or 0 and 2 atanh((m − 1)/(m + 1)) / ln 2 of what is between √½ and √2 then."""
    import numpy as np

    low = m < 0.7071067811865476
    m = np.where(low, m * 2, m)
    s = (m - 1) / (m + 1)
    square = s * s
    total = np.full_like(s, 1 / 25)
    for k in range(23, 0, -2):
        total *= square
        total += 1 / k
    total *= s
    total *= 2 * _LOG2_E
    return total - low


def _power_of_2(x: Any) -> Any:
    """Of numbers from −1/2 to 1/2: Σ (x ln 2)ⁿ / n!"""
    import numpy as np

    y = x * _LN2
    total = np.ones_like(y)
    for n in range(16, 0, -1):
        total *= y
        total /= n
        total += 1
    return total


GEOMETRIC_MEAN = kernel(
    "geometric_mean",
    cost=80.0,
    version=1,
    operands=("model",),
    many=True,
    result="model",
    apply=_product,
    ranges=_WEIGHTS,
    symmetric=True,
    same=True,
)


@method(GEOMETRIC_MEAN)
def geometric_mean(models: Models) -> Model:
    """|x1|^w1 · |x2|^w2 · … · cos(π·s), with s the weight of the xᵢ that are negative, value by value

    Weights are written `x @ w`, 0 or more, and divided by their sum. All positive, it is the geometric mean (Cauchy
    1821, "Cours d'analyse", note II; of models there is no paper); all negative, its negative; where signs differ, the
    real part of the complex powers, which is 0 for two models of equal weight. A weight of 0 leaves a model out; 0 in
    any other makes 0. Infinity times such a 0 is no number.

    sd-mecha's `geometric_sum` for two models (1 − alpha and alpha), but for the complex arithmetic, which leaves 1e-8
    of a value where this is 0. As 2 to the weighed sum of base-2 logarithms, to about 1e-15.

    Example: `geometric_mean([a @ 0.7, b @ 0.3])`
    """
    return GEOMETRIC_MEAN(*(item.model for item in models), weights=shares_of(models))
