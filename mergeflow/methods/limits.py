"""Differences held within bounds."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from mergeflow.ir.kernels import Range
from mergeflow.ir.nodes import combine
from mergeflow.ir.numbers import Number
from mergeflow.methods.kernels import Given, kernel
from mergeflow.methods.registry import Delta, Model, method

if TYPE_CHECKING:
    import torch


def _within(given: Given, found: None, tiles: Sequence[torch.Tensor], begin: int, out: torch.Tensor) -> None:
    import torch

    most = float(given.arguments["most"])
    torch.clamp(tiles[0], -most, most, out=out).add_(0.0)  # where `most` is 0, zeros of both signs come out


LIMIT = kernel(
    "limit",
    version=1,
    operands=("delta",),
    result="delta",
    apply=_within,
    ranges={"most": Range(Fraction(0))},
    zeros=True,
)


@method(LIMIT)
def limit(delta: Delta, most: Number) -> Delta:
    """min(max(delta, −most), most), value by value

    Values that differ by more differ by `most` then: what clipping by value does to gradients (Goodfellow et al. 2016,
    "Deep Learning", section 10.11.1; of models there is no paper). NaN stays. `most` is 0 or more.

    Example: `a + limit(b - base, 0.01)`
    """
    return LIMIT(delta, most=most)


@method(LIMIT)
def nearswap(a: Model, b: Model, t: Number) -> Model:
    """a + limit(b − a, t): b where it is nearer to a than t, else t towards it, value by value

    The interpolation a·(1 − s) + b·s with s = min(1, t / |b − a|): alchemonaut 2024, the model card of
    QuartetAnemoi-70B (no paper), and mergekit's `nearswap`. `limit` says what it is made of. mergekit divides by 1e-6
    at least, so that values nearer than that are not taken whole when t is below 1e-6.

    Example: `nearswap(a, b, 0.001)`
    """
    return combine([a, LIMIT(b - a, most=t)])
