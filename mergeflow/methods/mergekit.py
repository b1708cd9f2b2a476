"""mergekit's arithmetic, operation by operation: what `mergeflow import --faithful` writes into recipes.

Our own methods add up exactly and round once. mergekit works in the dtype of the tensors: each difference, product, sum
and quotient is rounded there before the next one. Where that is all that decides a result, it can be had again, bit for
bit and on any machine; these are those operations. Operands are differences that a step has rounded already
(`{ expr: a - base, round: float16 }`), and a step with `round:` adds the result to the base.

A sum over models is taken in float32 in the order of the list, and rounded once; of five models and more, mergekit's
order depends on the width of the processor's vectors. `x @ w` is a product of two numbers of the dtype: weights are
rounded to it first. Formulas are mergekit's (0.1.5), as its documentation and its results say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Literal, TypeAlias

from mergeflow.ir.numbers import ONE, Number
from mergeflow.methods.kernels import Given, kernel
from mergeflow.methods.registry import Delta, Deltas, Model, Models, method
from mergeflow.methods.shares import weights_of

if TYPE_CHECKING:
    import torch

    Round: TypeAlias = Callable[[torch.Tensor], torch.Tensor]

Width = Literal["float32", "float16", "bfloat16"]
_AT_ONCE = 1 << 13  # values of which intermediate results stay in the processor's cache
_LEAST_TOTAL = 1e-8  # of weights that are divided by
_CUT, _MIDDLE = (1 << 29) - 1, 1 << 28  # of a float64's bits, those that a float32 has not
_LEAST_NORMAL = 2.0**-126  # of float32; below, it has fewer bits still


def rounding(given: Given) -> Round:
    """float32 to the nearest numbers of the dtype, as float32."""
    import torch

    dtype = {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(str(given.options["dtype"]))
    return (lambda x: x) if dtype is None else (lambda x: x.to(dtype).to(torch.float32))


def single(value: float | Fraction) -> torch.Tensor:
    import torch

    return torch.tensor(float(value), dtype=torch.float32)


def _weights(given: Given, to: Round) -> list[torch.Tensor]:
    return [to(single(w)) for w in given.weights]


def _parts(given: Given, tiles: Sequence[torch.Tensor], to: Round) -> list[torch.Tensor]:
    """Each difference times its weight."""
    return [to(to(x.float()) * w) for x, w in zip(tiles, _weights(given, to), strict=True)]


def total(parts: Sequence[torch.Tensor], to: Round) -> torch.Tensor:
    """Their sum in float32, one after the other, rounded once."""
    found = single(0) + parts[0]  # a sum has no negative zero
    for x in parts[1:]:
        found = found + x
    return to(found)


def _scaled(given: Given, x: torch.Tensor, to: Round) -> torch.Tensor:
    scale = given.arguments["scale"]
    return x if scale == 1 else to(x * single(scale))


# -- sums --------------------------------------------------------------------------------------------------------------


def _summed(given: Given, found: None, tiles: Sequence[torch.Tensor], begin: int, out: torch.Tensor) -> None:
    to = rounding(given)
    out.copy_(_scaled(given, total(_parts(given, tiles, to), to), to))


SUM = kernel(
    "mergekit_sum",
    cost=6.0,
    version=1,
    operands=("delta",),
    many=True,
    result="delta",
    apply=_summed,
    zeros=True,
)


@method(SUM)
def mergekit_sum(deltas: Deltas, dtype: Width, scale: Number = ONE) -> Delta:
    """scale·(w1·d1 + w2·d2 + …), each operation rounded to the dtype

    What mergekit's `task_arithmetic` and its kin (no paper of their own; arXiv:2212.04089) make of the differences,
    normalize: false, with its rounding: weights, products, the sum (taken in float32) and the product with `scale`, its
    lambda. `--faithful` imports are made of it.

    Example: `base + mergekit_sum([(a - base) @ 0.3, (b - base) @ 0.5], dtype=float16)`
    """
    return SUM(*(item.model for item in deltas), weights=weights_of(deltas), dtype=dtype, scale=scale)


def _averaged(given: Given, found: None, tiles: Sequence[torch.Tensor], begin: int, out: torch.Tensor) -> None:
    to = rounding(given)
    over = total(_weights(given, to), to)
    mixed = total(_parts(given, tiles, to), to)
    out.copy_(_scaled(given, mixed if over.abs() < to(single(_LEAST_TOTAL)) else to(mixed / over), to))


MEAN = kernel(
    "mergekit_mean",
    cost=8.0,
    version=1,
    operands=("delta",),
    many=True,
    result="delta",
    apply=_averaged,
)


@method(MEAN)
def mergekit_mean(deltas: Deltas, dtype: Width, scale: Number = ONE) -> Delta:
    """scale·(w1·d1 + w2·d2 + …) / (w1 + w2 + …), each operation rounded to the dtype

    `mergekit_sum` with normalize: true: the sum is divided by the sum of the weights, itself rounded to the dtype,
    unless that is nearer to 0 than 1e-8. mergekit's, as that is; it has no paper.

    Example: `base + mergekit_mean([(a - base) @ 0.3, (b - base) @ 0.5], dtype=float16)`
    """
    return MEAN(*(item.model for item in deltas), weights=weights_of(deltas), dtype=dtype, scale=scale)


def _elected(given: Given, found: None, tiles: Sequence[torch.Tensor], begin: int, out: torch.Tensor) -> None:
    import torch

    to = rounding(given)
    parts = _parts(given, tiles, to)
    positive = total(parts, to) >= 0
    agree = [torch.where(positive, x > 0, x < 0).float() for x in parts]
    mixed = total([x * yes for x, yes in zip(parts, agree, strict=True)], to)
    if given.options["normalize"]:
        over = total([w * yes for w, yes in zip(_weights(given, to), agree, strict=True)], to)
        mixed = to(mixed / torch.where(over == 0, 1.0, over))
    out.copy_(_scaled(given, mixed, to))


ELECT = kernel(
    "mergekit_elect",
    cost=30.0,
    version=1,
    operands=("delta",),
    many=True,
    result="delta",
    apply=_elected,
    zeros=True,
)


@method(ELECT)
def mergekit_elect(deltas: Deltas, dtype: Width, normalize: bool = True, scale: Number = ONE) -> Delta:
    """scale·Σ wᵢdᵢ / Σ wᵢ over the wᵢdᵢ that have the sign of Σ wᵢdᵢ, each operation rounded to the dtype

    `sum_sign` as mergekit's `ties` computes it (arXiv:2306.01708, section 4): where the differences add up to nothing,
    the positive ones are taken, and weights are divided by with their signs. With normalize=false the sum alone.

    Example: `base + mergekit_elect([(a - base) @ 0.3, (b - base) @ 0.5], dtype=float16)`
    """
    return ELECT(
        *(item.model for item in deltas), weights=weights_of(deltas), dtype=dtype, normalize=normalize, scale=scale
    )


def _joined(given: Given, found: None, tiles: Sequence[torch.Tensor], begin: int, out: torch.Tensor) -> None:
    to, weights = rounding(given), [single(w) for w in given.weights]
    for here in range(0, out.numel(), _AT_ONCE):
        mixed = single(0)
        for x, w in zip(tiles, weights, strict=True):
            mixed = _fused(mixed, to(x[here : here + _AT_ONCE].float()), w)
        if given.options["normalize"]:
            mixed = mixed / total(weights, lambda x: x)
        out[here : here + _AT_ONCE] = to(mixed)


def _fused(added: torch.Tensor, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """added + x·w, rounded once to float32. In float64 the product is exact; where the sum is not, and seems to be in
    the middle of two float32, it is rounded to odd, so that rounding it once more is as rounding the exact one (Boldo
    and Melquiond 2008, "Emulation of FMA")."""
    import torch

    a, b = added.double(), x.double() * w.double()
    found = a + b
    bits = found.view(torch.int64)
    if not ((bits & _CUT == _MIDDLE) | (found.abs() < _LEAST_NORMAL)).any():
        return found.float()
    rest = found - a
    left = (a - (found - rest)) + (b - rest)  # what is missing in the sum, exactly
    even = torch.isfinite(found) & (left != 0) & (bits & 1 == 0)
    outward = torch.where((left > 0) == (found > 0), 1, -1)
    return torch.where(even, bits + outward, bits).view(torch.float64).float()


LINEAR = kernel(
    "mergekit_linear",
    cost=40.0,
    version=1,
    operands=("model",),
    many=True,
    result="model",
    apply=_joined,
)


@method(LINEAR)
def mergekit_linear(models: Models, dtype: Width, normalize: bool = True) -> Model:
    """(w1·x1 + w2·x2 + …) / (w1 + w2 + …), each operation rounded to float32, the result to the dtype

    mergekit's `linear` (arXiv:2203.05482) with its rounding: in the order of the list each product is added in one
    rounding, as processors with a fused multiply and add do (x86-64 since 2013). With normalize=false the sum alone.

    Example: `mergekit_linear([a @ 0.3, b @ 0.7], dtype=float16)`
    """
    return LINEAR(*(item.model for item in models), weights=weights_of(models), dtype=dtype, normalize=normalize)
