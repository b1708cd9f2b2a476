"""Results that are kept in the store: which there are, which are worth making, and programs that begin from them.

Linear algebra goes on around what methods give, so what is kept of a step is what its kernels gave, in the compute
dtype and before anything is added to it: an edit of the sums around them does not touch it. A step with `keep: true` is
kept as a whole as well, for outputs and methods that use exactly it. Neither changes a result: a value in the compute
dtype is the same whether it was computed a moment or a month ago.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import NamedTuple

from mergeflow.formats.layout import SafetensorsLayout
from mergeflow.plan.cost import Estimate, Rates, estimate
from mergeflow.plan.kept import Keeping, KeptFile
from mergeflow.plan.place import Placement
from mergeflow.plan.program import STAGED, Call, Op, Program, Staged, TensorWork
from mergeflow.store.objectfile import lay_out_object
from mergeflow.store.objects import Keyed, Stored
from mergeflow.tensors import DType

Step = Op | Call


@dataclass(frozen=True, slots=True)
class ObjectPlan:
    """A new object: `actions` are in the order of its layout; `source` is the number that works know it by. `reason`
    says why it is made, or, of one that is not, why not."""

    title: str
    kind: str
    id: str
    keyed: tuple[Keyed, ...]
    actions: tuple[TensorWork, ...]
    layout: SafetensorsLayout
    source: int
    cost: Estimate
    reason: str
    placement: Placement | None = None

    @property
    def path(self) -> str:
        return self.title


@dataclass(frozen=True, slots=True)
class Declined:
    """What could have been kept and is not: its size and cost, for people. `asked`: by `keep: true`."""

    title: str
    nbytes: int
    cost: Estimate
    reason: str
    asked: bool = False


@dataclass(frozen=True, slots=True)
class Storing:
    """What planning asks of the store. `find` looks keys up; `room` says how many bytes new objects may have."""

    find: Callable[[Collection[str]], Mapping[str, Stored]] = lambda keys: {}
    room: Callable[[], int] = lambda: 0
    rates: Callable[[], Rates] = Rates


class Code(NamedTuple):
    """The program of one tensor with the keys of its operations' results in the compute dtype ('' has none)."""

    inputs: tuple[DType, ...]
    ops: tuple[Step, ...]
    keys: tuple[str, ...]
    reads: tuple[tuple[int, int], ...]


class Place(NamedTuple):
    """Where a kept value lies: the number of its file among the sources, and the offset there."""

    source: int
    offset: int


def code(work: TensorWork, programs: Sequence[Program], staged: Sequence[Staged]) -> Code | None:
    """None for a work that can neither use nor give a kept value."""
    if not work.values or work.wide is not None:
        return None
    program = staged[work.staged] if work.program == STAGED else programs[work.program]
    return Code(program.inputs, program.ops, work.values, work.reads)


def frontier(c: Code) -> list[int]:
    """The kernels that no other kernel is applied to: what linear algebra starts from."""
    below: set[int] = set()
    for i in reversed(range(len(c.ops))):
        if isinstance(c.ops[i], Call) or i in below:
            below |= {o - len(c.inputs) for o in c.ops[i].operands if o >= len(c.inputs)}
    return [i for i, op in enumerate(c.ops) if isinstance(op, Call) and i not in below and c.keys[i]]


def up_to(c: Code, last: int, places: Mapping[str, Place]) -> Code:
    """The program that ends with an operation, begun from what is kept."""
    if last == len(c.ops) - 1 and c.keys[last] in places and isinstance(c.ops[last], Op):
        return _cast(c.ops[last], c.keys[last], places)
    first = len(c.inputs)
    taken: set[int] = set()  # operations whose results are kept
    needed: set[int] = {last}
    stack = [last]
    while stack:
        for operand in c.ops[stack.pop()].operands:
            i = operand - first
            if i < 0 or i in needed or i in taken:
                continue
            if c.keys[i] in places and _unrounded(c.ops[i]):
                taken.add(i)
            else:
                needed.add(i)
                stack.append(i)
    order = sorted(needed)
    inputs: dict[int, int] = {}
    for i in order:
        for operand in c.ops[i].operands:
            if operand < first or operand - first in taken:
                inputs.setdefault(operand, len(inputs))
    number = inputs | {first + i: len(inputs) + k for k, i in enumerate(order)}
    ops = tuple([c.ops[i].renumbered(lambda o: number[o]) for i in order])
    dtypes = tuple([c.inputs[o] if o < first else c.ops[o - first].to for o in inputs])
    reads = tuple([c.reads[o] if o < first else places[c.keys[o - first]] for o in inputs])
    return Code(dtypes, ops, tuple([c.keys[i] for i in order]), tuple([(r[0], r[1]) for r in reads]))


def _unrounded(op: Step) -> bool:
    """Whether an operation's result has its compute dtype; others are rounding points, and what is kept is not."""
    return isinstance(op, Call) or op.to is op.compute


def _cast(op: Step, key: str, places: Mapping[str, Place]) -> Code:
    """What is left of a sum that is kept: its rounding to the output's dtype."""
    assert isinstance(op, Op)
    source, offset = places[key]
    only = Op(((Fraction(1), 0),), 1, op.compute, op.to)
    return Code((op.compute,), (only,), (key,), ((source, offset),))


Number = Callable[[tuple[DType, ...], Sequence[Step]], tuple[int, int]]  # (program, staged) of inputs and operations


def unrounded(work: TensorWork, c: Code, number: Number) -> TensorWork:
    """A work without its last rounding: what is kept of it."""
    last = c.ops[-1]
    if isinstance(last, Op):
        last = replace(last, to=last.compute)
    program, staged = number(c.inputs, (*c.ops[:-1], last))
    return work._replace(dtype=last.to, key=c.keys[-1], program=program, staged=staged)


def begun_from(work: TensorWork, c: Code, places: Mapping[str, Place], number: Number) -> TensorWork | None:
    """The work done from what is kept; None when nothing of it is."""
    short = up_to(c, len(c.ops) - 1, places)
    if short.inputs == c.inputs and short.ops == c.ops:
        return None
    program, staged = number(short.inputs, short.ops)
    return work._replace(program=program, staged=staged, reads=short.reads, values=short.keys)


@dataclass(slots=True)
class Wanted:
    """Values that are to be kept, by key, with the work that makes each; those of one `group` go into one object."""

    group: str
    kind: str
    works: dict[str, TensorWork] = field(default_factory=dict)
    cost: Estimate = field(default_factory=Estimate)
    forced: bool = False

    @property
    def nbytes(self) -> int:
        return sum(work.nbytes for work in self.works.values())


def worth_keeping(
    works: Iterable[TensorWork], programs: Sequence[Program], staged: Sequence[Staged], found: Collection[str],
    rates: Rates, workers: int, number: Number,
) -> list[Wanted]:  # fmt: skip
    """What kernels give in these works and the store has not: grouped by kernel and arguments."""
    groups: dict[str, Wanted] = {}
    for work in works:
        c = code(work, programs, staged) if work.program == STAGED else None
        if c is None:
            continue
        for i in frontier(c):
            op, key = c.ops[i], c.keys[i]
            assert isinstance(op, Call)
            if key in found:
                continue
            group = groups.setdefault(_title(op), Wanted(_title(op), "method"))
            if key in group.works:
                continue
            part = up_to(c, i, {})
            program, stage = number(part.inputs, part.ops)
            group.works[key] = TensorWork(
                work.name, op.to, work.shape, key, program, part.reads, staged=stage, values=part.keys
            )
            elements = work.nbytes // work.dtype.size
            group.cost += estimate(part.inputs, part.ops, elements, op.to, rates, workers)
    return list(groups.values())


def _title(call: Call) -> str:
    from mergeflow.ir.numbers import decimal

    numbers = [f"{name}={decimal(value)}" for name, value in call.arguments]
    options = [f"{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in call.options]
    return f"{call.kernel}({', '.join([*numbers, *options])})"


def choose(wanted: Sequence[Wanted], room: int) -> tuple[list[Wanted], list[Declined]]:
    """Which of them are made: `keep: true` first, then those that pay, the dearest to compute first, while there is
    room."""
    chosen, declined = [], []
    for group in sorted(wanted, key=lambda g: (not g.forced, -g.cost.compute, g.group)):
        if not group.works:
            continue
        if not (group.forced or group.cost.worth_it):
            declined.append(Declined(group.group, group.nbytes, group.cost, f"not worth it: {group.cost}"))
        elif group.nbytes > room:
            declined.append(
                Declined(group.group, group.nbytes, group.cost, "there is no room for it in the store", group.forced)
            )
        else:
            room -= group.nbytes
            chosen.append(group)
    return chosen, declined


def object_plan(group: Wanted, keeping: Keeping) -> ObjectPlan:
    """A new object, laid out and numbered."""
    names: dict[str, str] = {}  # key -> name in the object
    taken: set[str] = set()
    for key, work in group.works.items():
        name, n = work.name, 1
        while name in taken:
            n += 1
            name = f"{work.name} ({n})"
        taken.add(name)
        names[key] = name
    keyed = tuple([Keyed(key, names[key], work.dtype, work.shape) for key, work in group.works.items()])
    object_id, layout = lay_out_object(keyed, group.kind, group.group)
    by_name = {names[key]: work for key, work in group.works.items()}
    actions = tuple([by_name[spec.name] for spec in layout.tensors])
    source = keeping.number(KeptFile(object=object_id, new=True))
    reason = "keep: true" if group.forced else str(group.cost)
    return ObjectPlan(group.group, group.kind, object_id, keyed, actions, layout, source, group.cost, reason)


def places_in(new: Sequence[ObjectPlan], found: Mapping[str, Stored], keeping: Keeping) -> dict[str, Place]:
    """Where each kept value lies, or will."""
    places = {
        key: Place(keeping.number(KeptFile(object=stored.object)), stored.offset) for key, stored in found.items()
    }
    for planned in new:
        start = {spec.name: spec.start for spec in planned.layout.tensors}
        places |= {k.key: Place(planned.source, start[k.name]) for k in planned.keyed}
    return places
