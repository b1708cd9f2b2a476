"""Programs with kernels, one tensor at a time: first what its kernels have to know of whole operands, then the result.

Values are made a tile at a time from the inputs' bytes, as often as they are gone through; operands of kernels that
measure are kept in memory where the budget allows, and are then computed once. Nothing of that shows in the bytes:
kernels measure tiles of a fixed length, and everything else is done element by element.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mergeflow.executor.cpu import TORCH, store
from mergeflow.executor.device import Bytes, allocate
from mergeflow.executor.pieces import Piece
from mergeflow.formats.many import ReadFiles
from mergeflow.formats.scan import e4m3_table
from mergeflow.methods.kernels import GRID, Given, formula
from mergeflow.plan.jobs import PIECE, Job, kept_operands
from mergeflow.plan.program import Call, Op, Staged
from mergeflow.tensors import DType

_E4M3 = torch.from_numpy(e4m3_table())
Source = tuple[ReadFiles, int] | Bytes  # a file and where the tensor begins in it; or the tensor's bytes


class Stages:
    """Runs jobs, in one thread. `keep` is how many bytes of operands may be kept between passes."""

    def __init__(self, programs: Sequence[Staged], keep: int) -> None:
        torch.set_num_threads(1)  # per thread: each worker is one core
        self._programs, self._keep = programs, keep
        self._buffers = _Buffers(keep)
        self._out = allocate(PIECE)

    def run(self, job: Job, files: Mapping[int, ReadFiles]) -> Tensor:
        """A job, ready to be gone through."""
        program = self._programs[job.staged]
        if job.wide is not None:
            return _Wide(program, job, files, self._keep, self._buffers, self._out)
        sources = [(files[source], offset) for source, offset in job.reads]
        return Tensor(program, job, job.elements, sources, self._keep, self._buffers, self._out)


class _Buffers:
    """Tiles and bytes by name, made when first asked for and used again by every job of a thread."""

    def __init__(self, keep: int) -> None:
        self._tiles: dict[tuple[object, DType], torch.Tensor] = {}
        self._bytes: dict[int, Bytes] = {}
        self._arena = allocate(keep)

    def tile(self, name: object, dtype: DType, n: int) -> torch.Tensor:
        found = self._tiles.get((name, dtype))
        if found is None:
            found = self._tiles[name, dtype] = torch.empty(GRID, dtype=TORCH[dtype])
        return found if n == GRID else found[:n]

    def whole(self, dtype: DType, n: int, taken: int) -> torch.Tensor:
        """All of an operand, behind the `taken` bytes of others. Memory that is new to the process costs as much as the
        arithmetic, so all jobs of a thread use the same; what none of them needs is never touched."""
        return torch.from_numpy(self._arena[taken : taken + n * dtype.size]).view(TORCH[dtype])

    def bytes(self, slot: int, nbytes: int) -> Bytes:
        found = self._bytes.get(slot)
        if found is None or found.size < nbytes:
            found = self._bytes[slot] = allocate(nbytes)
        return found[:nbytes]


class Tensor:
    """One tensor in the making."""

    def __init__(
        self, program: Staged, job: Job, elements: int, sources: Sequence[Source], keep: int, buffers: _Buffers,
        out: Bytes,
    ) -> None:  # fmt: skip
        self.program, self.job, self.elements = program, job, elements
        self._sources, self._buffers, self._out = sources, buffers, out
        self._inputs = len(program.inputs)
        self._kept: dict[int, torch.Tensor] = {}
        self._found: dict[int, Any] = {}
        self._used_often = _used_often(program)
        self._keep = keep
        self._measure()

    def pieces(self) -> Iterator[Piece]:
        """The result from its beginning to its end."""
        for begin, n, block in self.job.blocks():
            self._make(begin, n, self._out)
            yield Piece(self._out[: block.nbytes], block, begin, n)

    def lost_before_rounding(self, piece: Piece) -> int:
        """How many of a piece's values were not finite before the last rounding."""
        return self._lost(piece.begin, piece.elements)

    # -- the stages ----------------------------------------------------------------------------------------------

    def _measure(self) -> None:
        """What each kernel has to know, inner ones first. Operands that become computable at the same time are kept in
        one pass over the inputs."""
        wanted, taken = kept_operands(self.program), 0
        for index, op in enumerate(self.program.ops):
            if not isinstance(op, Call) or (measure := formula(op.kernel).measure) is None:
                continue
            ready = [o for o in wanted if o not in self._kept and self._computable(o)]
            taken = self._keep_whole(ready, taken)
            wanted = [o for o in wanted if o not in ready]
            self._found[index] = measure(self._given(op), _Passes(self, op))

    def _computable(self, operand: int) -> bool:
        """Whether all kernels below an operand have been measured."""
        for index in self.program.needed([operand], self._kept):
            op = self.program.ops[index]
            if isinstance(op, Call) and formula(op.kernel).measure is not None and index not in self._found:
                return False
        return True

    def _keep_whole(self, operands: Sequence[int], taken: int) -> int:
        """Keep those operands that fit beside what is `taken` already; how many bytes are taken then."""
        whole = {}
        for operand in operands:
            dtype = self._dtype(operand)
            nbytes = -(-self.elements * dtype.size // 64) * 64
            if taken + nbytes <= self._keep:
                whole[operand] = self._buffers.whole(dtype, self.elements, taken)
                taken += nbytes
        for _ in self.tiles(tuple(whole), 0, self.elements if whole else 0, None, into=whole):
            pass
        self._kept.update(whole)
        return taken

    def _make(self, begin: int, n: int, out: Bytes) -> None:
        """The result's elements from `begin` on, as bytes."""
        op, last = self.program.ops[-1], self._inputs + len(self.program.ops) - 1
        result = torch.from_numpy(out[: n * op.to.size]).view(TORCH[op.to])
        if isinstance(op, Call):
            for at, (value,) in self.tiles([last], begin, n, None):
                result[at - begin : at - begin + value.numel()] = value
            return
        cast = store(op.compute, op.to)
        for at, values in self.tiles(op.operands, begin, n, None):
            total = self._sum(op, values, values[0].numel() if values else GRID)
            cast(result[at - begin : at - begin + total.numel()], total)

    def _lost(self, begin: int, n: int) -> int:
        op, last = self.program.ops[-1], self._inputs + len(self.program.ops) - 1
        lost = 0
        operands = (last,) if isinstance(op, Call) else op.operands
        for _, values in self.tiles(operands, begin, n, None):
            total = values[0] if isinstance(op, Call) else self._sum(op, values, values[0].numel())
            lost += int(np.count_nonzero(~np.isfinite(total.numpy())))
        return lost

    # -- values, a tile at a time ----------------------------------------------------------------------------------

    def tiles(
        self, operands: Sequence[int], begin: int, n: int, compute: DType | None, every: int = 1,
        into: Mapping[int, torch.Tensor] | None = None,
    ) -> Iterator[tuple[int, list[torch.Tensor]]]:  # fmt: skip
        """(first element, the operands' values there), tile by tile; of every so-manieth tile only, if asked. Values
        are cast to `compute`, or come as they are. Values that `into` has whole tensors for are put there."""
        order = self.program.needed(operands, self._kept)
        slots = sorted({o for i in order for o in self.program.ops[i].operands if o < self._inputs}
                       | {o for o in operands if o < self._inputs})  # fmt: skip
        span = GRID if every > 1 else max(GRID, PIECE // max([self.program.inputs[s].size for s in slots], default=1))
        for start in range(begin, begin + n, span * every):
            length = min(span, begin + n - start)
            loaded = {slot: self._load(slot, start, length) for slot in slots}
            for at in range(start, start + length, GRID):
                count = min(GRID, start + length - at)
                here = slice(at - start, at - start + count)
                values = {slot: whole[here] for slot, whole in loaded.items()}
                for operand, whole in self._kept.items():
                    values[operand] = whole[at : at + count]
                self._compute(order, values, at, count, into or {})
                found = [values[o] for o in operands]
                if compute is not None:
                    found = [self._cast(x, o, compute) for x, o in zip(found, operands, strict=True)]
                yield at, found

    def _load(self, slot: int, begin: int, n: int) -> torch.Tensor:
        dtype, source = self.program.inputs[slot], self._sources[slot]
        if isinstance(source, tuple):
            data = self._buffers.bytes(slot, n * dtype.size)
            source[0].read_into(data.data, source[1] + begin * dtype.size)
        else:
            data = source[begin * dtype.size : (begin + n) * dtype.size]
        return torch.from_numpy(data).view(TORCH[dtype])

    def _compute(
        self, order: Sequence[int], values: dict[int, torch.Tensor], at: int, n: int, into: Mapping[int, torch.Tensor]
    ) -> None:
        for slot in self._used_often & values.keys():
            values[slot] = self._cast(values[slot], slot, self._used_in(slot))
        for index in order:
            op = self.program.ops[index]
            whole = into.get(self._inputs + index)
            out = self._buffers.tile(index, op.to, n) if whole is None else whole[at : at + n]
            if isinstance(op, Op):
                total = self._sum(op, [values[o] for o in op.operands], n, out if op.to is op.compute else None)
                if op.to is not op.compute:
                    store(op.compute, op.to)(out, total)
            else:
                inputs = [self._cast(values[o], o, op.to) for o in op.operands]
                formula(op.kernel).apply(self._given(op), self._found.get(index), inputs, at, out)
            values[self._inputs + index] = out

    def _sum(self, op: Op, values: Sequence[torch.Tensor], n: int, out: torch.Tensor | None = None) -> torch.Tensor:
        """As the fused sums of a device: separate multiplications and additions, then the division."""
        total = self._buffers.tile("total", op.compute, n) if out is None else out
        scratch, compute = self._buffers.tile("scratch", op.compute, n), TORCH[op.compute]
        if not values:
            return total.zero_()
        for i, ((share, _), x) in enumerate(zip(op.terms, values, strict=True)):
            if share in (1, -1) and i and x.dtype is compute:
                total.add_(x) if share == 1 else total.sub_(x)
                continue
            into = scratch if i else total
            if x.dtype is compute and share != 1:
                torch.mul(x, torch.tensor(float(share), dtype=compute), out=into)
            else:
                _widen(into, x)
                if share != 1:
                    into.mul_(torch.tensor(float(share), dtype=compute))
            if i:
                total.add_(scratch)
        if op.divisor != 1:
            total.div_(torch.tensor(float(op.divisor), dtype=compute))
        return total

    def _cast(self, x: torch.Tensor, operand: int, compute: DType) -> torch.Tensor:
        if x.dtype is TORCH[compute]:
            return x
        return _widen(self._buffers.tile(("cast", operand), compute, x.numel()), x)

    def _used_in(self, slot: int) -> DType:
        return next(_compute_of(op) for op in self.program.ops if slot in op.operands)

    def _dtype(self, operand: int) -> DType:
        return self.program.ops[operand - self._inputs].to

    def _given(self, call: Call) -> Given:
        return Given(
            dict(call.arguments), call.weights, dict(call.options), call.to, self.elements, call.seed, self.job.name,
            self._shape(),
        )  # fmt: skip

    def _shape(self) -> tuple[int, ...]:
        """Of what the kernels see."""
        shape, wide = self.job.shape, self.job.wide
        return shape if wide is None else (shape[0], wide.narrow, *shape[2:])


class _Passes:
    """A kernel's operands, for measuring: from the beginning, GRID elements at a time."""

    def __init__(self, tensor: Tensor, call: Call) -> None:
        self._tensor, self._call, self.elements = tensor, call, tensor.elements

    def tiles(self, every: int = 1) -> Iterator[Sequence[torch.Tensor]]:
        for _, values in self._tensor.tiles(self._call.operands, 0, self.elements, self._call.to, every):
            yield values


class _Wide(Tensor):
    """A first convolution with more channels than the other models have: the kernels see the channels that all have,
    the rest is the primary's. Small enough to hold whole."""

    def __init__(
        self, program: Staged, job: Job, files: Mapping[int, ReadFiles], keep: int, buffers: _Buffers, out: Bytes
    ) -> None:
        wide = job.wide
        assert wide is not None
        raw = []
        for (source, offset), is_wide, dtype in zip(
            job.reads, (*job.wide_inputs, True), (*program.inputs, job.wide_dtype), strict=True
        ):
            assert dtype is not None
            channels = wide.channels if is_wide else wide.narrow
            data = np.empty(wide.outer * channels * wide.inner * dtype.size, np.uint8)
            files[source].read_into(data.data, offset)
            raw.append(data.reshape(wide.outer, channels, wide.inner * dtype.size))
        narrow = [np.ascontiguousarray(data[:, : wide.narrow]).reshape(-1) for data in raw[:-1]]
        self._own = raw[-1].reshape(-1)
        super().__init__(program, job, wide.outer * wide.narrow * wide.inner, narrow, keep, buffers, out)

    def pieces(self) -> Iterator[Piece]:
        wide, dtype = self.job.wide, self.job.dtype
        assert wide is not None
        assert self.job.wide_dtype is not None
        merged = np.empty(self.elements * dtype.size, np.uint8)
        self._make(0, self.elements, merged)
        own = torch.from_numpy(self._own).view(TORCH[self.job.wide_dtype])
        whole = np.empty(self.job.elements * dtype.size, np.uint8)
        exact = _widen(torch.empty(own.numel(), dtype=torch.float64), own)
        store(DType.F64, dtype)(torch.from_numpy(whole).view(TORCH[dtype]), exact)
        rows = whole.reshape(wide.outer, wide.channels, wide.inner * dtype.size)
        rows[:, : wide.narrow] = merged.reshape(wide.outer, wide.narrow, wide.inner * dtype.size)
        for begin, n, block in self.job.blocks():
            yield Piece(whole[begin * dtype.size :][: block.nbytes], block, begin, n)

    def lost_before_rounding(self, piece: Piece) -> int:
        """Counted over the whole tensor, with its first piece."""
        return self._lost(0, self.elements) if not piece.begin else 0


def _widen(to: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Values in a wider dtype, exactly. torch casts float8_e4m3fn forty times slower than a table gives it."""
    if x.dtype is torch.float8_e4m3fn:
        return to.copy_(_E4M3[x.view(torch.uint8).int()])
    return to.copy_(x)


def _compute_of(op: Op | Call) -> DType:
    return op.to if isinstance(op, Call) else op.compute


def _used_often(program: Staged) -> frozenset[int]:
    """Inputs that several operations take, all in one dtype: they are cast once."""
    found = set()
    for slot in range(len(program.inputs)):
        dtypes = [_compute_of(op) for op in program.ops if slot in op.operands]
        if len(dtypes) > 1 and len(set(dtypes)) == 1 and program.inputs[slot] is not dtypes[0]:
            found.add(slot)
    return frozenset(found)
