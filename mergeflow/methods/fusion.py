"""Arcee Fusion: only what changed most, told from how much the model's distribution of values did."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from mergeflow.methods.kernels import Given
from mergeflow.methods.registry import Model, method
from mergeflow.methods.whole import whole_kernel

if TYPE_CHECKING:
    import torch

_LOG2_E = 1.4426950408889634
_LN2 = 0.6931471805599453
_LEAST = -1100.0  # 2 to this is 0


def _fused(given: Given, operands: Sequence[torch.Tensor]) -> torch.Tensor:
    import numpy as np
    import torch

    from mergeflow.methods.columns import strips

    rows = given.shape[0] if len(given.shape) > 1 else 1
    base, x = (t.numpy().reshape(rows, given.elements // rows) for t in operands)
    if not (np.isfinite(base).all() and np.isfinite(x).all()):
        return operands[1]
    importance = np.empty(x.shape)
    for here in strips(*x.shape):
        p, q = x[here].astype(np.float64), base[here].astype(np.float64)
        importance[here] = np.abs(p - q) * _divergence(p, q)[:, None]
    least = _threshold(importance.reshape(-1))
    return torch.from_numpy(np.where(importance >= least, x, base))


def _divergence(x: Any, y: Any) -> Any:
    """KL(softmax(x) ‖ softmax(y)) of each row, not below 0."""
    import numpy as np

    from mergeflow.methods.columns import folded
    from mergeflow.methods.powers import log2

    x, y = (v - v.max(axis=1, keepdims=True) for v in (x, y))
    weights = _exponential(x)
    apart = folded((weights * (x - y)).T.copy())
    total, other = folded(weights.T.copy()), folded(_exponential(y).T.copy())
    return np.maximum(apart / total - (log2(total) - log2(other)) * _LN2, 0.0)


def _exponential(x: Any) -> Any:
    import numpy as np

    from mergeflow.methods.powers import exp2

    return exp2(np.maximum(x * _LOG2_E, _LEAST))


def _threshold(importance: Any) -> float:
    """The median and one and a half times what is between the quarters; a quantile q is the ⌊q(N − 1)⌋-th smallest."""
    import numpy as np

    last = len(importance) - 1
    at = [last // 4, last // 2, 3 * last // 4]
    low, middle, high = np.partition(importance, at)[at]
    return float(middle + 1.5 * (high - low))


FUSED = whole_kernel(
    "arcee_fusion",
    cost=400.0,
    version=1,
    operands=("model", "model"),
    result="model",
    compute=_fused,
    room=lambda shape: 28 * prod(shape) + 120 * prod(shape[1:] if len(shape) > 1 else shape),
    same=True,
)


@method(FUSED)
def arcee_fusion(base: Model, model: Model) -> Model:
    """model's values where |model − base|·KL(softmax(model) ‖ softmax(base)) is large, else base's

    Large is what is at least the tensor's median of that product and 1.5 times the distance between its quarters. The
    softmax is taken over rows, a row being all that belongs to one value of the first axis ([out, in·h·w] of a
    convolution; a vector is one row). Quantiles are exact: the ⌊q·(N − 1)⌋-th smallest of N. A tensor with a value that
    is not finite is the model's. Arcee 2024, mergekit's `arcee_fusion`; it has no paper.

    mergekit draws a million values at random for the quantiles of larger tensors, and takes rows along the last axis,
    so that of a convolution they are as long as its window is wide; it adds 1e-8 to each probability.

    Example: `arcee_fusion(a, b)`
    """
    return FUSED(base, model)
