"""Mixtures whose shares follow the angles between parts of tensors: cosine A and B, extract."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import prod
from typing import TYPE_CHECKING, Any

from mergeflow.ir.kernels import Range
from mergeflow.ir.nodes import combine
from mergeflow.ir.numbers import ONE, Number
from mergeflow.methods.kernels import Formula, Given
from mergeflow.methods.registry import Model, Share, method
from mergeflow.methods.whole import Whole, whole_kernel

if TYPE_CHECKING:
    import torch

_SHARE = Range(Fraction(0), Fraction(1))


def _nothing(shape: Sequence[int]) -> int:
    return 0


def _mixed(*, whole: bool) -> Whole:
    """b + k·(a − b) with k = clamp(s − m, 0, 1), s the cosines of columns, or half that and half the whole tensors'."""

    def compute(given: Given, operands: Sequence[torch.Tensor]) -> torch.Tensor:
        import numpy as np
        import torch

        from mergeflow.methods.columns import cosine, dots, folded, strips

        rows = given.shape[0] if given.shape else 1
        a, b = (x.numpy().reshape(rows, given.elements // rows) for x in operands)
        with np.errstate(all="ignore"):
            table = [dots(x, y) for x, y in ((a, b), (a, a), (b, b))]
        s = cosine(*table)
        if whole:
            s = (s + cosine(*(folded(column.copy()) for column in table))) / 2
        share = np.clip(s - float(given.arguments["m"]), 0.0, 1.0)
        for here in strips(*a.shape):
            x, y = (side[here].astype(np.float64) for side in (a, b))
            with np.errstate(invalid="ignore"):
                mixed = y + share * (x - y)
            a[here] = np.where(share == 0, y, np.where(share == 1, x, mixed))
        return torch.from_numpy(a)

    return compute


def _cosine(name: str, *, whole: bool) -> Formula:
    return whole_kernel(
        name,
        cost=15.0,
        version=1,
        operands=("model", "model"),
        result="model",
        compute=_mixed(whole=whole),
        room=_nothing,
        same=True,
    )


COSINE_A, COSINE_B = _cosine("add_cosine_a", whole=False), _cosine("add_cosine_b", whole=True)


@method(COSINE_A)
def add_cosine_a(a: Model, b: Model, m: Number = ONE) -> Model:
    """a·k + b·(1 − k), k = clamp(cos(a, b) − m, 0, 1), with the cosine of each pair of columns

    The structure of a with the details of b: supermerger's calculation mode cosineA in sd-mecha's form, add_cosine_a
    (no paper). Columns are along the first axis: a tensor of R rows has as many as the other axes have values, a
    vector is one. m = 0 takes most of a where the two are alike, m = 1 is b. Where a column is zero everywhere or not
    finite the cosine is 0, and the result is b's for m of 0 or more.

    supermerger goes through all tensors first and stretches the cosines it found there, but for the outer hundredths,
    to 0 and 1 before m is taken off: what one tensor becomes depends on all others. Here, as in sd-mecha, it does not.

    Example: `add_cosine_a(a, b, 0.3)`
    """
    return COSINE_A(a, b, m=m)


@method(COSINE_B)
def add_cosine_b(a: Model, b: Model, m: Number = ONE) -> Model:
    """a·k + b·(1 − k), k = clamp((cos(a, b) of columns + cos(a, b) of the tensors)/2 − m, 0, 1)

    The structure of b with the details of a: supermerger's calculation mode cosineB in sd-mecha's form, add_cosine_b
    (no paper). As `add_cosine_a`, which says what columns are and how supermerger differs, with the mean of the
    columns' cosine and that of the whole tensors.

    Example: `add_cosine_b(a, b, 0.3)`
    """
    return COSINE_B(a, b, m=m)


# -- extract -----------------------------------------------------------------------------------------------------------


def _extracted(given: Given, operands: Sequence[torch.Tensor]) -> torch.Tensor:
    import numpy as np
    import torch

    from mergeflow.methods.columns import cosines, strips

    m, n, k = (float(given.arguments[name]) for name in ("m", "n", "k"))
    width = given.shape[-1] if given.shape else 1
    a, b = (x.numpy().reshape(given.elements // width, width) for x in operands)
    alike = _power((cosines(a.T, b.T) + 1.0) / 2.0, given.arguments["k"]) if k else np.ones(len(a))
    share = (alike * (1.0 - n) + (1.0 - alike) * n)[:, None]
    for here in strips(*a.shape):
        x, y = (side[here].astype(np.float64) for side in (a, b))
        a[here] = (x * (1.0 - m) + y * m) * share[here]
    return torch.from_numpy(a)


def _power(x: Any, k: Fraction) -> Any:
    """Of numbers from 0 to 1: whole powers by squaring, the rest from the series."""
    from mergeflow.methods.powers import power

    whole = k.numerator // k.denominator
    total = power(x, float(k - whole))
    while whole:
        if whole & 1:
            total = total * x
        x, whole = x * x, whole >> 1
    return total


EXTRACT = whole_kernel(
    "extract",
    cost=15.0,
    version=1,
    operands=("delta", "delta"),
    result="delta",
    compute=_extracted,
    room=lambda shape: 80 * (prod(shape[:-1]) if shape else 1),
    ranges={"m": _SHARE, "n": _SHARE, "k": Range(Fraction(0), Fraction(100))},
)


@method(EXTRACT)
def extract(base: Model, a: Model, b: Model, m: Share, n: Share, k: Number = ONE) -> Model:
    """base + ((1 − m)·p + m·q)·((1 − n)·d + n·(1 − d)), p = a − base, q = b − base, d = ((cos(p, q) + 1)/2)^k

    What two models learned alike (n = 0) or apart (n = 1), row by row along the last axis: task vectors
    (arXiv:2212.04089), and supermerger's calculation mode extract with its alpha, beta and gamma as m, n and k; it has
    no paper of its own. Where a row of p or q is zero everywhere or not finite, the cosine is 0. k is from 0 to 100.

    As supermerger's, but in float64. Its last axis is kept: of a convolution that is the width of the window, so where
    that is 1 the cosine is 1 or −1.

    Example: `extract(c, a, b, 0.5, 0)`
    """
    return combine([base, EXTRACT(a - base, b - base, m=m, n=n, k=k)])
