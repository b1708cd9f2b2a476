"""The CPU: programs as torch calls over tiles that stay in a core's cache.

Each sum is separate casts, multiplications and additions, one division and one rounding: fused forms (add with alpha,
addcmul, lerp) give other bits with AVX than without. Coefficients are 0-dim tensors and tile views are made once,
because a Python float costs three times as much per call and a slice twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch

from mergeflow.events import Reporter, silent
from mergeflow.executor.device import Buffers, Bytes, Device, Room, Worker, buffers
from mergeflow.formats.scan import e4m3_table
from mergeflow.plan.place import Placement, tile_for
from mergeflow.plan.program import Op, Program
from mergeflow.tensors import DType

TORCH = {
    DType.F64: torch.float64,
    DType.F32: torch.float32,
    DType.F16: torch.float16,
    DType.BF16: torch.bfloat16,
    DType.F8_E4M3: torch.float8_e4m3fn,
    DType.F8_E5M2: torch.float8_e5m2,
}
_E4M3 = e4m3_table()
Views = Sequence[torch.Tensor]
Cast = Callable[[torch.Tensor, torch.Tensor], None]


@dataclass(slots=True)
class _Term:
    """One operand of a sum: its tiles, how it gets into the accumulator's dtype, and its share. `share` is None for
    1 and -1 (`negative` tells them apart); `plain` operands have the accumulator's dtype and need no cast."""

    views: Views
    cast: Cast
    share: torch.Tensor | None
    negative: bool
    plain: bool


@dataclass(slots=True)
class _Sum:
    terms: list[_Term]
    divisor: torch.Tensor | None
    total: torch.Tensor
    scratch: torch.Tensor
    store: Cast
    result: Views


@final
class CpuWorker(Worker):
    def __init__(self, placement: Placement, room: Room, own: Buffers | None = None) -> None:
        torch.set_num_threads(1)  # per thread: each worker is one core
        self._placement = placement
        self._slots, self.out = own or buffers(room)
        self._scratch: dict[tuple[str, DType], torch.Tensor] = {}
        self._views: dict[tuple[int, DType, int], Views] = {}
        self._compiled: dict[tuple[Program, tuple[int, ...]], tuple[int, list[_Sum]]] = {}

    def slot(self, i: int) -> Bytes:
        return self._slots[i]

    def run(self, program: Program, slots: Sequence[int], elements: int) -> None:
        tile, sums = self._compile(program, tuple(slots))
        full, rest = divmod(elements, tile)
        for k in range(full):
            for s in sums:
                _run_full(s, k)
        if rest:
            for s in sums:
                _run_part(s, full, rest)

    def lost_before_rounding(self, program: Program, slots: Sequence[int], elements: int) -> int:
        tile, sums = self._compile(program, tuple(slots))
        lost = 0
        for k in range(-(-elements // tile)):
            n = min(tile, elements - k * tile)
            for s in sums:
                _run_part(s, k, n)
            lost += int(np.count_nonzero(~np.isfinite(sums[-1].total[:n].numpy())))
        return lost

    def _compile(self, program: Program, slots: tuple[int, ...]) -> tuple[int, list[_Sum]]:
        found = self._compiled.get((program, slots))
        if found is not None:
            return found
        tile = min(tile_for(op.compute, self._placement) for op in program.ops)
        count = -(-self.out.size // program.out.size // tile)
        inputs = zip(program.inputs, slots, strict=True)
        operands: list[tuple[DType, Views]] = [(d, self._tiles(slot, d, tile)) for d, slot in inputs]
        sums = []
        for number, op in enumerate(program.ops):
            last = number == len(program.ops) - 1
            result = self._tiles(-1, op.to, tile) if last else [self._tile(f"result {number}", op.to, tile)] * count
            sums.append(self._sum(op, operands, result, tile))
            operands.append((op.to, result))
        self._compiled[program, slots] = tile, sums
        return tile, sums

    def _sum(self, op: Op, operands: Sequence[tuple[DType, Views]], result: Views, tile: int) -> _Sum:
        compute = TORCH[op.compute]
        terms = []
        for share, operand in op.terms:
            dtype, views = operands[operand]
            one = share in (1, -1)
            value = None if one else torch.tensor(float(share), dtype=compute)
            terms.append(_Term(views, self._cast(dtype, op.compute, tile), value, share == -1, dtype is op.compute))
        divisor = None if op.divisor == 1 else torch.tensor(float(op.divisor), dtype=compute)
        total, scratch = self._tile("total", op.compute, tile), self._tile("scratch", op.compute, tile)
        return _Sum(terms, divisor, total, scratch, store(op.compute, op.to), result)

    def _tiles(self, slot: int, dtype: DType, tile: int) -> Views:
        """Views of one buffer, tile by tile; slot -1 is the output."""
        key = (slot, dtype, tile)
        if key not in self._views:
            buffer = self.out if slot < 0 else self._slots[slot]
            usable = buffer[: buffer.size // dtype.size * dtype.size]
            self._views[key] = torch.split(torch.from_numpy(usable).view(TORCH[dtype]), tile)
        return self._views[key]

    def _tile(self, name: str, dtype: DType, tile: int) -> torch.Tensor:
        found = self._scratch.get((name, dtype))
        if found is None or found.numel() < tile:
            found = self._scratch[name, dtype] = torch.empty(tile, dtype=TORCH[dtype])
        return found[:tile]

    def _cast(self, source: DType, compute: DType, tile: int) -> Cast:
        """How values get into the compute dtype, exactly. torch's float16 → float64 is slower than going by way of
        float32, its float8_e4m3fn → float32 forty times slower than a table."""
        if source is DType.F8_E4M3:
            middle = self._tile("middle", DType.F32, tile)
            return _from_e4m3(middle if compute is DType.F64 else None)
        if compute is DType.F64 and source.size < 4:
            return _by_way_of(self._tile("middle", DType.F32, tile))
        return _copy


@final
class CpuDevice(Device):
    name = "cpu"

    def worker(self, placement: Placement, room: Room, report: Reporter = silent) -> Worker:
        return CpuWorker(placement, room)


def _run_full(s: _Sum, k: int) -> None:
    """One sum over tile k, full size: the hot loop."""
    total, scratch, first = s.total, s.scratch, True
    for term in s.terms:
        x, share = term.views[k], term.share
        if first:
            term.cast(total, x)
            if share is not None:
                total.mul_(share)
            elif term.negative:
                total.neg_()
            first = False
            continue
        if share is not None:
            if term.plain:
                torch.mul(x, share, out=scratch)
            else:
                term.cast(scratch, x)
                scratch.mul_(share)
            total.add_(scratch)
            continue
        if not term.plain:
            term.cast(scratch, x)
            x = scratch
        if term.negative:
            total.sub_(x)
        else:
            total.add_(x)
    if s.divisor is not None:
        total.div_(s.divisor)
    s.store(s.result[k], total)


def _run_part(s: _Sum, k: int, n: int) -> None:
    """The same over the first n elements of tile k: the same calls on shorter views, made as they are needed."""
    terms = [_Term([t.views[k][:n]], t.cast, t.share, t.negative, t.plain) for t in s.terms]
    _run_full(_Sum(terms, s.divisor, s.total[:n], s.scratch[:n], s.store, [s.result[k][:n]]), 0)


def _copy(to: torch.Tensor, x: torch.Tensor) -> None:
    to.copy_(x)


def _by_way_of(middle: torch.Tensor) -> Cast:
    def cast(to: torch.Tensor, x: torch.Tensor) -> None:
        part = middle[: x.numel()]
        part.copy_(x)
        to.copy_(part)

    return cast


def _from_e4m3(middle: torch.Tensor | None) -> Cast:
    def cast(to: torch.Tensor, x: torch.Tensor) -> None:
        target = to if middle is None else middle[: x.numel()]
        np.take(_E4M3, x.view(torch.uint8).numpy(), out=target.numpy(), mode="clip")
        if middle is not None:
            to.copy_(target)

    return cast


def store(compute: DType, to: DType) -> Cast:
    """One rounding from the compute dtype to the result's. torch rounds float64 → 16 bits by way of float32, twice."""
    cast = _round_once if compute is DType.F64 and to.size < 4 else _copy
    return _nan_above(cast) if to is DType.F8_E4M3 else cast


def _nan_above(cast: Cast) -> Cast:
    """What float8_e4m3fn cannot hold: torch 2.4 made it NaN, 2.13 makes it the largest number, infinities too. Here it
    is NaN with every version, so that it is counted. 464 is half way above the largest number, and a tie goes down."""

    def store(to: torch.Tensor, x: torch.Tensor) -> None:
        cast(to, x)
        to.view(torch.uint8).masked_fill_(x.abs() > 464, 0x7F)

    return store


def _round_once(to: torch.Tensor, x: torch.Tensor) -> None:
    """float64 to 16 bits or fewer: first to float32 rounding to odd, which keeps what the second rounding must know
    (Boldo and Melquiond 2008, "Emulation of FMA and correctly rounded sums"), then to the target."""
    exact = x.numpy()
    with np.errstate(over="ignore", invalid="ignore"):
        near = exact.astype(np.float32)
        back = near.astype(np.float64)
        bits = near.view(np.int32)
        inexact = (back != exact) & np.isfinite(exact)
        bits -= (inexact & (np.abs(back) > np.abs(exact))).astype(np.int32)  # towards zero
        bits |= inexact.astype(np.int32)
    to.copy_(torch.from_numpy(near))
