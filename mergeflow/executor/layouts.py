"""Packed programs of one program with kernels: what computes some of its operands, for those who ask for them.

Tensors of which the same was found have the same, so they are kept: a model has hundreds of tensors and few programs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from mergeflow.executor.packing import BY_COUNT, ELECT, LOST, MEAN, SUM, TRIM, ZERO, Packed, joined, pack
from mergeflow.executor.searches import Ask
from mergeflow.methods.compiled import Elect, Operation, Sum, Trim
from mergeflow.plan.program import Call, Op, Staged
from mergeflow.tensors import DType

_KEPT = 64  # of a program


class Layout(NamedTuple):
    """A packed program; the inputs that it takes, each with the bytes of an element; the operations that its masks are
    of."""

    program: bytes
    slots: tuple[tuple[int, int], ...]
    masks: tuple[int, ...]


class Layouts:
    """Those of one program. Operands are numbered as in it."""

    def __init__(self, program: Staged) -> None:
        self.program = program
        self._inputs = len(program.inputs)
        self._kept: dict[object, Layout] = {}

    def layout(
        self, operands: Sequence[int], asked: Sequence[tuple[Call, Ask]], operations: Mapping[int, Operation],
        masked: Collection[int], result: int | None,
    ) -> Layout:  # fmt: skip
        """What computes these operands for those who ask. `operations` are those of the calls that are known, `masked`
        those that have a mask. With a `result` (SUM or LOST) there is one operand, the program's last, which goes to
        the only buffer or of which is counted what is not finite."""
        key = (
            tuple(operands), tuple([(call.operands, call.to, ask.what) for call, ask in asked]), result,
            tuple([i in masked or repr(operations[i]) for i in sorted(operations)]),  # 0.0 == -0.0, but not as text
        )  # fmt: skip
        found = self._kept.get(key)
        if found is None:
            if len(self._kept) >= _KEPT:
                self._kept.clear()
            found = self._kept[key] = self._made(operands, asked, operations, masked, result)
        return found

    def _made(
        self, operands: Sequence[int], asked: Sequence[tuple[Call, Ask]], operations: Mapping[int, Operation],
        masked: Collection[int], result: int | None,
    ) -> Layout:  # fmt: skip
        order = self.program.needed(operands)
        ops = self.program.ops
        slots = sorted({o for i in order for o in ops[i].operands if o < self._inputs} | {
            o for o in operands if o < self._inputs
        })  # fmt: skip
        masks = [i for i in order if i in masked]
        inputs = len(slots) + len(masks)
        numbers = {slot: n for n, slot in enumerate(slots)}
        packed: list[Packed] = []
        for index in order:
            mask = len(slots) + masks.index(index) if index in masked else -1
            numbers[self._inputs + index] = inputs + len(packed)
            packed.append(_packed(ops[index], operations.get(index), numbers, mask))
        if result == SUM:
            packed[-1] = packed[-1]._replace(out=0)
        elif result == LOST and packed[-1].kind == SUM:
            packed[-1] = packed[-1]._replace(kind=LOST)
        elif result == LOST:
            last = packed[-1]
            packed.append(Packed(LOST, last.compute, last.to, ((1.0, numbers[operands[0]]),)))
        for out, (call, ask) in enumerate(asked):
            terms = []
            for k in ask.operands:
                operand = call.operands[k]
                number = numbers[operand]
                if self._dtype(operand) is DType.F64 and call.to is DType.F32:  # what the kernel sees is rounded
                    number = inputs + len(packed)
                    packed.append(Packed(SUM, DType.F32, DType.F32, ((1.0, numbers[operand]),)))
                terms.append((1.0, number))
            packed.append(
                Packed(ask.kind, ask.compute, ask.compute, tuple(terms), 1.0, out, ask.flags, ask.low, ask.high)
            )
        dtypes = [self.program.inputs[slot] for slot in slots]
        program = pack(joined(packed, inputs), [*dtypes, *([None] * len(masks))])
        sizes = [dtype.size for dtype in dtypes]
        return Layout(program, tuple(zip(slots, sizes, strict=True)), tuple(masks))

    def _dtype(self, operand: int) -> DType:
        index = operand - self._inputs
        return self.program.inputs[operand] if index < 0 else self.program.ops[index].to


def _packed(op: Op | Call, what: Operation | None, numbers: Mapping[int, int], mask: int) -> Packed:
    """One operation of the program, with its operands' numbers; `what` a call comes to."""
    if isinstance(op, Op):
        terms = tuple([(float(share), numbers[o]) for share, o in op.terms])
        return Packed(SUM if terms else ZERO, op.compute, op.to, terms, float(op.divisor))
    operands = [numbers[o] for o in op.operands]
    if isinstance(what, Sum):
        terms = tuple([(share, operands[k]) for k, share in what.terms])
        return Packed(SUM if terms else ZERO, op.to, op.to, terms)
    if isinstance(what, Trim):
        if what.above is None:
            return Packed(ZERO, op.to, op.to, ())
        return Packed(TRIM, op.to, op.to, ((1.0, operands[0]),), what.above)
    if isinstance(what, Elect):
        terms = tuple(zip(what.shares, operands, strict=True))
        flags = (BY_COUNT if what.by_count else 0) | (MEAN if what.mean else 0)
        return Packed(ELECT, op.to, op.to, terms, what.divisor, flags=flags)
    return Packed(SUM, op.to, op.to, ((1.0, operands[0]),), mask=mask)  # all of it, where there is no mask
