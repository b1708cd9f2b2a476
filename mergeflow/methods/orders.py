"""Values of one model laid out in the order of another's, and mixed along that order."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import prod
from typing import TYPE_CHECKING, Any

from mergeflow.ir.kernels import Range
from mergeflow.methods.kernels import Given
from mergeflow.methods.registry import Model, Share, method
from mergeflow.methods.whole import whole_kernel

if TYPE_CHECKING:
    import torch

_SHARE = Range(Fraction(0), Fraction(1))


def _redistributed(given: Given, operands: Sequence[torch.Tensor]) -> torch.Tensor:
    """The k-th smallest value of a goes where b has its k-th smallest, if a's value is one of the window."""
    import numpy as np
    import torch

    a, b = (x.numpy().reshape(-1) for x in operands)
    order = np.argsort(b, kind="stable")
    values = np.sort(a, kind="stable")
    sizes = np.abs(values)
    sizes[np.isnan(sizes)] = np.inf
    chosen = _window(sizes, given.arguments["m"], given.arguments["n"])
    a[order[chosen]] = values[chosen]
    return torch.from_numpy(a)


def _window(sizes: Any, m: Fraction, n: Fraction) -> Any:
    """Which magnitudes are among those from the n share of the smallest on to the n + m share, the end going round."""
    count = len(sizes)
    wraps = m + n > 1
    begin, end = ((m + n - 1) * count, n * count) if wraps else (n * count, (m + n) * count)
    above, most = (_kth(sizes, round(k)) for k in (begin, end))
    inside = (sizes > above) & (sizes <= most)
    return ~inside if wraps else inside


def _kth(sizes: Any, k: int) -> float:
    import numpy as np

    return float(np.partition(sizes, k - 1)[k - 1]) if k > 0 else -1.0


TOP_K = whole_kernel(
    "top_k_tensor_sum",
    cost=250.0,
    version=1,
    operands=("model", "model"),
    result="model",
    compute=_redistributed,
    room=lambda shape: 48 * prod(shape),
    ranges={"m": _SHARE, "n": _SHARE},
    same=True,
)


@method(TOP_K)
def top_k_tensor_sum(a: Model, b: Model, m: Share = Fraction(1), n: Share = Fraction(0)) -> Model:
    """a, with those values that are, by magnitude, from its n share to its n + m share of smallest laid out as b's are

    a's values are sorted, and the k-th smallest goes where b has its k-th smallest, if its magnitude is above that of
    a's round(n·N)-th smallest and at most that of the round((n + m)·N)-th of N; elsewhere a stays. Above 1 the share
    goes round: those not between round((m + n − 1)·N) and round(n·N). m = 1 is b's order with a's values. Equal values
    keep the order of their places; NaN is the largest. meh's and sd-mecha's top_k_tensor_sum, with alpha or width as m,
    beta or offset as n; it has no paper. Their counts are rounded products of floating point, and the values that begin
    and end the share are both among those that sd-mecha takes.

    Example: `top_k_tensor_sum(a, b, 0.5, 0.2)`
    """
    return TOP_K(a, b, m=m, n=n)


def _crossed(given: Given, operands: Sequence[torch.Tensor]) -> torch.Tensor:
    import torch

    a, b, c = (x.reshape(-1) for x in operands)
    m, n = float(given.arguments["m"]), float(given.arguments["n"])
    if given.elements == 1:
        return a.double().mul_(m).add_(b.double().mul_(1 - m))
    if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
        return a
    order = torch.argsort(c, stable=True)
    low, high = (torch.fft.rfft(x.double()[order]) for x in (a, b))
    at = torch.arange(low.numel(), dtype=torch.float64).div_(low.numel())
    part = at.sub_(m).div_(n).add_(0.5).clamp_(0.0, 1.0) if n else (at >= m).double()
    high.sub_(low).mul_(part)
    mixed = torch.fft.irfft(low.add_(high), given.elements)
    result = torch.empty_like(mixed)
    result[order] = mixed
    return result


CROSSOVER = whole_kernel(
    "distribution_crossover",
    cost=500.0,
    version=1,
    operands=("model", "model", "model"),
    result="model",
    compute=_crossed,
    room=lambda shape: 72 * prod(shape),
    ranges={"m": _SHARE, "n": _SHARE},
    same=True,
    tier="stable",
)


@method(CROSSOVER)
def distribution_crossover(a: Model, b: Model, c: Model, m: Share, n: Share = Fraction(0)) -> Model:
    """values of a and b in the order of c's: low frequencies of a's, high ones of b's; X = (1 − F)·Â + F·B̂

    Â and B̂ are the Fourier transforms of a's and b's values, sorted as c's are; F = clamp((f − m)/n + 1/2, 0, 1) with f
    from 0 to 1 over the N/2 + 1 frequencies; for n = 0 it is 1 from m on and 0 below. X is turned back and put into
    places again. m = 0 is b, for n = 0; m = 1 nearly a. Equal values of c keep the order of their places. A tensor of
    one value is m·a + (1 − m)·b; one with a value of a or b that is not finite is a's. meh's distribution_crossover,
    with alpha as m and beta as n; it has no paper. In float64; stable, because the transform is torch's. sd-mecha's
    crossover is another method: it sorts nothing, and transforms along all axes.

    Example: `distribution_crossover(a, b, c, 0.3, 0.1)`
    """
    return CROSSOVER(a, b, c, m=m, n=n)
