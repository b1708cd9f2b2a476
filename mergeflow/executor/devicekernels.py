"""Kernels on an accelerator: what compiled.py does on the CPU, a span at a time, by torch calls on the device's memory.

Only kernels that say what they come to as data (`mergeflow.methods.compiled`) are computed there: sums, trims,
elections, masks, and the running sums and ranks that these need (torchkernels.py). A program is tried on numbers before
its first use (parity.py), and left to the CPU if it gives other bytes.

All that a worker does here is in one stream, and every copy is waited for: while it waits, other workers' tensors are
on their way. A device without memory for a tensor leaves that, or what is left of it, to the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, final

import torch

from mergeflow.executor.cpu import TORCH
from mergeflow.executor.device import Bytes, DeviceFull
from mergeflow.executor.masks import Mask
from mergeflow.executor.pieces import Making, Piece
from mergeflow.executor.torchkernels import BITS, added, dots, elected, lengths, rank, trimmed
from mergeflow.executor.torchsums import Sums
from mergeflow.formats.many import ReadFiles
from mergeflow.methods.compiled import Dots, Drop, Elect, Operation, Rank, Statistic, Sum, Trim
from mergeflow.methods.kernels import Given, formula
from mergeflow.plan.jobs import PIECE, SPAN_THERE, Job, is_compiled
from mergeflow.plan.program import Call, Op, Staged
from mergeflow.tensors import DType

if TYPE_CHECKING:
    from mergeflow.executor.driver import Driver, Memory


@final
class DeviceKernels:
    """Runs jobs on one accelerator, in one thread. `agrees` says of a program whether the device has been seen to give
    the CPU's bytes; `spilled` is told when it has no memory for a tensor."""

    def __init__(
        self, driver: Driver, programs: Sequence[Staged], agrees: Callable[[Staged], bool], spilled: Callable[[], None]
    ) -> None:
        self._driver, self._programs, self._agrees, self._spilled = driver, programs, agrees, spilled
        self._place: _Place | None = None

    def run(self, job: Job, files: Mapping[int, ReadFiles], host: Callable[[], Making]) -> Making | None:
        """A job, ready to be gone through; None where the CPU has to do it. `host` makes it there, should the device
        run out of memory on the way."""
        program = self._programs[job.staged]
        if job.wide is not None or not is_compiled(program) or not self._agrees(program):
            return None
        return self._begun(program, job, files, host) or self._host(host)

    def close(self) -> None:
        place, self._place = self._place, None
        if place is not None:
            place.drop()

    def _begun(
        self, program: Staged, job: Job, files: Mapping[int, ReadFiles], host: Callable[[], Making]
    ) -> _Tensor | None:
        """None where there is no memory for it. The CPU begins once the error is gone, and with it what it holds."""
        try:
            self._place = self._place or _Place(self._driver)
            return _Tensor(self._place, program, job, files, lambda: self._host(host))
        except DeviceFull:
            return None

    def _host(self, host: Callable[[], Making]) -> Making:
        """What is left to the CPU; the device's memory is for others meanwhile."""
        self.close()
        self._spilled()
        return host()


class _Place:
    """What one worker has of its device: a stream, and buffers made when first asked for."""

    def __init__(self, driver: Driver) -> None:
        self.driver, self.stream, self.sums = driver, driver.stream(), Sums(driver.device)
        self.out = driver.pinned(PIECE)
        self._hosts: dict[int, Bytes] = {}
        self._slots: dict[int, Memory] = {}
        self._numbers: dict[tuple[float, DType], torch.Tensor] = {}

    def slot(self, i: int, nbytes: int) -> tuple[Bytes, Memory]:
        """Of the machine's memory and of the device's, what an input is read into and copied to."""
        if i not in self._hosts or self._hosts[i].size < nbytes:
            self._slots.pop(i, None)
            self._hosts[i], self._slots[i] = self.driver.pinned(nbytes), self.driver.memory(nbytes)
        return self._hosts[i][:nbytes], self._slots[i][:nbytes]

    def number(self, x: float, compute: DType) -> torch.Tensor:
        """One on the device: with numbers of the CPU torch divides by way of a reciprocal."""
        if (x, compute) not in self._numbers:
            self._numbers[x, compute] = torch.tensor(x, dtype=TORCH[compute], device=self.driver.device)
        return self._numbers[x, compute]

    def drop(self) -> None:
        self.driver.finish(self.stream)
        self._slots.clear()
        self._numbers.clear()
        self.driver.release()


class _Tensor:
    """One tensor in the making. Operands are numbered as in its program."""

    def __init__(
        self, place: _Place, program: Staged, job: Job, files: Mapping[int, ReadFiles], host: Callable[[], Making]
    ) -> None:
        self._place, self._program, self._job, self._host = place, program, job, host
        self._sources = [(files[source], offset) for source, offset in job.reads]
        self._inputs = len(program.inputs)
        self._operations: dict[int, Operation] = {}  # of the calls, once what they depend on is known
        self._masks: dict[int, Mask] = {}
        self._rest: Making | None = None  # once the CPU has taken over
        with place.driver.here(place.stream):
            for index, op in enumerate(program.ops):  # inner ones come first
                if isinstance(op, Call):
                    self._settle(index, op)

    def pieces(self) -> Iterator[Piece]:
        """The result from its beginning to its end."""
        for begin, n, block in self._job.blocks():
            if self._there(partial(self._make, begin, n)) is None:
                yield from (piece for piece in self._on_cpu().pieces() if piece.begin >= begin)
                return
            yield Piece(self._place.out[: block.nbytes], block, begin, n)

    def lost_before_rounding(self, piece: Piece) -> int:
        """How many of a piece's values were not finite before the last rounding."""
        lost = self._there(lambda: self._lost(piece.begin, piece.elements))
        return self._on_cpu().lost_before_rounding(piece) if lost is None else lost

    def _there(self, work: Callable[[], int]) -> int | None:
        """Something done on the device; None where the CPU has taken over, or has to."""
        if self._rest is not None:
            return None
        try:
            with self._place.driver.here(self._place.stream):
                return work()
        except DeviceFull:
            return None

    def _on_cpu(self) -> Making:
        if self._rest is None:
            self._rest = self._host()
        return self._rest

    def _make(self, begin: int, n: int) -> int:
        """The result's elements from `begin` on, as bytes in `out`; how many."""
        place, width = self._place, self._program.out.size
        for at, (result,) in self._spans([self._inputs + len(self._program.ops) - 1], begin, n):
            first = (at - begin) * width
            data = result.view(torch.uint8)
            place.driver.download(place.stream, place.out[first : first + data.numel()], data)
            place.driver.finish(place.stream)
        return n

    def _lost(self, begin: int, n: int) -> int:
        op, last = self._program.ops[-1], self._inputs + len(self._program.ops) - 1
        lost = 0
        for at, values in self._spans([last] if isinstance(op, Call) else sorted(set(op.operands)), begin, n):
            total = values[0]
            if isinstance(op, Op):
                operands = dict(zip(sorted(set(op.operands)), values, strict=True))
                total = self._sum(replace(op, to=op.compute), operands, min(SPAN_THERE, begin + n - at))
            lost += int(torch.isfinite(total).logical_not_().sum())
        return lost

    # -- what kernels have to know -----------------------------------------------------------------------------------

    def _settle(self, index: int, call: Call) -> None:
        """What a kernel comes to for this tensor."""
        job, compiled = self._job, formula(call.kernel).compiled
        assert compiled is not None
        given = Given(
            dict(call.arguments), call.weights, dict(call.options), call.to, job.elements, call.seed, job.name,
            job.shape,
        )  # fmt: skip
        statistic = compiled.statistic(given)
        found = None if statistic is None else self._found(statistic, call)
        operation = self._operations[index] = compiled.operation(given, found)
        if isinstance(operation, Drop) and operation.density < 1:
            self._masks[index] = Mask(operation)

    def _found(self, statistic: Statistic, call: Call) -> object:
        """What `mergeflow.methods` finds with torch on the CPU (`selection`, `gram`, `sums`)."""

        def seen() -> Iterator[tuple[int, list[torch.Tensor]]]:
            return self._seen(call)

        driver, n, count = self._place.driver, self._job.elements, len(call.operands)
        if isinstance(statistic, Rank):
            bits = driver.memory(n * call.to.size).view(BITS[call.to])
            return rank(statistic.k, seen(), bits, call.to)
        if isinstance(statistic, Dots):
            return dots(seen, count, driver.device, from_first=statistic.from_first)
        return lengths(seen, count, driver.device)

    def _seen(self, call: Call) -> Iterator[tuple[int, list[torch.Tensor]]]:
        """A kernel's operands in its compute dtype, from the beginning."""
        for at, values in self._spans(call.operands, 0, self._job.elements):
            yield at, [x.to(TORCH[call.to]) for x in values]

    # -- values, a span at a time ------------------------------------------------------------------------------------

    def _spans(self, operands: Sequence[int], begin: int, n: int) -> Iterator[tuple[int, list[torch.Tensor]]]:
        """(first element, the operands' values there). They hold until the next is asked for."""
        order = self._program.needed(operands)
        slots = sorted({o for i in order for o in self._program.ops[i].operands if o < self._inputs} | {
            o for o in operands if o < self._inputs
        })  # fmt: skip
        for at in range(begin, begin + n, SPAN_THERE):
            count = min(SPAN_THERE, begin + n - at)
            values = self._loaded(slots, at, count)
            for index in order:
                values[self._inputs + index] = self._computed(index, values, at, count)
            yield at, [values[o] for o in operands]

    def _loaded(self, slots: Sequence[int], begin: int, n: int) -> dict[int, torch.Tensor]:
        """Inputs, read and copied there. The copies are waited for: the next span is read into the same memory."""
        place, found = self._place, {}
        for slot in slots:
            dtype, (file, offset) = self._program.inputs[slot], self._sources[slot]
            host, there = place.slot(slot, n * dtype.size)
            file.read_into(host.data, offset + begin * dtype.size)
            place.driver.upload(place.stream, there, host)
            found[slot] = there.view(TORCH[dtype])
        place.driver.finish(place.stream)
        return found

    def _computed(self, index: int, values: Mapping[int, torch.Tensor], at: int, n: int) -> torch.Tensor:
        op = self._program.ops[index]
        if isinstance(op, Op):
            return self._sum(op, values, n)
        operands = [values[o].to(TORCH[op.to]) for o in op.operands]
        what, number = self._operations[index], partial(self._place.number, compute=op.to)
        if isinstance(what, Sum):
            return added(what, operands, number)
        if isinstance(what, Elect):
            return elected(what, operands, number)
        if isinstance(what, Trim):
            return trimmed(what, operands[0], number)
        kept = operands[0]
        return torch.where(self._mask(index, at, n), kept, number(0.0)) if index in self._masks else kept

    def _sum(self, op: Op, values: Mapping[int, torch.Tensor], n: int) -> torch.Tensor:
        result = torch.empty(n, dtype=TORCH[op.to], device=self._place.driver.device)
        if not op.terms:
            return result.zero_()
        self._place.sums.add_up(op, values, result)
        return result

    def _mask(self, index: int, at: int, n: int) -> torch.Tensor:
        host, there = self._place.slot(-1 - index, n)
        self._masks[index].write(at, host)
        self._place.driver.upload(self._place.stream, there, host)
        self._place.driver.finish(self._place.stream)
        return there.view(torch.bool)
