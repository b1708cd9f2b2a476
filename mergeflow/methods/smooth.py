"""Differences without their spikes: a median, then a blur."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from decimal import Context, Decimal, localcontext
from functools import cache
from math import prod
from typing import TYPE_CHECKING, Any

from mergeflow.ir.nodes import combine
from mergeflow.ir.numbers import ONE, Number
from mergeflow.methods.kernels import Given
from mergeflow.methods.registry import Delta, Model, method
from mergeflow.methods.whole import whole_kernel

if TYPE_CHECKING:
    import torch

_RADIUS = 4  # of the blur: four standard deviations
_AT_ONCE = 1 << 20  # values that are sorted at a time


def _smoothed(given: Given, operands: Sequence[torch.Tensor]) -> torch.Tensor:
    import numpy as np
    import torch

    (delta,) = operands
    values = delta.numpy()
    if not values.ndim or not np.isfinite(values).all():
        return delta
    found = _medians(values)
    for axis in range(values.ndim):
        found = _blurred(found, axis)
    return torch.from_numpy(found)


def _medians(x: Any) -> Any:
    """The middle one of a value and its neighbours in all directions; beyond an edge the edge's value goes on."""
    import numpy as np

    found = np.empty(x.shape)
    rows, neighbours = len(x), 3**x.ndim
    step = max(1, _AT_ONCE // (neighbours * max(1, x.size // rows)))
    for top in range(0, rows, step):
        count = min(step, rows - top)
        lines = [(np.arange(top, top + count), rows), *((np.arange(n), n) for n in x.shape[1:])]
        near = np.empty((neighbours, count, *x.shape[1:]), x.dtype)
        for k, shifts in enumerate(itertools.product((-1, 0, 1), repeat=x.ndim)):
            at = [np.clip(line + shift, 0, n - 1) for (line, n), shift in zip(lines, shifts, strict=True)]
            near[k] = x[np.ix_(*at)]
        near.partition(neighbours // 2, axis=0)
        found[top : top + count] = near[neighbours // 2]
    return found


def _blurred(x: Any, axis: int) -> Any:
    """Along one axis; beyond an edge values come again in the opposite order."""
    import numpy as np

    n = x.shape[axis]
    if n == 1:
        return x
    total = np.zeros_like(x)
    for shift, weight in zip(range(-_RADIUS, _RADIUS + 1), _weights(), strict=True):
        at = (np.arange(n) + shift) % (2 * n)
        part = x.take(np.where(at < n, at, 2 * n - 1 - at), axis=axis)
        part *= weight
        total += part
    return total


@cache
def _weights() -> tuple[float, ...]:
    """exp(−x²/2) over their sum, by decimals, which are alike on all platforms."""
    with localcontext(Context(prec=40)):
        raw = [(Decimal(-x * x) / 2).exp() for x in range(-_RADIUS, _RADIUS + 1)]
        return tuple([float(w / sum(raw)) for w in raw])


SMOOTH = whole_kernel(
    "smooth",
    cost=1500.0,
    version=1,
    operands=("delta",),
    result="delta",
    compute=_smoothed,
    room=lambda shape: 24 * prod(shape) + (8 * 3 ** len(shape)) * prod(shape[1:]),
    zeros=True,
)


@method(SMOOTH)
def smooth(delta: Delta) -> Delta:
    """delta, each value the median of its 3 neighbours along every axis (3ⁿ for n axes), then blurred with σ = 1

    The median takes out single values that stick out (Tukey 1977, "Exploratory data analysis"; for models, no paper).
    The blur is Gaussian, along one axis after the other, over four values to either side. Beyond an edge values come
    again in the opposite order. A single value stays as it is, and so does a tensor with a value that is not finite.
    The order of channels means nothing to a model, so this is a filter of what happens to lie side by side.

    Example: `a + smooth(b - c) * 0.7`
    """
    return SMOOTH(delta)


@method(SMOOTH)
def smooth_add(a: Model, b: Model, c: Model, m: Number = ONE) -> Model:
    """a + smooth(b − c)·m

    An add difference (arXiv:2212.04089) whose difference is smoothed: supermerger's calculation mode smoothAdd; it has
    no paper. `smooth` says how. supermerger's is scipy's median_filter of size 3 and gaussian_filter of sigma 1, which
    is the same but for the dtype it counts in.

    Example: `smooth_add(a, b, c, 0.7)`
    """
    return combine([a, SMOOTH(b - c) * m])
