"""From normal forms to programs and keys, tensor by tensor.

A tensor's key is the hash of a text: numerics version, dtypes, and for each term its integer and the digest of the
tensor (or the key of the rounding point) it multiplies. Equal terms are combined here, where digests are known: where
two files hold the same VAE, `a + (b - c) * 0.3` is a copy.

Terms are taken in the order of their integers, largest first, then of their digests: a sum that is not exact depends
on the order, so the order must come from content alone. Integers first, because they are the same for all tensors:
with digests first, neighbouring tensors would need programs of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from math import lcm
from typing import NamedTuple

from mergeflow.arch import Architecture
from mergeflow.digest import NUMERICS, action_key
from mergeflow.errors import RecipeError
from mergeflow.ir.forms import Form, Rounded, inner_first
from mergeflow.plan.facts import SourceFacts
from mergeflow.plan.program import COPY, ZERO, Op, Program, TensorWork, Wide, make_op
from mergeflow.plan.resolve import Facts, Resolved
from mergeflow.tensors import DType, TensorSpec

_WIDE_CHANNELS = (8, 9)  # instruct-pix2pix and inpainting; their text-to-image parents have 4


class _Value(NamedTuple):
    """What a form comes down to for one tensor: `identity` is a digest or a key as text. `operand` is a source
    (>= 0), an op (< 0, ~number), or None for zero."""

    identity: str
    operand: int | None
    dtype: DType


class Lowering:
    """Lowers the tensors of outputs that share sources and programs. `programs` grows as it goes."""

    def __init__(self, facts: Facts, compute: DType | None) -> None:
        self._facts, self._compute = facts, compute
        self.programs: list[Program] = []
        self._numbers: dict[Program, int] = {}
        self._patterns: dict[tuple[object, ...], int] = {}

    def output(self, resolved: Resolved, dtypes: Sequence[DType | None]) -> Iterator[TensorWork]:
        """The work of every tensor; a dtype of None keeps the tensor's own.

        Raises:
            RecipeError: shapes or dtypes that do not go together; arithmetic on scaled quantised weights.
        """
        flat = [self._flat(form) for form in resolved.forms]
        tensors = zip(resolved.specs, resolved.primaries, resolved.cases, dtypes, strict=True)
        for spec, primary, case, dtype in tensors:
            if not spec.dtype.is_float or resolved.architecture.is_buffer(spec.name):
                yield self._copy(spec, primary)
                continue
            target = dtype or spec.dtype
            quick = flat[case]
            work = self._quick(spec, quick, target) if quick is not None else None
            yield work or self._general(spec, primary, resolved.forms[case], target, resolved.architecture)

    def preimage(self, resolved: Resolved, dtype: DType | None, index: int) -> str:
        """The text whose hash is the key of one tensor, for people."""
        spec, primary = resolved.specs[index], resolved.primaries[index]
        if not spec.dtype.is_float or resolved.architecture.is_buffer(spec.name):
            return copy_preimage(self._facts[primary].digests[spec.name])
        texts: list[str] = []
        form = resolved.forms[resolved.cases[index]]
        self._general(spec, primary, form, dtype or spec.dtype, resolved.architecture, texts)
        return texts[-1]

    # -- the common case: distinct sources of one shape, no rounding points --------------------------------------

    def _flat(self, form: Form) -> tuple[Form, tuple[int, ...], tuple[int, ...], int] | None:
        """(form, sources, integers, denominator) of a form without rounding points."""
        sources = tuple(leaf for _, leaf in form.terms if not isinstance(leaf, Rounded))
        if len(sources) != len(form.terms) or len(sources) < 2:
            return None
        integers, divisor = form.integers()
        return form, sources, integers, divisor

    def _quick(
        self, spec: TensorSpec, flat: tuple[Form, tuple[int, ...], tuple[int, ...], int], target: DType
    ) -> TensorWork | None:
        """None when something about this tensor needs the general way."""
        form, sources, integers, divisor = flat
        name, shape = spec.name, spec.shape
        specs = [self._facts[s].tensors[name] for s in sources]
        for s in specs:
            if s.shape != shape or not s.dtype.is_float:
                return None
        digests = [self._facts[s].digests[name] for s in sources]
        if len(set(digests)) != len(digests):
            return None
        order = tuple(sorted(range(len(digests)), key=lambda i: (-integers[i], digests[i])))
        dtypes = tuple(specs[i].dtype for i in order)
        pattern = (id(form), order, dtypes, target)
        number = self._patterns.get(pattern)
        compute = self._compute or target.compute
        if number is None:
            op = make_op([(integers[i], k) for k, i in enumerate(order)], divisor, compute, target)
            number = self._patterns[pattern] = self._number(Program(dtypes, (op,)))
        lines = "".join([f"{integers[i]} * b3:{digests[i].hex()}\n" for i in order])
        key = action_key(f"{_head(compute, target)}{lines}/ {divisor}\n")
        reads = tuple((sources[i], specs[i].start) for i in order)
        return TensorWork(name, target, shape, key, number, reads)

    def _number(self, program: Program) -> int:
        number = self._numbers.get(program)
        if number is None:
            number = self._numbers[program] = len(self.programs)
            self.programs.append(program)
        return number

    def _copy(self, spec: TensorSpec, source: int) -> TensorWork:
        start = self._facts[source].tensors[spec.name].start
        key = action_key(copy_preimage(self._facts[source].digests[spec.name]))
        return TensorWork(spec.name, spec.dtype, spec.shape, key, COPY, ((source, start),))

    # -- everything else: equal tensors, rounding points, zeros, wide first convolutions -------------------------

    def _general(
        self, spec: TensorSpec, primary: int, form: Form, target: DType, architecture: Architecture,
        texts: list[str] | None = None,
    ) -> TensorWork:  # fmt: skip
        values: dict[tuple[int, DType], _Value] = {}
        ops: list[Op] = []
        for point in inner_first(form, target):
            values[id(point.form), point.dtype] = self._value(spec, point, values, ops, texts)
        result = values[id(form), target]
        name, shape = spec.name, spec.shape
        if result.operand is None:
            text = f"{_head(target, target)}zeros {','.join(map(str, shape))}\n"
            if texts is not None:
                texts.append(text)
            return TensorWork(name, target, shape, action_key(text), ZERO, ())
        last = result.operand
        if last >= 0:
            source = self._facts[last]
            if self._check_shape(spec, primary, [last]) is None:
                if texts is not None:
                    texts.append(copy_preimage(source.digests[name]))
                return self._copy(source.tensors[name], last)
            ops.append(make_op([(1, last)], 1, self._compute or target.compute, target))
            result = _Value(f"{_head(target, target)}1 * {result.identity}\n/ 1\n", last, target)
            last = ~(len(ops) - 1)
        ops, inputs = reachable(ops, ~last)
        self._check_operands(spec, primary, inputs, architecture)
        dtypes = tuple(self._facts[s].tensors[name].dtype for s in inputs)
        reads = tuple((s, self._facts[s].tensors[name].start) for s in inputs)
        number = self._number(Program(dtypes, tuple(ops)))
        wide = self._check_shape(spec, primary, inputs)
        if wide is None:
            return TensorWork(name, target, shape, action_key(result.identity), number, reads)
        own = self._facts[primary]
        key_text = f"{result.identity}first {wide.narrow} channels, the rest of b3:{own.digests[name].hex()}\n"
        if texts is not None:
            texts.append(key_text)
        widths = tuple(self._facts[s].tensors[name].shape == shape for s in inputs)
        reads = (*reads, (primary, own.tensors[name].start))
        return TensorWork(
            name, target, shape, action_key(key_text), number, reads, wide, widths, own.tensors[name].dtype
        )

    def _value(
        self, spec: TensorSpec, point: Rounded, values: dict[tuple[int, DType], _Value], ops: list[Op],
        texts: list[str] | None,
    ) -> _Value:  # fmt: skip
        """One form of one tensor, its inner forms being done: combine equal terms, then copy, zero or compute."""
        shares: dict[str, Fraction] = {}
        leaves: dict[str, _Value] = {}
        for share, leaf in point.form.terms:
            if isinstance(leaf, Rounded):
                value = values[id(leaf.form), leaf.dtype]
                if value.operand is None:
                    continue
            else:
                source = self._facts[leaf]
                value = _Value(f"b3:{source.digests[spec.name].hex()}", leaf, source.tensors[spec.name].dtype)
            leaves.setdefault(value.identity, value)
            shares[value.identity] = shares.get(value.identity, Fraction(0)) + share
        left = {identity: share for identity, share in shares.items() if share}
        if not left:
            return _Value("", None, point.dtype)
        if len(left) == 1:
            (identity, share) = next(iter(left.items()))
            if share == 1 and leaves[identity].dtype is point.dtype:
                return leaves[identity]
        divisor = lcm(*(share.denominator for share in left.values()))
        integers = sorted(((int(s * divisor), i) for i, s in left.items()), key=lambda t: (-t[0], _by_name(t[1])))
        compute = self._compute or point.dtype.compute
        ops.append(make_op([(n, _operand(leaves[i])) for n, i in integers], divisor, compute, point.dtype))
        lines = "".join([f"{n} * {_by_name(i)}\n" for n, i in integers])
        text = f"{_head(compute, point.dtype)}{lines}/ {divisor}\n"
        if texts is not None:
            texts.append(text)
        return _Value(text, ~(len(ops) - 1), point.dtype)

    # -- what must fit together ----------------------------------------------------------------------------------

    def _check_operands(
        self, spec: TensorSpec, primary: int, inputs: Sequence[int], architecture: Architecture
    ) -> None:
        for i in inputs:
            source = self._facts[i]
            if source.tensors[spec.name].dtype.is_float:
                continue
            if tensor := source.quantised_by():
                raise _quantised(source, tensor)
            raise RecipeError(
                f"{spec.name} is {source.tensors[spec.name].dtype.label} in {source.name} and "
                f"{spec.dtype.label} in {self._facts[primary].name}: they cannot be mixed",
                hint="convert that file's tensor to floating point, or leave the model out of the sum",
            )

    def _check_shape(self, spec: TensorSpec, primary: int, inputs: Sequence[int]) -> Wide | None:
        """None when all have the primary's shape; how to merge a wide primary with narrow others; else an error."""
        narrow = None
        for i in inputs:
            other = self._facts[i].tensors[spec.name].shape
            if other == spec.shape:
                continue
            if is_wide(spec.shape, other):
                narrow = other
                continue
            if is_wide(other, spec.shape):
                raise self._wrong_way_round(spec, primary, i, inputs)
            raise RecipeError(
                f"{spec.name} has the shape {list(other)} in {self._facts[i].name} and "
                f"{list(spec.shape)} in {self._facts[primary].name}",
                hint=_kinship(self._facts[primary], self._facts[i]),
            )
        if narrow is None:
            return None
        return Wide(spec.shape[0], spec.shape[1], narrow[1], spec.shape[2] * spec.shape[3])

    def _wrong_way_round(self, spec: TensorSpec, primary: int, wide: int, inputs: Sequence[int]) -> RecipeError:
        first, other = self._facts[primary], self._facts[wide]
        channels = other.tensors[spec.name].shape[1]
        rest = [self._facts[i].name for i in inputs if i not in (wide, primary)]
        fix = f"write the sum so that it begins with the wide model, {other.name}"
        if rest:
            fix = f"begin with the wide model: {other.name} + ({first.name} - {rest[0]})"
        return RecipeError(
            f"{other.name} has {channels} input channels, the first model ({first.name}) has {spec.shape[1]}: "
            f"the result could not {'inpaint' if channels == 9 else 'edit images'}",
            hint=fix,
        )


def check_quantised(resolved: Resolved, works: Sequence[TensorWork], facts: Facts) -> None:
    """Refuse arithmetic on files whose numbers mean nothing without their scales; copying them is fine."""
    computed = {source for work in works if work.program >= 0 for source, _ in work.reads}
    for i in sorted(computed):
        if tensor := facts[i].quantised_by():
            raise _quantised(facts[i], tensor)


def _quantised(source: SourceFacts, tensor: str) -> RecipeError:
    return RecipeError(
        f"{source.name} holds scaled, quantised weights (it has {tensor}): sums of them mean nothing",
        hint="use the float16 or bfloat16 file of the same model",
    )


def _kinship(a: SourceFacts, b: SourceFacts) -> str:
    if a.architecture.name == b.architecture.name:
        return "the two files are not variants of one model"
    return f"{a.name} looks like {a.architecture.title}, {b.name} like {b.architecture.title}"


def is_wide(shape: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """A first convolution [out, 9 or 8, h, w] beside [out, 4, h, w]."""
    return (
        len(shape) == len(other) == 4
        and shape[1] in _WIDE_CHANNELS
        and other[1] == 4
        and (shape[0], *shape[2:]) == (other[0], *other[2:])
    )


def _head(compute: DType, target: DType) -> str:
    return f"mergeflow tensor key\nnumerics {NUMERICS}\ncompute {compute.label}\nout {target.label}\n"


def copy_preimage(digest: bytes) -> str:
    return f"mergeflow tensor key\nnumerics {NUMERICS}\ncopy b3:{digest.hex()}\n"


def _by_name(identity: str) -> str:
    """A digest as it is; the text of an inner form by its key."""
    return identity if identity.startswith("b3:") else action_key(identity)


def _operand(value: _Value) -> int:
    assert value.operand is not None
    return value.operand


def reachable(ops: list[Op], last: int) -> tuple[list[Op], list[int]]:
    """The ops that the last one needs, renumbered, and the sources they read; operands then count inputs first."""
    needed, stack = {last}, [last]
    while stack:
        for _, operand in ops[stack.pop()].terms:
            if operand < 0 and ~operand not in needed:
                needed.add(~operand)
                stack.append(~operand)
    kept = sorted(needed)
    sources: dict[int, int] = {}
    for i in kept:
        for _, operand in ops[i].terms:
            if operand >= 0:
                sources.setdefault(operand, len(sources))
    place = {i: len(sources) + k for k, i in enumerate(kept)}
    renumbered = [
        Op(
            tuple((n, sources[o] if o >= 0 else place[~o]) for n, o in ops[i].terms),
            ops[i].divisor,
            ops[i].compute,
            ops[i].to,
        )
        for i in kept
    ]
    return renumbered, list(sources)
