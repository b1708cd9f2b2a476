"""Kernels over whole tensors: for formulas that no pass over tiles can compute, such as orders of values and matrices.

The operands are put together in memory, the result is made of them at once, and is handed out in tiles as any other
kernel's. Memory is a multiple of the tensor's size, so a plan counts it, refuses what cannot fit, and lets no more of
such tensors be worked on at a time than the budget holds (`mergeflow.plan.whole`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, TypeVar

from mergeflow.ir.kernels import Range, Side, Tier
from mergeflow.methods.kernels import Formula, Given, Passes, kernel
from mergeflow.methods.rooms import Room, declare_room
from mergeflow.tensors import DType

if TYPE_CHECKING:
    import torch

Whole = Callable[[Given, Sequence["torch.Tensor"]], "torch.Tensor"]
F = TypeVar("F", bound=Callable[..., Any])


def whole_kernel(
    name: str,
    *,
    version: int,
    operands: tuple[Side, ...],
    result: Side,
    compute: Whole,
    room: Room,
    many: bool = False,
    ranges: Mapping[str, Range] | None = None,
    symmetric: bool = False,
    zeros: bool = False,
    same: bool = False,
    tier: Tier = "exact",
    cost: float = 100.0,
) -> Formula:
    """Declare a kernel whose `compute(given, operands)` takes tensors in their shape and the compute dtype, which it
    may write over, and gives the result in that shape. `room` says how many bytes it takes for a shape besides
    operands and result, up to 30 MB more being nothing; the rest is as of any `kernel`."""

    def measure(given: Given, passes: Passes) -> torch.Tensor:
        return _computed(compute, given, passes)

    def apply(given: Given, found: torch.Tensor, tiles: Sequence[torch.Tensor], begin: int, out: torch.Tensor) -> None:
        out.copy_(found[begin : begin + out.numel()])

    declare_room(name, room)
    return kernel(
        name,
        version=version,
        operands=operands,
        result=result,
        apply=_in_the_name_of(compute, apply),
        measure=_in_the_name_of(compute, measure),
        whole=True,
        many=many,
        ranges=ranges,
        symmetric=symmetric,
        zeros=zeros,
        same=same,
        tier=tier,
        cost=cost,
    )


def _in_the_name_of(compute: Whole, function: F) -> F:
    """It is the formula's module, and not this one, that keys are told apart by."""
    update_wrapper(function, compute)
    return function


def _computed(compute: Whole, given: Given, passes: Passes) -> torch.Tensor:
    """The result, flat, of operands that are gathered from their tiles."""
    import torch

    dtype = torch.float64 if given.compute is DType.F64 else torch.float32
    gathered: list[torch.Tensor] = []
    at = 0
    for tiles in passes.tiles():
        gathered = gathered or [torch.empty(given.elements, dtype=dtype) for _ in tiles]
        count = tiles[0].numel()
        for whole, tile in zip(gathered, tiles, strict=True):
            whole[at : at + count] = tile
        at += count
    found = compute(given, [whole.reshape(given.shape) for whole in gathered])
    return found.reshape(-1).to(dtype)
