"""Programs that end early, or begin from what is kept of their operations' results. What is found of one program serves
all tensors that are made by it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import NamedTuple

from mergeflow.ir.numbers import decimal
from mergeflow.plan.program import STAGED, Call, Op, Program, Staged, TensorWork
from mergeflow.tensors import DType

Step = Op | Call
Number = Callable[[tuple[DType, ...], Sequence[Step]], tuple[int, int]]  # (program, staged) of inputs and operations


class Place(NamedTuple):
    """Where a kept value lies: the number of its file among the sources, and the offset there."""

    source: int
    offset: int


class Cut(NamedTuple):
    """A piece of a program: `kept` of its operations, as a program of its own. `reads` are its inputs: those of the
    whole (>= 0), or results of operations (~number)."""

    inputs: tuple[DType, ...]
    ops: tuple[Step, ...]
    kept: tuple[int, ...]
    reads: tuple[int, ...]
    program: int
    staged: int


class Shortcuts:
    """Of works by `programs` and `staged`; new programs are numbered by `number`."""

    def __init__(self, programs: Sequence[Program], staged: Sequence[Staged], number: Number) -> None:
        self._programs, self._staged, self._number = programs, staged, number
        self._cuts: dict[tuple[int, int, int, tuple[bool, ...]], Cut] = {}
        self._frontiers: dict[int, list[tuple[int, Call, str]]] = {}

    def whole(self, work: TensorWork) -> Program | Staged | None:
        """The program of a work; None where it can neither use nor give a kept value."""
        if not work.values or work.wide is not None:
            return None
        return self._staged[work.staged] if work.program == STAGED else self._programs[work.program]

    def frontier(self, work: TensorWork) -> Sequence[tuple[int, Call, str]]:
        """The kernels that no other kernel is applied to, what linear algebra starts from: their numbers, and what they
        are called."""
        if work.program != STAGED or (program := self.whole(work)) is None:
            return ()
        found = self._frontiers.get(work.staged)
        if found is None:
            ends = _frontier(program)
            found = self._frontiers[work.staged] = [(i, call, title(call)) for i, call in ends]
        return found

    def ending_with(self, work: TensorWork, last: int) -> tuple[Cut, TensorWork]:
        """The work that gives the result of one of its operations, in the compute dtype."""
        cut = self._cut(work, last, (False,) * len(work.values))
        reads = tuple([work.reads[i] for i in cut.reads])
        values = tuple([work.values[i] for i in cut.kept])
        made = TensorWork(
            work.name, cut.ops[-1].to, work.shape, work.values[last], cut.program, reads, staged=cut.staged,
            values=values,
        )  # fmt: skip
        return cut, made

    def begun(self, work: TensorWork, places: Mapping[str, Place]) -> TensorWork | None:
        """The work done from what is kept; None when nothing of it is."""
        whole = self.whole(work)
        there = tuple([key in places for key in work.values])
        if whole is None or not any(there):
            return None
        cut = self._cut(work, len(there) - 1, there)
        if cut.inputs == whole.inputs and cut.ops == whole.ops:
            return None
        reads = tuple([work.reads[i] if i >= 0 else tuple(places[work.values[~i]]) for i in cut.reads])
        values = tuple([work.values[i] for i in cut.kept])
        return work._replace(
            program=cut.program, staged=cut.staged, reads=tuple([(r[0], r[1]) for r in reads]), values=values
        )

    def unrounded(self, work: TensorWork) -> TensorWork | None:
        """A work without its last rounding: what is kept of a step. None where nothing can be."""
        whole = self.whole(work)
        if whole is None or not work.values[-1]:
            return None
        last = whole.ops[-1]
        if isinstance(last, Op):
            last = replace(last, to=last.compute)
        program, staged = self._number(whole.inputs, (*whole.ops[:-1], last))
        return work._replace(dtype=last.to, key=work.values[-1], program=program, staged=staged)

    def _cut(self, work: TensorWork, last: int, there: tuple[bool, ...]) -> Cut:
        key = work.program, work.staged, last, there
        cut = self._cuts.get(key)
        if cut is None:
            whole = self.whole(work)
            assert whole is not None
            cut = self._cuts[key] = _cut_off(whole, last, there, self._number)
        return cut


def _cut_off(whole: Program | Staged, last: int, there: Sequence[bool], number: Number) -> Cut:
    """The program that ends with an operation, begun from the results that are `there`."""
    end = whole.ops[last]
    if last == len(whole.ops) - 1 and there[last] and isinstance(end, Op):  # its rounding to the output's dtype is left
        cast = Op(((Fraction(1), 0),), 1, end.compute, end.to)
        return Cut((end.compute,), (cast,), (last,), (~last,), *number((end.compute,), (cast,)))
    first = len(whole.inputs)
    taken: set[int] = set()  # operations whose results are kept
    needed: set[int] = {last}
    stack = [last]
    while stack:
        for operand in whole.ops[stack.pop()].operands:
            i = operand - first
            if i < 0 or i in needed or i in taken:
                continue
            if there[i] and _unrounded(whole.ops[i]):
                taken.add(i)
            else:
                needed.add(i)
                stack.append(i)
    kept = tuple(sorted(needed))
    inputs: dict[int, int] = {}
    for i in kept:
        for operand in whole.ops[i].operands:
            if operand < first or operand - first in taken:
                inputs.setdefault(operand, len(inputs))
    numbered = inputs | {first + i: len(inputs) + k for k, i in enumerate(kept)}
    ops = tuple([whole.ops[i].renumbered(lambda o: numbered[o]) for i in kept])
    dtypes = tuple([whole.inputs[o] if o < first else whole.ops[o - first].to for o in inputs])
    reads = tuple([o if o < first else ~(o - first) for o in inputs])
    return Cut(dtypes, ops, kept, reads, *number(dtypes, ops))


def _unrounded(op: Step) -> bool:
    """Whether an operation's result has its compute dtype; others are rounding points, and what is kept is not."""
    return isinstance(op, Call) or op.to is op.compute


def _frontier(whole: Program | Staged) -> list[tuple[int, Call]]:
    first = len(whole.inputs)
    below: set[int] = set()
    for i in reversed(range(len(whole.ops))):
        if isinstance(whole.ops[i], Call) or i in below:
            below |= {o - first for o in whole.ops[i].operands if o >= first}
    return [(i, op) for i, op in enumerate(whole.ops) if isinstance(op, Call) and i not in below]


def title(call: Call) -> str:
    """A kernel with its arguments, as people write it."""
    numbers = [f"{name}={decimal(value)}" for name, value in call.arguments]
    options = [f"{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in call.options]
    return f"{call.kernel}({', '.join([*numbers, *options])})"
