"""What the merges of the policy `a1111` do to each tensor (`plan.a1111` reads an expression as those merges).

Each rounds after every operation in the dtype that torch would give it, and decides which tensors it touches:

    weighted sum     (1 − M)·A + M·B      two products and a sum; 1 − M is taken in Python's floats
    add difference   A + M·(B − C)        the difference rounds, then the product, then the sum

torch computes on float16 and bfloat16 tensors in float32 and rounds once per operation, the number M being a float32
there. So each operation is one Op with one or two terms, computed in float32 (float64 for float64), and the bytes are
as independent of machines, threads and tiles as those of exact sums are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

from mergeflow.digest import NUMERICS, action_key
from mergeflow.errors import RecipeError
from mergeflow.ir.numbers import ONE
from mergeflow.plan.a1111 import NAME, Half, Merge, Move, Read
from mergeflow.plan.facts import Facts
from mergeflow.plan.fitting import is_wide
from mergeflow.plan.program import COPY, Numbered, Op, Program, Staged, TensorWork, Wide, rounded_share
from mergeflow.plan.resolve import Resolved
from mergeflow.plan.steps import copy_preimage, needed, reachable
from mergeflow.tensors import DType, TensorSpec

_SKIPPED = "cond_stage_model.transformer.text_model.embeddings.position_ids"  # its checkpoint_dict_skip_on_merge


class _Value(NamedTuple):
    """One tensor of a move's result: its operand is a source (>= 0) or an op (~number). `merged` says whether the last
    run of the merger touched it; `part`, that the operand is only the first channels of a wide convolution."""

    operand: int
    dtype: DType
    shape: tuple[int, ...]
    merged: bool
    part: bool = False


class A1111Lowering:
    """Lowers the tensors of outputs that share sources and programs, as plan.lower.Lowering does for exact sums."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self.programs = Numbered[Program]()
        self.staged: tuple[Staged, ...] = ()  # that merger has no kernels

    def output(self, resolved: Resolved, done: Sequence[Move]) -> Iterator[TensorWork]:
        """The work of every tensor.

        Raises:
            RecipeError: shapes or dtypes that do not go together.
        """
        self._facts = resolved.facts
        for spec, primary in zip(resolved.specs, resolved.primaries, strict=True):
            yield self._tensor(spec, primary, done)[0]

    def preimage(self, resolved: Resolved, done: Sequence[Move], index: int) -> str:
        """The text whose hash is the key of one tensor, for people."""
        self._facts = resolved.facts
        return self._tensor(resolved.specs[index], resolved.primaries[index], done)[1]

    def _tensor(self, spec: TensorSpec, primary: int, done: Sequence[Move]) -> tuple[TensorWork, str]:
        name, own = spec.name, self._facts[primary]
        walk = _Tensor(self._facts, name, primary)
        result = walk.run(done)
        if result.operand >= 0:
            source = self._facts[result.operand]
            text = copy_preimage(source.digests[name])
            read = (result.operand, source.tensors[name].start)
            return TensorWork(name, result.dtype, result.shape, action_key(text), COPY, (read,)), text
        ops, inputs = reachable(walk.ops, needed(walk.ops, ~result.operand))
        dtypes = tuple(self._facts[s].tensors[name].dtype for s in inputs)
        digests = [self._facts[s].digests[name].hex() for s in inputs]
        reads = tuple((s, self._facts[s].tensors[name].start) for s in inputs)
        number = self.programs.number(Program(dtypes, tuple(ops)))
        text = _preimage(digests, dtypes, ops)
        if not result.part:
            return TensorWork(name, result.dtype, result.shape, action_key(text), number, reads), text
        out, channels, height, width = result.shape
        text += f"first 4 channels, the rest of b3:{own.digests[name].hex()}\n"
        wide_inputs = tuple(self._facts[s].tensors[name].shape == result.shape for s in inputs)
        work = TensorWork(
            name, result.dtype, result.shape, action_key(text), number, (*reads, (primary, own.tensors[name].start)),
            Wide(out, channels, 4, height * width), wide_inputs, own.tensors[name].dtype,
        )  # fmt: skip
        return work, text


class _Tensor:
    """One tensor through all the moves."""

    def __init__(self, facts: Facts, name: str, primary: int) -> None:
        self._facts, self._name, self._primary = facts, name, primary
        self.ops: list[Op] = []

    def run(self, done: Sequence[Move]) -> _Value:
        values: list[_Value | None] = []
        for move in done:
            if isinstance(move, Read):
                spec = self._facts[move.source].tensors.get(self._name)
                # without a merge, save as half means every tensor
                values.append(None if spec is None else _Value(move.source, spec.dtype, spec.shape, merged=True))
            elif isinstance(move, Half):
                x = values[move.of]
                halved = x is not None and x.merged and x.dtype is DType.F32
                values.append(self._cast(x, DType.F16) if x is not None and halved else x)
            else:
                b, c = values[move.b], values[move.c] if move.c is not None else None
                values.append(self._merge(move, values[move.a], b, c))
        result = values[-1]
        assert result is not None  # it has the tensors of the first model, and this is one
        return result

    def _merge(self, move: Merge, a: _Value | None, b: _Value | None, c: _Value | None) -> _Value | None:
        if a is None:
            return None
        if b is None or "model" not in self._name or self._name == _SKIPPED or not a.dtype.is_float:
            return a._replace(merged=False)
        for x in (a, b, c):
            self._check_dtype(x)
        narrow, m = self._is_narrow(a, b), float(move.m)
        if move.c is None:
            total = self._add(self._scaled(a, 1.0 - m), self._scaled(b, m))
        elif (added := self._difference(b, c)) is not None:
            total = self._add(a, self._scaled(added, m))
        else:
            total = self._cast(a, _promoted(a.dtype, b.dtype))
        if narrow and total.dtype is not a.dtype:  # it is assigned into A's channels, so it takes A's dtype
            total = self._cast(total, a.dtype)
        return total._replace(shape=a.shape, merged=True, part=narrow)

    def _difference(self, b: _Value, c: _Value | None) -> _Value | None:
        """B − C. Where C lacks the tensor it is zeros of B's dtype: no number changes, but the dtype and the sign of a
        zero may. They are made as X − X of the first model's tensor; None, where that would not be zeros."""
        if c is not None:
            if b.shape != c.shape or b.part or c.part:
                raise self._shapes("B and C", b, c)
            return self._op(((ONE, b), (-ONE, c)), _promoted(b.dtype, c.dtype))
        own = self._facts[self._primary].tensors[self._name]
        if self._facts[self._primary].nonfinite.get(self._name):
            return None
        x = _Value(self._primary, own.dtype, own.shape, merged=False)
        return self._op(((ONE, x), (-ONE, x)), b.dtype)._replace(shape=b.shape)

    def _is_narrow(self, a: _Value, b: _Value) -> bool:
        """Whether only A's first four channels are merged."""
        if a.shape == b.shape and not a.part and not b.part:
            return False
        if is_wide(a.shape, b.shape) and not b.part and (a.part or a.operand >= 0):
            return True
        if is_wide(b.shape, a.shape):
            kind = "an inpainting" if b.shape[1] == 9 else "an instruct-pix2pix"
            raise RecipeError(
                f"policy {NAME}: {self._name} has {b.shape[1]} input channels in B and 4 in A",
                hint=f"when {kind} model is merged with another, it has to be A, the first",
            )
        if a.shape == b.shape or a.part or is_wide(a.shape, b.shape):
            raise RecipeError(
                f"policy {NAME}: {self._name} is merged once with a model as wide and once with a narrower one",
                hint="make the first of the two merges an output of its own, and use that file",
            )
        raise self._shapes("A and B", a, b)

    def _shapes(self, which: str, a: _Value, b: _Value) -> RecipeError:
        return RecipeError(
            f"policy {NAME}: {self._name} has the shapes {list(a.shape)} and {list(b.shape)} in {which} of a merge",
            hint="that merger fails here, too; the exception are wider first convolutions of A",
        )

    def _check_dtype(self, x: _Value | None) -> None:
        if x is not None and x.dtype.bits < DType.BF16.bits:
            why = "torch cannot add such tensors" if x.dtype.is_float else "it is floating point in another"
            raise RecipeError(
                f"policy {NAME}: {self._name} is {x.dtype.label} in one of the models, and {why}",
                hint="convert that file first, or leave the policy out",
            )

    # -- operations, each rounded once ----------------------------------------------------------------------------

    def _scaled(self, x: _Value, number: float) -> _Value:
        compute = x.dtype.compute if x.dtype is DType.F64 else DType.F32
        share = rounded_share(Fraction(number), compute.bits)
        return x if share == 1 else self._op(((share, x),), x.dtype)

    def _add(self, x: _Value, y: _Value) -> _Value:
        return self._op(((ONE, x), (ONE, y)), _promoted(x.dtype, y.dtype))

    def _cast(self, x: _Value, to: DType) -> _Value:
        return self._op(((ONE, x),), to)._replace(merged=x.merged, part=x.part)

    def _op(self, terms: tuple[tuple[Fraction, _Value], ...], to: DType) -> _Value:
        wide = to is DType.F64 or any(x.dtype is DType.F64 for _, x in terms)
        self.ops.append(Op(tuple((s, x.operand) for s, x in terms), 1, DType.F64 if wide else DType.F32, to))
        return _Value(~(len(self.ops) - 1), to, terms[0][1].shape, merged=False)


def _promoted(x: DType, y: DType) -> DType:
    """torch's promotion among its floating point dtypes of 16 bits and more."""
    if x is y:
        return x
    return DType.F64 if DType.F64 in (x, y) else DType.F32


def _preimage(digests: Sequence[str], dtypes: Sequence[DType], ops: Sequence[Op]) -> str:
    lines = [f"x{i} = {dtype.label} b3:{digest}" for i, (dtype, digest) in enumerate(zip(dtypes, digests, strict=True))]
    for i, op in enumerate(ops, len(dtypes)):
        total = " + ".join(f"{share.numerator}/{share.denominator} * x{k}" for share, k in op.terms)
        lines.append(f"x{i} = {total} in {op.compute.label} to {op.to.label}")
    return f"mergeflow tensor key\nnumerics {NUMERICS}\npolicy {NAME}\n" + "".join(f"{line}\n" for line in lines)
