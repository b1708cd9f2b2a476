"""Programs as torch calls on the memory of an accelerator: the same arithmetic as cpu.py, call by call.

What makes the bytes the same: IEEE multiplication, addition and division are correctly rounded on both, torch compiles
its kernels without flushing subnormals, and each call is a kernel of its own, so that no multiplication is fused with
an addition. Two calls are not what they seem and are avoided: torch divides by a number that lies on the CPU by
multiplying with its reciprocal, so divisors lie on the device; and it casts float64 to 16 bits in two roundings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from mergeflow.executor.cpu import TORCH
from mergeflow.plan.program import Op, Program
from mergeflow.tensors import DType

_ABOVE_E4M3 = 464.0  # half way above the largest float8_e4m3fn, which a tie goes down to; all above is NaN


class Sums:
    """Runs programs on one device, in whatever stream is the current one."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._divisors: dict[tuple[int, DType], torch.Tensor] = {}

    def run(self, program: Program, inputs: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        """Compute all of `out` from the inputs; all are bytes of whole elements on the device."""
        operands = [x.view(TORCH[dtype]) for x, dtype in zip(inputs, program.inputs, strict=True)]
        last = len(program.ops) - 1
        for number, op in enumerate(program.ops):
            n = out.numel() // program.out.size
            result = out.view(TORCH[op.to]) if number == last else self._empty(n, op.to)
            self.add_up(op, operands, result)
            operands.append(result)

    def add_up(
        self, op: Op, operands: Sequence[torch.Tensor] | Mapping[int, torch.Tensor], result: torch.Tensor
    ) -> None:
        """One sum, rounded to the result; it has terms."""
        n = result.numel()
        total, scratch = self._empty(n, op.compute), self._empty(n, op.compute)
        for i, (share, operand) in enumerate(op.terms):
            into = scratch if i else total
            into.copy_(operands[operand])
            if share not in (1, -1):
                into.mul_(float(share))  # exact in the compute dtype
            elif share == -1 and not i:
                into.neg_()
            if i and share == -1:
                total.sub_(scratch)
            elif i:
                total.add_(scratch)
        if op.divisor != 1:
            total.div_(self._divisor(op.divisor, op.compute))
        _store(result, total, op)

    def _divisor(self, divisor: int, compute: DType) -> torch.Tensor:
        key = divisor, compute
        found = self._divisors.get(key)
        if found is None:
            made = torch.tensor(float(divisor), dtype=TORCH[compute], device=self._device)
            found = self._divisors.setdefault(key, made)  # the first of several workers' stays: streams are reading it
        return found

    def _empty(self, n: int, dtype: DType) -> torch.Tensor:
        return torch.empty(n, dtype=TORCH[dtype], device=self._device)


def _store(to: torch.Tensor, x: torch.Tensor, op: Op) -> None:
    """One rounding from the compute dtype to the result's."""
    to.copy_(_rounded_to_odd(x) if op.compute is DType.F64 and op.to.size < 4 else x)
    if op.to is DType.F8_E4M3:  # see `_nan_above` in cpu.py
        to.view(torch.uint8).masked_fill_(x.abs() > _ABOVE_E4M3, 0x7F)


def _rounded_to_odd(x: torch.Tensor) -> torch.Tensor:
    """float64 as float32, rounded to odd: the rounding after it is then the only one that shows (see `_round_once` in
    cpu.py)."""
    near = x.to(torch.float32)
    back = near.to(torch.float64)
    inexact = (back != x) & torch.isfinite(x)
    bits = near.view(torch.int32)
    bits.sub_((inexact & (back.abs() > x.abs())).to(torch.int32))  # towards zero
    bits.bitwise_or_(inexact.to(torch.int32))
    return near
