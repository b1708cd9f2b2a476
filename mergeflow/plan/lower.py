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
from typing import NamedTuple

from mergeflow.digest import action_key
from mergeflow.ir.forms import Form, inner_first
from mergeflow.plan.facts import Facts
from mergeflow.plan.fitting import check_operands, check_shape
from mergeflow.plan.program import COPY, STAGED, ZERO, Numbered, Op, Program, Staged, TensorWork, make_op
from mergeflow.plan.resolve import Resolved
from mergeflow.plan.steps import Step, TensorSteps, Value, copy_preimage, head, needed, reachable
from mergeflow.tensors import DType, TensorSpec


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
        self.programs = Numbered[Program]()
        self.staged = Numbered[Staged]()

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
            yield work or self._general(spec, primary, resolved.forms[case], target)

    def preimage(self, resolved: Resolved, dtype: DType | None, index: int) -> str:
        """The text whose hash is the key of one tensor, for people."""
        self._facts = resolved.facts
        spec, primary = resolved.specs[index], resolved.primaries[index]
        if not spec.dtype.is_float or resolved.architecture.is_buffer(spec.name):
            return copy_preimage(self._facts[primary].digests[spec.name])
        texts: list[str] = []
        form = resolved.forms[resolved.cases[index]]
        self._general(spec, primary, form, dtype or spec.dtype, texts)
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
        heads = head(compute, target), head(compute, compute)
        found = _Ready(self.programs.number(Program(dtypes, (op,))), heads[0] + lines, heads[1] + lines)
        plain.ready[dtypes, target] = found
        return found

    def _copy(self, spec: TensorSpec, source: int) -> TensorWork:
        start = self._facts[source].tensors[spec.name].start
        key = action_key(copy_preimage(self._facts[source].digests[spec.name]))
        return TensorWork(spec.name, spec.dtype, spec.shape, key, COPY, ((source, start),))

    # -- everything else: equal tensors, rounding points, kernels, zeros, wide first convolutions ----------------

    def _general(
        self, spec: TensorSpec, primary: int, form: Form, target: DType,
        texts: list[str] | None = None,
    ) -> TensorWork:  # fmt: skip
        tensor = TensorSteps(self._facts, spec, self._compute, self._seed, texts)
        result = Value("", None, target)
        for point in inner_first(form, target):
            result = tensor.add(point)
        ops = tensor.ops
        name, shape = spec.name, spec.shape
        if result.operand is None:
            text = f"{head(target, target)}zeros {','.join(map(str, shape))}\n"
            if texts is not None:
                texts.append(text)
            return TensorWork(name, target, shape, action_key(text), ZERO, ())
        last = result.operand
        if last >= 0:
            source = self._facts[last]
            if check_shape(self._facts, spec, primary, [last]) is None:
                if texts is not None:
                    texts.append(copy_preimage(source.digests[name]))
                return self._copy(source.tensors[name], last)
            ops.append(make_op([(1, last)], 1, self._compute or target.compute, target))
            result = Value(f"{head(target, target)}1 * {result.identity}\n/ 1\n", last, target)
            last = ~(len(ops) - 1)
        ops, inputs = reachable(ops, kept := needed(ops, ~last))
        check_operands(self._facts, spec, primary, inputs)
        reads = tuple((s, self._facts[s].tensors[name].start) for s in inputs)
        program, staged = self.numbered(tuple(self._facts[s].tensors[name].dtype for s in inputs), ops)
        wide = check_shape(self._facts, spec, primary, inputs)
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
            return self.programs.number(Program(inputs, sums)), -1
        return STAGED, self.staged.number(Staged(inputs, tuple(ops)))
