"""What need not be computed: tensors that outputs and the store's objects hold already, and what is put into the store
for the next time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from mergeflow.ir.nodes import Node, topological
from mergeflow.plan.a1111_lower import A1111Lowering
from mergeflow.plan.bound import Bound
from mergeflow.plan.cost import Rates
from mergeflow.plan.facts import Facts
from mergeflow.plan.jobs import measured
from mergeflow.plan.kept import Check, Keeping, take, wanted
from mergeflow.plan.lower import Lowering
from mergeflow.plan.plans import OutputPlan, Request
from mergeflow.plan.program import COPY, STAGED, TensorWork
from mergeflow.plan.resolve import resolve_output
from mergeflow.plan.stored import (
    Declined,
    ObjectPlan,
    Wanted,
    begun_from,
    choose,
    code,
    object_plan,
    places_in,
    unrounded,
    worth_keeping,
)
from mergeflow.store.objects import Stored


class Reuse:
    """The part of planning that asks what is there. After `outputs`, `objects` are those to be made for the store,
    `keeping` the files that works read besides the sources, `rates` those that `objects` were chosen by."""

    def __init__(self, bound: Bound, facts: Facts, request: Request, lowering: Lowering | A1111Lowering) -> None:
        self._bound, self._facts, self._request, self._lowering = bound, facts, request, lowering
        self.keeping = Keeping(len(bound.sources))
        self.objects: list[ObjectPlan] = []
        self.declined: list[Declined] = []
        self.rates: Rates | None = None

    def outputs(self, outputs: Sequence[OutputPlan]) -> list[OutputPlan]:
        """The outputs with what they need not compute again. `--force` computes all of it."""
        if self._request.force or not any(output.build for output in outputs):
            return list(outputs)
        with_kept = self._with_kept(outputs)
        return with_kept if isinstance(self._lowering, A1111Lowering) else self._with_stored(with_kept)

    def _with_kept(self, outputs: Sequence[OutputPlan]) -> list[OutputPlan]:
        keys = {key for output in outputs if output.build for key in wanted(output.works)}
        found = self._request.kept(keys)
        return [self._taking(o, take(o.works, found, self.keeping) if o.build else {}) for o in outputs]

    def _taking(self, output: OutputPlan, kept: Mapping[str, TensorWork]) -> OutputPlan:
        if not kept:
            return output
        changed = replace(output, kept={**output.kept, **kept})
        return replace(changed, bytes_read=bytes_read(changed.actions, self._lowering))

    # -- the store -------------------------------------------------------------------------------------------------

    def _with_stored(self, outputs: Sequence[OutputPlan]) -> list[OutputPlan]:
        lowering, storing = self._lowering, self._request.storing
        assert isinstance(lowering, Lowering)
        works = [work for output in outputs if output.build for work in output.actions if work.values]
        steps = self._kept_steps(outputs)
        keys = {key for work in works for key in work.values if key}
        keys |= {key for step in steps for key in step.works}
        if not keys:
            return list(outputs)
        found = storing.find(keys)
        covered = set(found)
        for step in steps:  # two of them may come to the same
            step.works = {key: work for key, work in step.works.items() if key not in covered}
            covered |= step.works.keys()
        workers = self._request.workers or self._request.budget.cores
        pays: list[Wanted] = []
        if any(work.program == STAGED for work in works):
            self.rates = rates = storing.rates()
            pays = worth_keeping(
                works, lowering.programs, lowering.staged, covered, rates, workers, lowering.numbered
            )  # fmt: skip
        chosen, self.declined = choose([*steps, *pays], storing.room() if steps or pays else 0)
        self.objects = [object_plan(group, self.keeping) for group in chosen]
        return self._begun(outputs, found)

    def _begun(self, outputs: Sequence[OutputPlan], found: Mapping[str, Stored]) -> list[OutputPlan]:
        """The outputs with works that begin from what is stored, or will be by then."""
        lowering = self._lowering
        assert isinstance(lowering, Lowering)
        places = places_in(self.objects, found, self.keeping)
        result: list[OutputPlan] = []
        used: set[tuple[int, int]] = set()
        for output in outputs:
            begun = {}
            for work in output.actions if output.build else ():
                c = code(work, lowering.programs, lowering.staged)
                short = None if c is None else begun_from(work, c, places, lowering.numbered)
                if short is not None:
                    begun[work.name] = short
                    used.update(short.reads)
            result.append(self._taking(output, begun))
        for key, stored in found.items():
            place = places[key]
            if tuple(place) in used:
                check = Check(key, stored.offset, stored.nbytes, stored.payload)
                self.keeping.checks.setdefault(place.source, []).append(check)
        return result

    def _kept_steps(self, outputs: Sequence[OutputPlan]) -> list[Wanted]:
        """The values of steps with `keep: true` that these outputs use, in the dtypes that the outputs compute in."""
        steps: dict[str, Wanted] = {}
        for output in outputs:
            if not output.build:
                continue
            below = {id(node) for node in topological([self._bound.outputs[output.path][0]])}
            for name, node in self._bound.kept_steps():
                if id(node) in below:
                    step = steps.setdefault(name, Wanted(name, "step", forced=True))
                    for work in self._step(node, output):
                        step.works.setdefault(work.key, work)
        return list(steps.values())

    def _step(self, node: Node, output: OutputPlan) -> list[TensorWork]:
        """A step's tensors as this output would compute them, but before they are rounded to its dtypes."""
        lowering = self._lowering
        assert isinstance(lowering, Lowering)
        resolved = resolve_output(self._bound, node, self._facts)
        targets = {work.name: work.dtype for work in output.works if work.dtype.is_float}
        works = lowering.output(resolved, [targets.get(spec.name) for spec in resolved.specs])
        codes = [(work, code(work, lowering.programs, lowering.staged)) for work in works if work.name in targets]
        return [unrounded(work, c, lowering.numbered) for work, c in codes if c is not None and c.keys[-1]]


def bytes_read(works: Sequence[TensorWork], lowering: Lowering | A1111Lowering) -> int:
    """What the executor will read of the sources; of tensors that are gone through more than once, about."""
    per_element = [sum(d.size for d in p.inputs) for p in lowering.programs]
    copied = sum(w.nbytes for w in works if w.program == COPY and not w.payload)
    in_stages = [sum(d.size for d in p.inputs) * (2 if measured(p) else 1) for p in lowering.staged]
    applied = sum(w.nbytes // w.dtype.size * in_stages[w.staged] for w in works if w.program == STAGED)
    return copied + applied + sum(w.nbytes // w.dtype.size * per_element[w.program] for w in works if w.program >= 0)
