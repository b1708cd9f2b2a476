"""A form, point by point, as operations on its sources; and the text of each, whose hash is a key.

What differs from tensor to tensor is left open in the texts: digests, and the keys of inner operations. So tensors of
the same dtypes, of which the same sources hold equal ones, share an outline, and what is done for each of fifty
thousand is to fill it in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import lcm
from typing import NamedTuple, TypeVar

from mergeflow.digest import NUMERICS, action_key
from mergeflow.ir.forms import Applied, Form, Point, Rounded, inner_first
from mergeflow.plan.program import Call, Op, make_op
from mergeflow.tensors import DType

Step = Op | Call
Identity = tuple[int, DType | None, DType]  # of a point of a form
Order = tuple[int, ...]
S = TypeVar("S", Op, Op | Call)
_EMPTY = action_key("")  # what zeros are put in order by, among the operands of a kernel


class Value(NamedTuple):
    """What a form comes down to. Equal `name`s are equal values: the number of a source, or of an operation after all
    sources. `operand` is a source (>= 0), an operation (< 0, ~number), or None for zero."""

    name: int
    operand: int | None
    dtype: DType


NONE = -1  # the name of a value that is zero


class Operation(NamedTuple):
    """A step with its operands by their names. `text` and `value` (before it is rounded) have %s for each, and for what
    `about` the tensor they say besides; both are '' of zeros. `ranks`: where operands are to be put into the order of
    their content, those that may change places have one rank; else there are none."""

    step: Step
    names: tuple[int, ...]
    text: str
    value: str
    ranks: tuple[int, ...] = ()
    zeros: bool = False  # whether some of the operands are
    about: tuple[str, ...] = ()  # `name`, `shape`


class Filled(NamedTuple):
    """An outline for one tensor. `names` are digests and keys, `given` what the text of each operation is filled with,
    `orders` those of the operands of operations that have ranks."""

    names: list[str]
    given: list[tuple[str, ...]]
    orders: tuple[Order, ...]


@dataclass(frozen=True, slots=True)
class Outline:
    """`result` is what the whole form comes down to."""

    operations: tuple[Operation, ...]
    result: Value

    def fill(self, digests: Sequence[str], name: str, shape: Sequence[int]) -> Filled:
        """For a tensor whose sources have these digests, as they are written."""
        names = list(digests)
        given: list[tuple[str, ...]] = []
        orders: list[Order] = []
        for op in self.operations:
            if not op.text:
                names.append(_EMPTY)
                given.append(())
                continue
            taken = tuple([names[i] for i in op.names])
            if op.ranks:
                order = tuple(sorted(range(len(taken)), key=list(zip(op.ranks, taken, strict=True)).__getitem__))
                orders.append(order)
                taken = tuple([taken[i] for i in order])
            if op.zeros:
                taken = tuple(["zeros" if known is _EMPTY else known for known in taken])
            if op.about:
                taken += tuple([name if what == "name" else ",".join(map(str, shape)) for what in op.about])
            given.append(taken)
            names.append(action_key(op.text % taken))
        return Filled(names, given, tuple(orders))

    def text(self, number: int, filled: Filled) -> str:
        """The text of an operation, whose hash is its key."""
        return self.operations[number].text % filled.given[number]

    def value_key(self, number: int, filled: Filled) -> str:
        """The key of an operation's result in its compute dtype, before it is rounded to any other; '' of zeros."""
        op = self.operations[number]
        if op.value == op.text:
            return filled.names[len(filled.names) - len(self.operations) + number] if op.text else ""
        return action_key(op.value % filled.given[number])

    def steps(self, orders: Sequence[Order]) -> list[Step]:
        """The operations with their operands in these orders."""
        left = iter(orders)
        return [_reordered(op.step, next(left)) if op.ranks else op.step for op in self.operations]


def outline(
    form: Form, target: DType, compute: DType | None, seed: int, dtypes: Sequence[DType], alike: Sequence[int],
    number: Mapping[int, int], only: Callable[[tuple[str, ...]], bool],
) -> Outline:  # fmt: skip
    """Of tensors whose sources have these dtypes. Sources count from 0 as `number` says; `alike[i]` is the first that
    holds the same as source i. `only`: whether the tensor is among these."""
    steps = _Steps(compute, seed, dtypes, alike, number, only)
    result = Value(NONE, None, target)
    for point in inner_first(form, target):
        result = steps.add(point)
    return Outline(tuple(steps.operations), result)


class _Steps:
    """The points of a form, one after the other, as operations."""

    def __init__(
        self, compute: DType | None, seed: int, dtypes: Sequence[DType], alike: Sequence[int],
        number: Mapping[int, int], only: Callable[[tuple[str, ...]], bool],
    ) -> None:  # fmt: skip
        self._compute, self._seed, self._dtypes, self._alike = compute, seed, dtypes, alike
        self._number, self._only = number, only
        self.operations: list[Operation] = []
        self._values: dict[Identity, Value] = {}
        self._known: dict[tuple[str, tuple[int, ...]], Value] = {}  # what is computed once need not be again

    def add(self, point: Point) -> Value:
        """The value of a point, those it is made of being done."""
        compute = self._compute or point.context.compute
        leaf = point.leaf
        value = self._applied(point, leaf, compute) if isinstance(leaf, Applied) else self._sum(point, leaf, compute)
        self._values[point.identity] = value
        return value

    def _sum(self, point: Point, leaf: Rounded, compute: DType) -> Value:
        """A form: combine equal terms, then copy, zero or compute."""
        shares: dict[int, Fraction] = {}
        leaves: dict[int, Value] = {}
        to = leaf.dtype or compute
        for share, term in leaf.form.terms:
            if isinstance(term, int):
                i = self._number[term]
                value = Value(self._alike[i], i, self._dtypes[i])
            else:
                value = self._values[point.within(term).identity]
                if value.operand is None:
                    continue
            leaves.setdefault(value.name, value)
            shares[value.name] = shares.get(value.name, Fraction(0)) + share
        left = {name: share for name, share in shares.items() if share}
        if not left:
            return Value(NONE, None, to)
        if len(left) == 1:
            (name, share) = next(iter(left.items()))
            dtype = leaves[name].dtype
            if share == 1 and (dtype is to or (leaf.dtype is None and _widens(dtype, to))):
                return leaves[name]  # operands of kernels are cast as they are read
        divisor = lcm(*(share.denominator for share in left.values()))
        integers = sorted(((int(s * divisor), name) for name, s in left.items()), key=lambda t: (-t[0], t[1]))
        lines = "".join([f"{n} * %s\n" for n, _ in integers]) + f"/ {divisor}\n"
        step = make_op([(n, _operand(leaves[name])) for n, name in integers], divisor, compute, to)
        ranks = _ranks([n for n, _ in integers])
        names = tuple([name for _, name in integers])
        return self._new(Operation(step, names, head(compute, to) + lines, head(compute, compute) + lines, ranks))

    def _applied(self, point: Point, leaf: Applied, compute: DType) -> Value:
        """A kernel: leave out what is zero, put operands whose order means nothing into that of their content."""
        kernel = leaf.kernel
        values = [self._values[point.within(operand).identity] for operand in leaf.operands]
        weights = leaf.weights or (Fraction(1),) * len(values)
        given = list(zip(values, weights, strict=True))
        if kernel.zeros and kernel.many:
            given = [(value, weight) for value, weight in given if value.operand is not None]
        if not given or (kernel.zeros and given[0][0].operand is None):
            return Value(NONE, None, compute)
        if kernel.same and len({value.name for value, _ in given}) == 1:
            return given[0][0]
        if kernel.only and not self._only(kernel.only):
            return given[0][0]
        if kernel.symmetric:
            given.sort(key=lambda item: (-item[1], item[0].name))
        lines = [f"kernel {kernel.name} {kernel.version} {kernel.origin}".rstrip()]
        lines += [f"{name} {value}" for name, value in leaf.arguments if name != "seed" or not kernel.random]
        lines += [f"{name} {str(value).lower() if isinstance(value, bool) else value}" for name, value in leaf.options]
        lines = [line.replace("%", "%%") for line in lines]
        lines += [f"{w} * %s" for _, w in given]
        about: list[str] = []
        seed = 0
        if kernel.random:
            seed = int(dict(leaf.arguments).get("seed", self._seed))
            lines.append(f"seed {seed}")
        if kernel.random or kernel.only:
            lines.append("tensor %s")
            about.append("name")
        zero = [value.operand is None for value, _ in given]
        if all(zero):  # no digest says how many values there are
            lines.append("shape %s")
            about.append("shape")
        taken = [self._zeros(compute) if value.operand is None else value for value, _ in given]
        text = head(compute, compute) + "".join([f"{line}\n" for line in lines])
        call = Call(
            kernel.name, tuple([_operand(value) for value in taken]), leaf.arguments,
            tuple([w for _, w in given]) if leaf.weights else (), leaf.options, seed, compute,
        )  # fmt: skip
        ranks = _ranks([w for _, w in given]) if kernel.symmetric else ()
        names = tuple([value.name for value in taken])
        return self._new(Operation(call, names, text, text, ranks, any(zero), tuple(about)))

    def _zeros(self, compute: DType) -> Value:
        self.operations.append(Operation(Op((), 1, compute, compute), (), "", ""))
        return self._latest(compute)

    def _new(self, operation: Operation) -> Value:
        """Equal operations have one text and equal operands, those that are zero aside: these have no name."""
        zeros = [not self._text_of(name) for name in operation.names]
        named = tuple([NONE if zero else name for name, zero in zip(operation.names, zeros, strict=True)])
        value = self._known.get((operation.text, named))
        if value is None:
            self.operations.append(operation)
            value = self._known[operation.text, named] = self._latest(operation.step.to)
        return value

    def _text_of(self, name: int) -> str:
        """'' of zeros alone."""
        first = len(self._dtypes)
        return self.operations[name - first].text if name >= first else "b3:"

    def _latest(self, dtype: DType) -> Value:
        last = len(self.operations) - 1
        return Value(len(self._dtypes) + last, ~last, dtype)


def head(compute: DType, target: DType) -> str:
    return f"mergeflow tensor key\nnumerics {NUMERICS}\ncompute {compute.label}\nout {target.label}\n"


def copy_preimage(digest: bytes) -> str:
    return f"mergeflow tensor key\nnumerics {NUMERICS}\ncopy b3:{digest.hex()}\n"


def _operand(value: Value) -> int:
    assert value.operand is not None
    return value.operand


def _ranks(shares: Sequence[int] | Sequence[Fraction]) -> tuple[int, ...]:
    """Of operands by falling shares; none where no two are equal."""
    distinct = list(dict.fromkeys(shares))
    return tuple(map(distinct.index, shares)) if len(distinct) < len(shares) else ()


def _reordered(step: Step, order: Order) -> Step:
    if isinstance(step, Call):
        return replace(step, operands=tuple([step.operands[i] for i in order]))
    shares = [share for share, _ in step.terms]  # equal where operands change places
    operands = [step.terms[i][1] for i in order]
    return Op(tuple(zip(shares, operands, strict=True)), step.divisor, step.compute, step.to)


def _widens(dtype: DType, compute: DType) -> bool:
    """Whether every value of a dtype is one of the compute dtype too."""
    return dtype.is_float and (compute is DType.F64 or dtype is not DType.F64)


def needed(ops: Sequence[S], last: int) -> list[int]:
    """The ops that the last one needs, itself too, in order."""
    found, stack = {last}, [last]
    while stack:
        for operand in ops[stack.pop()].operands:
            if operand < 0 and ~operand not in found:
                found.add(~operand)
                stack.append(~operand)
    return sorted(found)


def reachable(ops: Sequence[S], kept: Sequence[int]) -> tuple[list[S], list[int]]:
    """These ops, renumbered, and the sources they read; operands then count inputs first."""
    sources: dict[int, int] = {}
    for i in kept:
        for operand in ops[i].operands:
            if operand >= 0:
                sources.setdefault(operand, len(sources))
    place = {i: len(sources) + k for k, i in enumerate(kept)}
    renumbered = [ops[i].renumbered(lambda o: sources[o] if o >= 0 else place[~o]) for i in kept]
    return renumbered, list(sources)
