"""Programs as the compiled modules read them: the layout is in _values.h, what each kind of operation does in
_kernels.c."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from mergeflow.plan.program import Program
from mergeflow.tensors import DType

SUM, ZERO, TRIM, ELECT, LOST, COUNT, TALLY, DOTS, LENGTH = range(9)
BY_COUNT, MEAN, FROM_FIRST = 1, 2, 1
_NUMBER = {dtype: i for i, dtype in enumerate(
    (DType.F64, DType.F32, DType.F16, DType.BF16, DType.F8_E4M3, DType.F8_E5M2)
)}  # fmt: skip


class Packed(NamedTuple):
    """One operation. Terms are (share, operand). `out`: the number of the buffer that it writes to, -1 where its result
    is for later operations alone. `mask`: of a sum, the number of the input that says where it is 0, or -1."""

    kind: int
    compute: DType
    to: DType
    terms: tuple[tuple[float, int], ...]
    divisor: float = 1.0
    out: int = -1
    flags: int = 0
    low: int = 0
    high: int = 0
    mask: int = -1


def pack(ops: Sequence[Packed], inputs: Sequence[DType | None]) -> bytes:
    """Operations over inputs of these dtypes; masks, which no term is made of, have none."""
    numbers = [-1 if dtype is None else _NUMBER[dtype] for dtype in inputs]
    parts = [struct.pack("=ii", len(ops), 0)]
    for op in ops:
        parts.append(
            struct.pack(
                "=iiiiiiiidqq", _NUMBER[op.compute], _NUMBER[op.to], len(op.terms), op.kind, op.out, op.flags, op.mask,
                0, op.divisor, op.low, op.high,
            )
        )  # fmt: skip
        parts += [struct.pack("=iid", operand, numbers[operand], share) for share, operand in op.terms]
        numbers.append(_NUMBER[op.to])
    return b"".join(parts)


def joined(ops: Sequence[Packed], inputs: int) -> list[Packed]:
    """The same without those sums that only one other takes, alone and as they are: its rounding or its mask becomes
    part of them. `inputs` is how many operands come before the first operation's result."""
    uses = Counter([operand for op in ops for _, operand in op.terms])
    whole: list[Packed] = []  # each operation, with what became part of it
    gone: set[int] = set()
    for op in ops:
        below = op.terms[0][1] if len(op.terms) == 1 else -1
        if below >= inputs and uses[below] == 1 and _is_part(op, whole[below - inputs]):
            gone.add(below)
            part = whole[below - inputs]
            op = part._replace(kind=op.kind, to=op.to, out=op.out, mask=max(op.mask, part.mask))
        whole.append(op)
    kept = [number for number in range(inputs, inputs + len(whole)) if number not in gone]
    numbers = {number: inputs + i for i, number in enumerate(kept)}
    return [
        whole[number - inputs]._replace(
            terms=tuple([(share, numbers.get(o, o)) for share, o in whole[number - inputs].terms])
        )
        for number in kept
    ]


def _is_part(op: Packed, below: Packed) -> bool:
    """Whether an operation does no more to the sum below it than round or mask what that computes."""
    return (
        op.kind in (SUM, LOST)
        and op.terms[0][0] == 1
        and op.divisor == 1
        and below.kind == SUM
        and below.out < 0
        and below.to is below.compute is op.compute
        and (op.mask < 0 or below.mask < 0)
    )


def pack_program(program: Program) -> bytes:
    """A program of sums."""
    ops = [
        Packed(SUM, op.compute, op.to, tuple([(float(share), o) for share, o in op.terms]), float(op.divisor))
        for op in program.ops
    ]
    return pack(ops, program.inputs)
