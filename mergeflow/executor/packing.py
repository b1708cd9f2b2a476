"""Programs as the compiled modules read them: the layout is in _values.h, what each kind of operation does in
_kernels.c."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from mergeflow.plan.program import Program
from mergeflow.tensors import DType

SUM, ZERO, TRIM, ELECT, DROP, LOST, COUNT, TALLY, DOTS, LENGTH = range(10)
BY_COUNT, MEAN, FROM_FIRST = 1, 2, 1
MASK = 6  # in the place of a dtype
_NUMBER = {dtype: i for i, dtype in enumerate(
    (DType.F64, DType.F32, DType.F16, DType.BF16, DType.F8_E4M3, DType.F8_E5M2)
)}  # fmt: skip


class Packed(NamedTuple):
    """One operation. Terms are (share, operand); a `mask` is one operand more. `out`: the number of the buffer that it
    writes to, -1 where its result is for later operations alone."""

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
    """Operations over inputs of these dtypes, None being a mask."""
    numbers = [MASK if dtype is None else _NUMBER[dtype] for dtype in inputs]
    parts = [struct.pack("=ii", len(ops), 0)]
    for op in ops:
        terms = [*op.terms, *([] if op.mask < 0 else [(1.0, op.mask)])]
        parts.append(
            struct.pack(
                "=iiiiiidqq", _NUMBER[op.compute], _NUMBER[op.to], len(terms), op.kind, op.out, op.flags, op.divisor,
                op.low, op.high,
            )
        )  # fmt: skip
        parts += [struct.pack("=iid", operand, numbers[operand], share) for share, operand in terms]
        numbers.append(_NUMBER[op.to])
    return b"".join(parts)


def pack_program(program: Program) -> bytes:
    """A program of sums."""
    ops = [
        Packed(SUM, op.compute, op.to, tuple([(float(share), o) for share, o in op.terms]), float(op.divisor))
        for op in program.ops
    ]
    return pack(ops, program.inputs)
