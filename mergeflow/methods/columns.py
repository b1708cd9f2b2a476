"""Dot products and angles of the columns of matrices, with the same bits on every processor.

Sums are taken in float64 over 4096 rows at a time, folded in halves, and added up from the top: additions of elements
only, which IEEE 754 defines, where a sum of numpy or torch depends on the width of the processor's vectors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[Any]  # float32 or float64, rows by columns
Doubles = npt.NDArray[Any]  # float64

_ROWS, _COLUMNS = 4096, 256  # what is multiplied at a time
_HALF_TURN = 3.141592653589793
_SINE_TERMS = 13  # of x up to π/2: the next term is below 2⁻⁸⁰
_ARC_TERMS = 8  # of x up to 0.05: the next term is below 2⁻⁷⁰
_HALVINGS = 6


def dots(x: Matrix, y: Matrix) -> Doubles:
    """Σ xᵢyᵢ of each pair of columns."""
    rows, columns = x.shape
    total = np.zeros(columns)
    for left in range(0, columns, _COLUMNS):
        here = slice(left, left + _COLUMNS)
        for top in range(0, rows, _ROWS):
            product = x[top : top + _ROWS, here].astype(np.float64)
            product *= y[top : top + _ROWS, here]
            total[here] += folded(product)
    return total


def folded(x: Doubles) -> Doubles:
    """The sum over the first axis; x is written over."""
    n = len(x)
    if not n:
        return np.zeros(x.shape[1:])
    while n > 1:
        half = (n + 1) // 2
        x[: n - half] += x[half:n]
        n = half
    first: Doubles = x[0]
    return first


def cosines(x: Matrix, y: Matrix) -> Doubles:
    """Of the angles between columns, from −1 to 1; 0 where a column is zero everywhere or not finite."""
    with np.errstate(all="ignore"):
        return cosine(dots(x, y), dots(x, x), dots(y, y))


def cosine(xy: Doubles, xx: Doubles, yy: Doubles) -> Doubles:
    """The same, from dot products."""
    with np.errstate(all="ignore"):
        found = xy / (np.sqrt(xx) * np.sqrt(yy))
    return np.clip(np.where(np.isfinite(found), found, 0.0), -1.0, 1.0)


def strips(rows: int, columns: int, elements: int = 1 << 18) -> Iterator[slice]:
    """The rows of a matrix, some at a time."""
    step = max(1, elements // max(1, columns))
    return (slice(top, top + step) for top in range(0, rows, step))


def arc(cosine: Doubles) -> Doubles:
    """The angle from 0 to π that has a cosine above −1 and up to 1: twice the arctangent of √((1 − c)/(1 + c)),
    halved until its series converges fast."""
    x = np.sqrt((1.0 - cosine) / (1.0 + cosine))
    for _ in range(_HALVINGS):
        x = x / (1.0 + np.sqrt(1.0 + x * x))
    square, total = x * x, np.full_like(x, 1.0 / (2 * _ARC_TERMS + 1))
    for k in range(_ARC_TERMS - 1, -1, -1):
        total = 1.0 / (2 * k + 1) - square * total
    return total * x * float(2 << _HALVINGS)


def sine(x: Doubles) -> Doubles:
    """The series, after whole turns are taken off."""
    size = np.fmod(np.abs(x), 2 * _HALF_TURN)
    turned = size > _HALF_TURN
    size = np.where(turned, size - _HALF_TURN, size)
    size = np.minimum(size, np.maximum(_HALF_TURN - size, 0.0))
    square, total = size * size, np.ones_like(size)
    for k in range(_SINE_TERMS, 0, -1):
        total = 1.0 - total * square / float(2 * k * (2 * k + 1))
    return total * size * np.where(turned, -1.0, 1.0) * np.sign(x)
