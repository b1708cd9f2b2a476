"""From normal forms to programs and keys, tensor by tensor.

A tensor's key is the hash of a text: numerics version, dtypes, and for each term its integer and the digest of the
tensor (or the key of the rounding point, or of the kernel's result) it multiplies. The text of an applied kernel names
the kernel, its version and arguments, and its operands in the same way; it holds the seed and the tensor's name where
the kernel is random. Equal terms are combined here, where digests are known: where two files hold the same VAE,
`a + (b - c) * 0.3` is a copy.

Terms are taken in the order of their integers, largest first, then of their digests: a sum that is not exact depends
on the order, so the order must come from content alone. Integers first, because they are the same for all tensors:
with digests first, neighbouring tensors would need programs of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from math import lcm
from typing import NamedTuple, TypeVar

from mergeflow.arch import Architecture
from mergeflow.digest import NUMERICS, action_key
from mergeflow.errors import RecipeError
from mergeflow.ir.forms import Applied, Form, Point, inner_first
from mergeflow.plan.facts import SourceFacts
from mergeflow.plan.program import COPY, STAGED, ZERO, Call, Op, Program, Staged, TensorWork, Wide, make_op
from mergeflow.plan.resolve import Facts, Resolved
from mergeflow.tensors import DType, TensorSpec

Step = Op | Call
Identity = tuple[int, DType | None, DType]  # of a point of a form
S = TypeVar("S", Op, Op | Call)
_WIDE_CHANNELS = (8, 9)  # instruct-pix2pix and inpainting; their text-to-image parents have 4


class _Value(NamedTuple):
    """What a form comes down to for one tensor: `identity` is a digest or a key as text. `operand` is a source
    (>= 0), an op (< 0, ~number), or None for zero."""

    identity: str
    operand: int | None
    dtype: DType


class _Ready(NamedTuple):
    """What tensors of the same dtypes share: their program and the texts of their keys, digests left open. `value` is
    of the sum before it is rounded."""

    program: int
    text: str
    value: str


class _Sum(NamedTuple):
    """A form over sources alone, its terms by integer; `ranked`: no two integers are equal, so that no digest is needed
    to order them. `tensors` and `digests` are the sources'."""

    sources: tuple[int, ...]
    integers: tuple[int, ...]
    divisor: int
    ranked: bool
    tensors: tuple[Mapping[str, TensorSpec], ...]
    digests: tuple[Mapping[str, bytes], ...]
    ready: dict[tuple[tuple[DType, ...], DType], _Ready]


class Lowering:
    """Lowers the tensors of outputs that share sources and programs. `programs` and `staged` grow as it goes."""

    def __init__(self, facts: Facts, compute: DType | None, seed: int = 0, *, keeping: bool = False) -> None:
        """`keeping`: whether sums may be in the store, so that works have to tell the keys of theirs."""
        self._facts, self._compute, self._seed, self._keeping = facts, compute, seed, keeping
        self.programs: list[Program] = []
        self.staged: list[Staged] = []
        self._numbers: dict[Program, int] = {}
        self._staged_numbers: dict[Staged, int] = {}

    def output(self, resolved: Resolved, dtypes: Sequence[DType | None]) -> Iterator[TensorWork]:
        """The work of every tensor; a dtype of None keeps the tensor's own.

        Raises:
            RecipeError: shapes or dtypes that do not go together; arithmetic on scaled quantised weights.
        """
        self._facts = resolved.facts
        sums = [self._sum(form) for form in resolved.forms]
        tensors = zip(resolved.specs, resolved.primaries, resolved.cases, dtypes, strict=True)
        for spec, primary, case, dtype in tensors:
            if not spec.dtype.is_float or resolved.architecture.is_buffer(spec.name):
                yield self._copy(spec, primary)
                continue
            target = dtype or spec.dtype
            plain = sums[case]
            work = self._quick(spec, plain, target) if plain is not None else None
            yield work or self._general(spec, primary, resolved.forms[case], target, resolved.architecture)

    def preimage(self, resolved: Resolved, dtype: DType | None, index: int) -> str:
        """The text whose hash is the key of one tensor, for people."""
        self._facts = resolved.facts
        spec, primary = resolved.specs[index], resolved.primaries[index]
        if not spec.dtype.is_float or resolved.architecture.is_buffer(spec.name):
            return copy_preimage(self._facts[primary].digests[spec.name])
        texts: list[str] = []
        form = resolved.forms[resolved.cases[index]]
        self._general(spec, primary, form, dtype or spec.dtype, resolved.architecture, texts)
        return texts[-1]

    # -- the common case: distinct sources of one shape, no rounding points --------------------------------------

    def _sum(self, form: Form) -> _Sum | None:
        """None where the form is made of more than sources."""
        if len(form.terms) < 2 or not all(isinstance(leaf, int) for _, leaf in form.terms):
            return None
        numbers, divisor = form.integers()
        leaves = [(-n, leaf) for n, (_, leaf) in zip(numbers, form.terms, strict=True) if isinstance(leaf, int)]
        sources = tuple([source for _, source in sorted(leaves)])
        integers = tuple([-n for n, _ in sorted(leaves)])
        facts = [self._facts[source] for source in sources]
        tensors, digests = tuple([f.tensors for f in facts]), tuple([f.digests for f in facts])
        return _Sum(sources, integers, divisor, len(set(integers)) == len(integers), tensors, digests, {})

    def _quick(self, spec: TensorSpec, plain: _Sum, target: DType) -> TensorWork | None:
        """None when something about this tensor needs the general way."""
        name, shape, sources = spec.name, spec.shape, plain.sources
        specs = [tensors[name] for tensors in plain.tensors]
        for s in specs:
            if s.shape != shape or not s.dtype.is_float:
                return None
        digests = [of[name] for of in plain.digests]
        if len(set(digests)) != len(digests):
            return None
        if not plain.ranked:
            order = sorted(range(len(digests)), key=lambda i: (-plain.integers[i], digests[i]))
            specs, digests = [specs[i] for i in order], [digests[i] for i in order]
            sources = tuple([sources[i] for i in order])
        dtypes = tuple([s.dtype for s in specs])
        ready = plain.ready.get((dtypes, target)) or self._prepare(plain, dtypes, target)
        written = tuple([digest.hex() for digest in digests])
        key = action_key(ready.text % written)
        values = (action_key(ready.value % written),) if self._keeping else ()
        reads = tuple(zip(sources, [s.start for s in specs], strict=True))
        return TensorWork(name, target, shape, key, ready.program, reads, values=values)

    def _prepare(self, plain: _Sum, dtypes: tuple[DType, ...], target: DType) -> _Ready:
        compute = self._compute or target.compute
        op = make_op([(n, k) for k, n in enumerate(plain.integers)], plain.divisor, compute, target)
        lines = "".join([f"{n} * b3:%s\n" for n in plain.integers]) + f"/ {plain.divisor}\n"
        heads = _head(compute, target), _head(compute, compute)
        found = _Ready(self._number(Program(dtypes, (op,))), heads[0] + lines, heads[1] + lines)
        plain.ready[dtypes, target] = found
        return found

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

    # -- everything else: equal tensors, rounding points, kernels, zeros, wide first convolutions ----------------

    def _general(
        self, spec: TensorSpec, primary: int, form: Form, target: DType, architecture: Architecture,
        texts: list[str] | None = None,
    ) -> TensorWork:  # fmt: skip
        tensor = _Tensor(self._facts, spec.name, self._compute, self._seed, texts)
        result = _Value("", None, target)
        for point in inner_first(form, target):
            result = tensor.add(point)
        ops = tensor.ops
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
        ops, inputs = reachable(ops, kept := needed(ops, ~last))
        self._check_operands(spec, primary, inputs, architecture)
        reads = tuple((s, self._facts[s].tensors[name].start) for s in inputs)
        program, staged = self.numbered(tuple(self._facts[s].tensors[name].dtype for s in inputs), ops)
        wide = self._check_shape(spec, primary, inputs)
        if wide is None:
            values = tuple([tensor.value_key(i) for i in kept]) if self._keeping or program == STAGED else ()
            return TensorWork(
                name, target, shape, action_key(result.identity), program, reads, staged=staged, values=values
            )
        own = self._facts[primary]
        key_text = f"{result.identity}first {wide.narrow} channels, the rest of b3:{own.digests[name].hex()}\n"
        if texts is not None:
            texts.append(key_text)
        widths = tuple(self._facts[s].tensors[name].shape == shape for s in inputs)
        reads = (*reads, (primary, own.tensors[name].start))
        return TensorWork(
            name, target, shape, action_key(key_text), program, reads, wide, widths, own.tensors[name].dtype,
            staged=staged,
        )  # fmt: skip

    def numbered(self, inputs: tuple[DType, ...], ops: Sequence[Step]) -> tuple[int, int]:
        """What a tensor's work has as its `program` and its `staged`."""
        sums = tuple([op for op in ops if isinstance(op, Op)])
        if len(sums) == len(ops):
            return self._number(Program(inputs, sums)), -1
        staged = Staged(inputs, tuple(ops))
        number = self._staged_numbers.get(staged)
        if number is None:
            number = self._staged_numbers[staged] = len(self.staged)
            self.staged.append(staged)
        return STAGED, number

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


class _Tensor:
    """The points of one tensor's form, one after the other, as operations. `texts` takes the preimage of each."""

    def __init__(
        self, facts: Facts, name: str, compute: DType | None, seed: int, texts: list[str] | None = None
    ) -> None:
        self._facts, self._name, self._seed, self._texts = facts, name, seed, texts
        self._compute = compute
        self.ops: list[Step] = []
        self._of_ops: dict[int, tuple[DType, str]] = {}  # compute dtype and terms of the text of each
        self._values: dict[Identity, _Value] = {}
        self._known: dict[str, _Value] = {}  # by identity: what is computed once need not be again

    def add(self, point: Point) -> _Value:
        """The value of a point, those it is made of being done."""
        compute = self._compute or point.context.compute
        value = self._applied(point, point.leaf, compute) if isinstance(point.leaf, Applied) else None
        value = value or self._sum(point, compute)
        self._values[point.identity] = value
        return value

    def _sum(self, point: Point, compute: DType) -> _Value:
        """A form: combine equal terms, then copy, zero or compute."""
        assert not isinstance(point.leaf, Applied)
        shares: dict[str, Fraction] = {}
        leaves: dict[str, _Value] = {}
        to = point.leaf.dtype or compute
        for share, leaf in point.leaf.form.terms:
            if isinstance(leaf, int):
                source = self._facts[leaf]
                dtype = source.tensors[self._name].dtype
                value = _Value(f"b3:{source.digests[self._name].hex()}", leaf, dtype)
            else:
                value = self._values[point.within(leaf).identity]
                if value.operand is None:
                    continue
            leaves.setdefault(value.identity, value)
            shares[value.identity] = shares.get(value.identity, Fraction(0)) + share
        left = {identity: share for identity, share in shares.items() if share}
        if not left:
            return _Value("", None, to)
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

    def _applied(self, point: Point, leaf: Applied, compute: DType) -> _Value:
        """A kernel: leave out what is zero, put operands whose order means nothing into that of their content."""
        kernel = leaf.kernel
        values = [self._values[point.within(operand).identity] for operand in leaf.operands]
        weights = leaf.weights or (Fraction(1),) * len(values)
        given = list(zip(values, weights, strict=True))
        if kernel.zeros and kernel.many:
            given = [(value, weight) for value, weight in given if value.operand is not None]
        if not given or (kernel.zeros and given[0][0].operand is None):
            return _Value("", None, compute)
        if kernel.same and len({value.identity for value, _ in given}) == 1:
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
            lines += [f"seed {seed}", f"tensor {self._name}"]
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
        return action_key(_head(compute, compute) + rest) if compute is not None else ""

    def _op(self, op: Step, compute: DType, rest: str) -> _Value:
        text = _head(compute, op.to) + rest
        value = self._known.get(text)
        if value is None:
            self._of_ops[len(self.ops)] = compute, rest
            self.ops.append(op)
            value = self._known[text] = _Value(text, ~(len(self.ops) - 1), op.to)
        if self._texts is not None:
            self._texts.append(text)
        return value


def check_quantised(resolved: Resolved, works: Sequence[TensorWork], facts: Facts) -> None:
    """Refuse arithmetic on files whose numbers mean nothing without their scales; copying them is fine."""
    computed = {source for work in works if work.computed for source, _ in work.reads}
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
