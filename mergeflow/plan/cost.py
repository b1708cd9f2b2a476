"""What it costs to compute a tensor, and what to keep it: the model by which results of methods are stored, or not.

    computing   Σ over kernels of cost·operands·elements, and SUM ns for each term of a sum, over the workers;
                the bytes of the inputs at the rate of reading
    keeping     the bytes of the result at the rate of writing, and once more at the rate of reading

A result is worth keeping when to compute it again would take longer than FACTOR times keeping it. Kernels state their
cost in nanoseconds for an element of an operand (measured on one core); the rates are those of the folder that the
store is in, measured once and remembered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mergeflow.methods.kernels import formula
from mergeflow.plan.program import Call, Op
from mergeflow.tensors import DType

SUM = 0.3  # ns for an element of a term: torch's casts, multiplications and additions in a warm cache
FACTOR = 1.5


@dataclass(frozen=True, slots=True)
class Rates:
    """Bytes per second: of reading what was read lately, and of writing with a sync at the end."""

    read: float = 2.0e9
    write: float = 1.0e9


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds that it takes to compute something once, and to store it and read it back."""

    compute: float = 0.0
    keep: float = 0.0

    @property
    def worth_it(self) -> bool:
        return self.compute > FACTOR * self.keep

    def __str__(self) -> str:
        return f"computing it takes {_told(self.compute)}, keeping it {_told(self.keep)}"

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(self.compute + other.compute, self.keep + other.keep)


def _told(seconds: float) -> str:
    if seconds < 0.0995:
        return f"{seconds * 1000:.0f} ms" if seconds >= 0.0005 else "less than a millisecond"
    return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:,.0f} s"


def estimate(
    inputs: Sequence[DType], ops: Sequence[Op | Call], elements: int, out: DType, rates: Rates, workers: int
) -> Estimate:
    """Of a program whose result has so many elements."""
    arithmetic = sum(_nanoseconds(op) for op in ops) * elements * 1e-9 / workers
    read = sum(dtype.size for dtype in inputs) * elements / rates.read
    kept = out.size * elements
    return Estimate(arithmetic + read, kept / rates.write + kept / rates.read)


def _nanoseconds(op: Op | Call) -> float:
    if isinstance(op, Op):
        return SUM * len(op.terms)
    return formula(op.kernel).kernel.cost * len(op.operands)
