"""What differences have in common, and what one has that another has not."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, lcm
from typing import TYPE_CHECKING

from mergeflow.ir.nodes import combine
from mergeflow.ir.numbers import ONE, Number
from mergeflow.methods.kernels import GRID, Given, Passes, kernel
from mergeflow.methods.registry import Delta, Deltas, Model, method
from mergeflow.methods.shares import weights_of

if TYPE_CHECKING:
    import torch


def _agree(given: Given, found: None, tiles: Sequence[torch.Tensor], begin: int, out: torch.Tensor) -> None:
    """With integer weights over one denominator, as the election of TIES. The mean does not need the denominator."""
    import torch

    over = lcm(*(w.denominator for w in given.weights))
    weighed = [(x, float(w * over)) for x, w in zip(tiles, given.weights, strict=True) if w]
    out.zero_()
    if not weighed:
        return
    low = high = None
    for x, share in weighed:
        value = x if share == 1 else x.mul(torch.tensor(share, dtype=x.dtype))
        out.add_(value)
        low = value.clone() if low is None else torch.minimum(low, value, out=low)
        high = value.clone() if high is None else torch.maximum(high, value, out=high)
    assert low is not None
    assert high is not None
    parted = (low <= 0) & (high >= 0)  # of NaN neither holds: what is no number stays none
    out.div_(torch.tensor(sum(abs(share) for _, share in weighed), dtype=out.dtype))
    out.masked_fill_(parted, 0.0)


AGREE = kernel(
    "sign_agreement",
    cost=8.0,
    version=1,
    operands=("delta",),
    many=True,
    result="delta",
    apply=_agree,
    symmetric=True,
)


@method(AGREE)
def sign_agreement(deltas: Deltas) -> Delta:
    """the mean of the deltas where all of them have one sign, else 0, value by value

    What all differences agree on: the AND-mask of Parascandolo et al. 2020, "Learning explanations that are hard to
    vary", arXiv:2009.00329, section 3, over task vectors. Weights are written `x @ w`: Σ wᵢδᵢ / Σ |wᵢ| where all wᵢδᵢ
    have one sign; a delta of weight 0 has no vote. A value of 0 has no sign, so nothing is agreed on there.

    `sum_sign` is the milder form, in which the majority decides.

    Example: `base + sign_agreement([(a - base), (b - base) @ 0.5])`
    """
    return AGREE(*(item.model for item in deltas), weights=weights_of(deltas))


def _share(given: Given, passes: Passes) -> float:
    """⟨a, b⟩ / ‖a‖²; 0 where a is zero everywhere, or that is no number."""
    import torch

    from mergeflow.methods.sums import Running, float64

    left, right, product = (torch.empty(GRID, dtype=torch.float64) for _ in range(3))
    dot, square = Running(), Running()
    for b, a in passes.tiles():
        y, x, p = float64(b, left), float64(a, right), product[: a.numel()]
        dot.add(torch.mul(x, y, out=p))
        square.add(torch.mul(x, x, out=p))
    under = square.value()
    share = dot.value() / under if under else 0.0
    return share if isfinite(share) else 0.0


def _without(given: Given, found: float, tiles: Sequence[torch.Tensor], begin: int, out: torch.Tensor) -> None:
    import torch

    torch.mul(tiles[1], torch.tensor(-found, dtype=out.dtype), out=out)
    out.add_(tiles[0])


PERPENDICULAR = kernel(
    "perpendicular_component",
    cost=4.0,
    version=2,
    operands=("delta", "delta"),
    result="delta",
    measure=_share,
    apply=_without,
    zeros=True,
)


@method(PERPENDICULAR)
def perpendicular_component(a: Delta, b: Delta) -> Delta:
    """b − a·⟨a, b⟩ / ‖a‖²: the part of b that a does not have, tensor by tensor

    One step of Gram and Schmidt; for gradients that conflict, Yu et al. 2020, "Gradient surgery", arXiv:2001.06782,
    section 2.3. Where a is zero everywhere the result is b (sd-mecha's perpendicular_component gives zeros there), and
    so it is of a tensor with a value that is not finite.

    Example: `a + perpendicular_component(a - base, b - base) * 0.5`
    """
    return PERPENDICULAR(b, a)


@method(PERPENDICULAR)
def add_perpendicular(a: Model, b: Model, c: Model, m: Number = ONE) -> Model:
    """a + perpendicular_component(a − c, b − c)·m

    Adds what b learned since c and a did not learn as well: sd-mecha's add_perpendicular; task vectors are those of
    arXiv:2212.04089.

    Example: `add_perpendicular(a, b, base)`
    """
    return combine([a, PERPENDICULAR(b - c, a - c) * m])
