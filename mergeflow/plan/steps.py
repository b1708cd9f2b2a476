"""One tensor's form, point by point, as operations on its sources; and the text of each, whose hash is a key."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import lcm
from typing import NamedTuple, TypeVar

from mergeflow.digest import NUMERICS, action_key
from mergeflow.ir.forms import Applied, Point
from mergeflow.plan.facts import Facts
from mergeflow.plan.program import Call, Op, make_op
from mergeflow.tensors import DType, TensorSpec

Step = Op | Call
Identity = tuple[int, DType | None, DType]  # of a point of a form
S = TypeVar("S", Op, Op | Call)


class Value(NamedTuple):
    """What a form comes down to for one tensor: `identity` is a digest or a key as text. `operand` is a source
    (>= 0), an op (< 0, ~number), or None for zero."""

    identity: str
    operand: int | None
    dtype: DType


class TensorSteps:
    """The points of one tensor's form, one after the other, as operations. `texts` takes the preimage of each."""

    def __init__(
        self, facts: Facts, spec: TensorSpec, compute: DType | None, seed: int, texts: list[str] | None = None
    ) -> None:
        self._facts, self._name, self._seed, self._texts = facts, spec.name, seed, texts
        self._shape = spec.shape
        self._compute = compute
        self.ops: list[Step] = []
        self._of_ops: dict[int, tuple[DType, str]] = {}  # compute dtype and terms of the text of each
        self._values: dict[Identity, Value] = {}
        self._known: dict[str, Value] = {}  # by identity: what is computed once need not be again

    def add(self, point: Point) -> Value:
        """The value of a point, those it is made of being done."""
        compute = self._compute or point.context.compute
        value = self._applied(point, point.leaf, compute) if isinstance(point.leaf, Applied) else None
        value = value or self._sum(point, compute)
        self._values[point.identity] = value
        return value

    def _sum(self, point: Point, compute: DType) -> Value:
        """A form: combine equal terms, then copy, zero or compute."""
        assert not isinstance(point.leaf, Applied)
        shares: dict[str, Fraction] = {}
        leaves: dict[str, Value] = {}
        to = point.leaf.dtype or compute
        for share, leaf in point.leaf.form.terms:
            if isinstance(leaf, int):
                source = self._facts[leaf]
                dtype = source.tensors[self._name].dtype
                value = Value(f"b3:{source.digests[self._name].hex()}", leaf, dtype)
            else:
                value = self._values[point.within(leaf).identity]
                if value.operand is None:
                    continue
            leaves.setdefault(value.identity, value)
            shares[value.identity] = shares.get(value.identity, Fraction(0)) + share
        left = {identity: share for identity, share in shares.items() if share}
        if not left:
            return Value("", None, to)
        if len(left) == 1:
            (identity, share) = next(iter(left.items()))
            dtype = leaves[identity].dtype
            if share == 1 and (dtype is to or (point.leaf.dtype is None and _widens(dtype, to))):
                return leaves[identity]  # operands of kernels are cast as they are read
        divisor = lcm(*(share.denominator for share in left.values()))
        integers = sorted(((int(s * divisor), i) for i, s in left.items()), key=lambda t: (-t[0], _by_name(t[1])))
        lines = "".join([f"{n} * {_by_name(i)}\n" for n, i in integers])
        terms = [(n, _operand(leaves[i])) for n, i in integers]
        return self._op(make_op(terms, divisor, compute, to), compute, f"{lines}/ {divisor}\n")

    def _applied(self, point: Point, leaf: Applied, compute: DType) -> Value:
        """A kernel: leave out what is zero, put operands whose order means nothing into that of their content."""
        kernel = leaf.kernel
        values = [self._values[point.within(operand).identity] for operand in leaf.operands]
        weights = leaf.weights or (Fraction(1),) * len(values)
        given = list(zip(values, weights, strict=True))
        if kernel.zeros and kernel.many:
            given = [(value, weight) for value, weight in given if value.operand is not None]
        if not given or (kernel.zeros and given[0][0].operand is None):
            return Value("", None, compute)
        if kernel.same and len({value.identity for value, _ in given}) == 1:
            return given[0][0]
        if kernel.only and self._name not in kernel.only:
            return given[0][0]
        if kernel.symmetric:
            given.sort(key=lambda item: (-item[1], _by_name(item[0].identity)))
        lines = [f"kernel {kernel.name} {kernel.version} {kernel.origin}".rstrip()]
        lines += [f"{name} {value}" for name, value in leaf.arguments]
        lines += [f"{name} {str(value).lower() if isinstance(value, bool) else value}" for name, value in leaf.options]
        lines += [f"{w} * {_by_name(v.identity) if v.operand is not None else 'zeros'}" for v, w in given]
        seed = 0
        if kernel.random:
            seed = int(dict(leaf.arguments).get("seed", self._seed))
            lines.append(f"seed {seed}")
        if kernel.random or kernel.only:
            lines.append(f"tensor {self._name}")
        if all(v.operand is None for v, _ in given):  # no digest says how many values there are
            lines.append(f"shape {','.join(map(str, self._shape))}")
        operands = tuple([self._zeros(compute) if v.operand is None else v.operand for v, _ in given])
        kept = tuple([w for _, w in given]) if leaf.weights else ()
        call = Call(kernel.name, operands, leaf.arguments, kept, leaf.options, seed, compute)
        return self._op(call, compute, "".join([f"{line}\n" for line in lines]))

    def _zeros(self, compute: DType) -> int:
        self.ops.append(Op((), 1, compute, compute))
        return ~(len(self.ops) - 1)

    def value_key(self, number: int) -> str:
        """The key of an operation's result in its compute dtype, before it is rounded to any other; '' of zeros."""
        compute, rest = self._of_ops.get(number, (None, ""))
        return action_key(head(compute, compute) + rest) if compute is not None else ""

    def _op(self, op: Step, compute: DType, rest: str) -> Value:
        text = head(compute, op.to) + rest
        value = self._known.get(text)
        if value is None:
            self._of_ops[len(self.ops)] = compute, rest
            self.ops.append(op)
            value = self._known[text] = Value(text, ~(len(self.ops) - 1), op.to)
        if self._texts is not None:
            self._texts.append(text)
        return value


def head(compute: DType, target: DType) -> str:
    return f"mergeflow tensor key\nnumerics {NUMERICS}\ncompute {compute.label}\nout {target.label}\n"


def copy_preimage(digest: bytes) -> str:
    return f"mergeflow tensor key\nnumerics {NUMERICS}\ncopy b3:{digest.hex()}\n"


def _by_name(identity: str) -> str:
    """A digest as it is; the text of an inner form by its key."""
    return identity if identity.startswith("b3:") else action_key(identity)


def _operand(value: Value) -> int:
    assert value.operand is not None
    return value.operand


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
