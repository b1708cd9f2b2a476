"""Programs as data: straight lines over tiles, the same for every tensor of the same formula and dtypes."""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable, Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from math import prod
from typing import NamedTuple, TypeVar

from mergeflow.ir.kernels import Choice
from mergeflow.tensors import DType

T = TypeVar("T", bound=Hashable)
COPY, ZERO, CONSTANT, STAGED = -1, -2, -3, -4  # what a tensor's `program` can be instead of the number of one


@dataclass(frozen=True, slots=True)
class Op:
    """(Σ share·operand) / divisor in `compute`, rounded once to `to`.

    Operands count the program's inputs first, then the results of earlier ops. Shares are integers, or, where an
    integer would not be exact in `compute`, fractions already rounded to it (and the divisor is 1).
    """

    terms: tuple[tuple[Fraction, int], ...]
    divisor: int
    compute: DType
    to: DType

    @property
    def operands(self) -> tuple[int, ...]:
        return tuple([operand for _, operand in self.terms])

    def renumbered(self, number: Callable[[int], int]) -> Op:
        return Op(tuple([(share, number(o)) for share, o in self.terms]), self.divisor, self.compute, self.to)


@dataclass(frozen=True, slots=True)
class Call:
    """A kernel by name, applied to operands in `to`, the compute dtype; the result has it too. What depends on the
    tensor (its name, its length) is not part of it."""

    kernel: str
    operands: tuple[int, ...]
    arguments: tuple[tuple[str, Fraction], ...]
    weights: tuple[Fraction, ...]
    options: tuple[tuple[str, Choice], ...]
    seed: int
    to: DType

    def renumbered(self, number: Callable[[int], int]) -> Call:
        return replace(self, operands=tuple(map(number, self.operands)))


@dataclass(frozen=True, slots=True)
class Staged:
    """A program with kernels in it, numbered like a Program's ops. It is run in stages: what kernels have to know of
    whole tensors first."""

    inputs: tuple[DType, ...]
    ops: tuple[Op | Call, ...]

    @property
    def out(self) -> DType:
        return self.ops[-1].to

    def needed(self, operands: Iterable[int], known: Container[int] = ()) -> list[int]:
        """The operations that operands come from, in order, without those whose results are `known` operands."""
        needed: set[int] = set()
        stack = list(operands)
        while stack:
            operand = stack.pop()
            index = operand - len(self.inputs)
            if index >= 0 and index not in needed and operand not in known:
                needed.add(index)
                stack += self.ops[index].operands
        return sorted(needed)


@dataclass(frozen=True, slots=True)
class Program:
    """`inputs` are the dtypes of its operands; the last op's result is the output."""

    inputs: tuple[DType, ...]
    ops: tuple[Op, ...]

    @property
    def out(self) -> DType:
        return self.ops[-1].to


class Numbered(list[T]):
    """Values by number: those that are equal have one, their place in the list."""

    def __init__(self) -> None:
        super().__init__()
        self._numbers: dict[T, int] = {}

    def number(self, value: T) -> int:
        """Adds it where it is new."""
        number = self._numbers.setdefault(value, len(self))
        if number == len(self):
            self.append(value)
        return number


class Wide(NamedTuple):
    """A first convolution with more input channels than the other models have: the program runs on the first
    `narrow` of `channels`, the rest is the primary's. `outer` rows of `inner` elements per channel."""

    outer: int
    channels: int
    narrow: int
    inner: int


class TensorWork(NamedTuple):
    """One tensor of an output: its key and how to make it. `reads` are (source, byte offset) per program input; for
    COPY the one to copy. `wide` has the primary as one more read at the end."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    key: str
    program: int
    reads: tuple[tuple[int, int], ...]
    wide: Wide | None = None
    wide_inputs: tuple[bool, ...] = ()
    wide_dtype: DType | None = None
    data: bytes = b""  # the whole of a CONSTANT
    staged: int = -1  # the number of its program among those with kernels, where `program` is STAGED
    values: tuple[str, ...] = ()  # keys of its operations' results in the compute dtype, where they may be in the store
    payload: bytes = b""  # the digest that copied bytes must have, where they come from an earlier build

    @property
    def computed(self) -> bool:
        """Whether arithmetic is done on what it reads."""
        return self.program >= 0 or self.program == STAGED

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.size


def rounded_share(share: Fraction, bits: int) -> Fraction:
    """The nearest number with so many significant bits, ties to even, as a fraction (exact in that dtype)."""
    if share == 0:
        return share
    n, d = abs(share.numerator), share.denominator
    shift = bits - (n.bit_length() - d.bit_length())
    scaled = Fraction(n << shift, d) if shift >= 0 else Fraction(n, d << -shift)
    if scaled >= 1 << bits:
        shift -= 1
        scaled /= 2
    value = Fraction(round(scaled))  # Python rounds halves to even
    value = value / (1 << shift) if shift >= 0 else value * (1 << -shift)
    return value if share > 0 else -value


def make_op(terms: list[tuple[int, int]], divisor: int, compute: DType, to: DType) -> Op:
    """Terms are (integer, operand). Integers stay where all of them are exact in the compute dtype."""
    limit = 1 << compute.bits
    if divisor <= limit and all(abs(n) <= limit for n, _ in terms):
        return Op(tuple((Fraction(n), operand) for n, operand in terms), divisor, compute, to)
    rounded = tuple((rounded_share(Fraction(n, divisor), compute.bits), operand) for n, operand in terms)
    return Op(rounded, 1, compute, to)
