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
from dataclasses import dataclass, field
from typing import NamedTuple

from mergeflow.digest import action_key
from mergeflow.ir.forms import Form, kernels_in, sources_in
from mergeflow.plan.facts import Facts
from mergeflow.plan.fitting import check_operands, check_shape
from mergeflow.plan.program import COPY, STAGED, ZERO, Numbered, Op, Program, Staged, TensorWork, make_op
from mergeflow.plan.resolve import Resolved
from mergeflow.plan.steps import (
    Order,
    Outline,
    Step,
    copy_preimage,
    head,
    needed,
    outline,
    reachable,
)
from mergeflow.tensors import DType, TensorSpec


class _Made(NamedTuple):
    """What an outline comes to with its operands in some order: a program, the sources that are its inputs, and the
    operations that are left of the outline's."""

    program: int
    staged: int
    inputs: tuple[int, ...]
    kept: tuple[int, ...]


@dataclass(slots=True)
class _Ready:
    """What tensors share: an outline, whether all their dtypes are floating point, and what was made of it."""

    outline: Outline
    floats: bool
    made: dict[tuple[Order, ...], _Made] = field(default_factory=dict)


@dataclass(slots=True)
class _Formed:
    """A form with the sources in it, by their numbers, and `tensors` and `digests` of each. `only`: what kernels that
    are about some tensors alone are about."""

    form: Form
    sources: tuple[int, ...]
    tensors: tuple[Mapping[str, TensorSpec], ...]
    digests: tuple[Mapping[str, bytes], ...]
    only: frozenset[str]
    ready: dict[tuple[tuple[DType, ...], tuple[int, ...], DType, str], _Ready] = field(default_factory=dict)


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
        formed = [self._formed(form) for form in resolved.forms]
        tensors = zip(resolved.specs, resolved.primaries, resolved.cases, dtypes, strict=True)
        for spec, primary, case, dtype in tensors:
            if not spec.dtype.is_float or resolved.architecture.is_buffer(spec.name):
                yield self._copy(spec, primary)
            else:
                yield self._computed(spec, primary, formed[case], dtype or spec.dtype)

    def preimage(self, resolved: Resolved, dtype: DType | None, index: int) -> str:
        """The text whose hash is the key of one tensor, for people."""
        self._facts = resolved.facts
        spec, primary = resolved.specs[index], resolved.primaries[index]
        if not spec.dtype.is_float or resolved.architecture.is_buffer(spec.name):
            return copy_preimage(self._facts[primary].digests[spec.name])
        texts: list[str] = []
        formed = self._formed(resolved.forms[resolved.cases[index]])
        self._computed(spec, primary, formed, dtype or spec.dtype, texts)
        return texts[-1]

    def _formed(self, form: Form) -> _Formed:
        sources = tuple(sorted(sources_in([form])))
        facts = [self._facts[source] for source in sources]
        only = frozenset(name for leaf in kernels_in(form) for name in leaf.kernel.only)
        return _Formed(form, sources, tuple([f.tensors for f in facts]), tuple([f.digests for f in facts]), only)

    def _copy(self, spec: TensorSpec, source: int) -> TensorWork:
        start = self._facts[source].tensors[spec.name].start
        key = action_key(copy_preimage(self._facts[source].digests[spec.name]))
        return TensorWork(spec.name, spec.dtype, spec.shape, key, COPY, ((source, start),))

    def _computed(
        self, spec: TensorSpec, primary: int, formed: _Formed, target: DType, texts: list[str] | None = None
    ) -> TensorWork:
        """One tensor of floating point. `texts` takes the preimage of its key."""
        name, shape, sources = spec.name, spec.shape, formed.sources
        specs = [tensors[name] for tensors in formed.tensors]
        digests = ["b3:" + of[name].hex() for of in formed.digests]
        dtypes = tuple([s.dtype for s in specs])
        ready = self._ready(formed, dtypes, digests, target, name)
        last = ready.outline.result.operand
        if last is None:
            return _zeros(spec, target, texts)
        if last >= 0:
            return self._as_it_is(spec, primary, sources[last], target, texts)
        filled = ready.outline.fill(digests, name, shape)
        if texts is not None:
            texts.append(ready.outline.text(~last, filled))
        made = ready.made.get(filled.orders) or self._make(ready, filled.orders, dtypes)
        reads = tuple([(sources[i], specs[i].start) for i in made.inputs])
        if not ready.floats or any(s.shape != shape for s in specs):
            check_operands(self._facts, spec, primary, [sources[i] for i in made.inputs])
            if check_shape(self._facts, spec, primary, [sources[i] for i in made.inputs]) is not None:
                return self._wide(spec, primary, made, reads, target, ready.outline.text(~last, filled), texts)
        values: tuple[str, ...] = ()
        if self._keeping or made.program == STAGED:
            values = tuple([ready.outline.value_key(i, filled) for i in made.kept])
        key = filled.names[len(digests) + ~last]
        return TensorWork(name, target, shape, key, made.program, reads, staged=made.staged, values=values)

    def _ready(
        self, formed: _Formed, dtypes: tuple[DType, ...], digests: Sequence[str], target: DType, name: str
    ) -> _Ready:
        distinct = len(set(digests)) == len(digests)
        alike = () if distinct else tuple(map(digests.index, digests))
        key = dtypes, alike, target, name if name in formed.only else ""
        found = formed.ready.get(key)
        if found is None:
            number = {source: i for i, source in enumerate(formed.sources)}
            outlined = outline(
                formed.form, target, self._compute, self._seed, dtypes, alike or range(len(digests)), number,
                lambda only: name in only,
            )  # fmt: skip
            found = formed.ready[key] = _Ready(outlined, all(dtype.is_float for dtype in dtypes))
        return found

    def _make(self, ready: _Ready, orders: tuple[Order, ...], dtypes: tuple[DType, ...]) -> _Made:
        assert ready.outline.result.operand is not None
        steps = ready.outline.steps(orders)
        kept = needed(steps, ~ready.outline.result.operand)
        ops, inputs = reachable(steps, kept)
        program, staged = self.numbered(tuple([dtypes[i] for i in inputs]), ops)
        made = ready.made[orders] = _Made(program, staged, tuple(inputs), tuple(kept))
        return made

    # -- wide first convolutions ---------------------------------------------------------------------------------

    def _as_it_is(
        self, spec: TensorSpec, primary: int, source: int, target: DType, texts: list[str] | None
    ) -> TensorWork:
        """A tensor that is a source's: a copy, but where the primary's is wider."""
        digest, found = self._facts[source].digests[spec.name], self._facts[source].tensors[spec.name]
        if check_shape(self._facts, spec, primary, [source]) is None:
            if texts is not None:
                texts.append(copy_preimage(digest))
            return self._copy(found, source)
        check_operands(self._facts, spec, primary, [source])
        cast = make_op([(1, 0)], 1, self._compute or target.compute, target)
        program, staged = self.numbered((found.dtype,), [cast])
        text = f"{head(target, target)}1 * b3:{digest.hex()}\n/ 1\n"
        made = _Made(program, staged, (source,), ())
        return self._wide(spec, primary, made, ((source, found.start),), target, text, texts)

    def _wide(
        self, spec: TensorSpec, primary: int, made: _Made, reads: tuple[tuple[int, int], ...], target: DType,
        text: str, texts: list[str] | None,
    ) -> TensorWork:  # fmt: skip
        """The program on the first channels, `text` being that of its result; the rest is the primary's."""
        name, own, inputs = spec.name, self._facts[primary], [source for source, _ in reads]
        wide = check_shape(self._facts, spec, primary, inputs)
        assert wide is not None
        key_text = f"{text}first {wide.narrow} channels, the rest of b3:{own.digests[name].hex()}\n"
        if texts is not None:
            texts.append(key_text)
        widths = tuple([self._facts[source].tensors[name].shape == spec.shape for source in inputs])
        reads = (*reads, (primary, own.tensors[name].start))
        return TensorWork(
            name, target, spec.shape, action_key(key_text), made.program, reads, wide, widths,
            own.tensors[name].dtype, staged=made.staged,
        )  # fmt: skip

    def numbered(self, inputs: tuple[DType, ...], ops: Sequence[Step]) -> tuple[int, int]:
        """What a tensor's work has as its `program` and its `staged`."""
        sums = tuple([op for op in ops if isinstance(op, Op)])
        if len(sums) == len(ops):
            return self.programs.number(Program(inputs, sums)), -1
        return STAGED, self.staged.number(Staged(inputs, tuple(ops)))


def _zeros(spec: TensorSpec, target: DType, texts: list[str] | None) -> TensorWork:
    """A difference of equals."""
    text = f"{head(target, target)}zeros {','.join(map(str, spec.shape))}\n"
    if texts is not None:
        texts.append(text)
    return TensorWork(spec.name, target, spec.shape, action_key(text), ZERO, ())
