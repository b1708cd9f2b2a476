"""SLERP and Model Stock by vectors: each row, column or filter of a tensor has an angle of its own."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import prod
from typing import TYPE_CHECKING, Any

from mergeflow.ir.kernels import Range
from mergeflow.methods.kernels import Given
from mergeflow.methods.spherical import STRAIGHT
from mergeflow.methods.whole import whole_kernel

if TYPE_CHECKING:
    import torch

_SINGULAR = 1e-6


def _slerped(given: Given, operands: Sequence[torch.Tensor]) -> torch.Tensor:
    """Of two models by t, of two differences by their weights; with one difference alone (the other is zero everywhere)
    its weight is all there is to do."""
    if len(operands) == 1:
        return operands[0].mul_(float(given.weights[0]))
    one, other = given.weights or (1 - given.arguments["t"], given.arguments["t"])
    a, b = (_vectors(x.numpy(), str(given.options["along"])) for x in operands)
    _mix(a, b, float(one), float(other))
    return operands[0]


def _vectors(x: Any, along: str) -> Any:
    """A view [along the vectors, which vector, beside it]."""
    if along == "last":
        width = x.shape[-1] if x.ndim else 1
        return x.reshape(x.size // width, width).T
    return x.reshape(x.shape[0] if x.ndim else 1, -1)


def _mix(a: Any, b: Any, one: float, other: float) -> None:
    """Column by column, into a."""
    import numpy as np

    from mergeflow.methods.columns import arc, cosine, dots, sine, strips

    with np.errstate(all="ignore"):
        ab, aa, bb = dots(a, b), dots(a, a), dots(b, b)
        c = cosine(ab, aa, bb)
        finite = np.isfinite(ab) & np.isfinite(aa) & np.isfinite(bb)
        curved = finite & (aa > 0) & (bb > 0) & (np.abs(c) <= float(STRAIGHT))
        angle = arc(np.where(curved, c, 0.0))
        left, right = (np.where(curved, sine(angle * t) / sine(angle), t) for t in (one, other))
    for here in strips(*a.shape):
        a[here] = a[here].astype(np.float64) * left + b[here].astype(np.float64) * right


def _angles(shape: Sequence[int]) -> int:
    """Some numbers for each vector, whichever way they lie."""
    return 80 * max(prod(shape[:-1]), prod(shape[1:]))


SLERP_VECTORS = whole_kernel(
    "slerp_vectors",
    cost=10.0,
    version=1,
    operands=("model", "model"),
    result="model",
    compute=_slerped,
    room=_angles,
    same=True,
)

SLERP_DELTA_VECTORS = whole_kernel(
    "slerp_delta_vectors",
    cost=10.0,
    version=1,
    operands=("delta",),
    many=True,
    result="delta",
    compute=_slerped,
    room=_angles,
    symmetric=True,
    zeros=True,
)


def _stocked(given: Given, operands: Sequence[torch.Tensor]) -> torch.Tensor:
    """t · mean of the differences, row by row; n counts those, too, that are zero everywhere and no operands."""
    import numpy as np

    from mergeflow.methods.columns import cosine, dots, strips

    n, shape = int(given.arguments["models"]), given.shape
    rows = shape[0] if len(shape) > 1 else 1
    deltas = [x.numpy().reshape(rows, given.elements // rows) for x in operands]
    with np.errstate(all="ignore"):
        squares = [dots(x.T, x.T) for x in deltas]
        total = np.zeros(rows)
        for i in range(len(deltas)):
            for j in range(i):
                total += cosine(dots(deltas[i].T, deltas[j].T), squares[i], squares[j])
        mean = total / (n * (n - 1) / 2)
        under = 1.0 + (n - 1) * mean
        share = np.where(under >= _SINGULAR, n * mean / np.where(under >= _SINGULAR, under, 1.0), 0.0) / n
    finite = np.isfinite(np.stack(squares)).all(axis=0)
    share = np.where(finite, share, 1.0 / n)[:, None]
    for here in strips(*deltas[0].shape):
        added = np.zeros(deltas[0][here].shape)
        for x in deltas:
            added += x[here]
        deltas[0][here] = added * share[here]
    return operands[0]


STOCK_FILTERS = whole_kernel(
    "model_stock_filters",
    cost=15.0,
    version=1,
    operands=("delta",),
    many=True,
    result="delta",
    compute=_stocked,
    room=lambda shape: 80 * (shape[0] if len(shape) > 1 else 1),
    ranges={"models": Range(Fraction(2), whole=True)},
    symmetric=True,
    zeros=True,
)
