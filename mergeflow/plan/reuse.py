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
from mergeflow.plan.shortcuts import Shortcuts
from mergeflow.plan.stored import Declined, ObjectPlan, Wanted, choose, object_plan, places_in, worth_keeping
from mergeflow.store.objects import Stored
from mergeflow.tensors import DType


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
        if isinstance(self._lowering, A1111Lowering):
            return with_kept
        return self._with_stored(with_kept, self._lowering)

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

    def _with_stored(self, outputs: Sequence[OutputPlan], lowering: Lowering) -> list[OutputPlan]:
        storing = self._request.storing
        shortcuts = Shortcuts(lowering.programs, lowering.staged, lowering.numbered)
        works = [work for output in outputs if output.build for work in output.actions if work.values]
        steps = self._kept_steps(outputs, lowering, shortcuts)
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
            pays = worth_keeping(works, shortcuts, covered, rates, workers)
        chosen, self.declined = choose([*steps, *pays], storing.room() if steps or pays else 0)
        self.objects = [object_plan(group, self.keeping) for group in chosen]
        return self._begun(outputs, found, shortcuts)

    def _begun(
        self, outputs: Sequence[OutputPlan], found: Mapping[str, Stored], shortcuts: Shortcuts
    ) -> list[OutputPlan]:
        """The outputs with works that begin from what is stored, or will be by then."""
        places = places_in(self.objects, found, self.keeping)
        result: list[OutputPlan] = []
        used: set[tuple[int, int]] = set()
        for output in outputs:
            begun = {}
            for work in output.actions if output.build else ():
                short = shortcuts.begun(work, places)
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

    def _kept_steps(self, outputs: Sequence[OutputPlan], lowering: Lowering, shortcuts: Shortcuts) -> list[Wanted]:
        """The values of steps with `keep: true` that these outputs use, in the dtypes that the outputs compute in."""
        kept = self._bound.kept_steps()
        steps: dict[str, Wanted] = {}
        done: set[tuple[str, frozenset[tuple[str, DType]]]] = set()
        for output in outputs if kept else ():
            if not output.build:
                continue
            below = {id(node) for node in topological([self._bound.outputs[output.path][0]])}
            targets = {work.name: work.dtype for work in output.works if work.dtype.is_float}
            for name, node in kept:
                as_before = name, frozenset(targets.items())
                if id(node) in below and as_before not in done:
                    done.add(as_before)
                    step = steps.setdefault(name, Wanted(name, "step", forced=True))
                    for work in self._step(node, targets, lowering, shortcuts):
                        step.works.setdefault(work.key, work)
        return list(steps.values())

    def _step(
        self, node: Node, targets: Mapping[str, DType], lowering: Lowering, shortcuts: Shortcuts
    ) -> list[TensorWork]:
        """A step's tensors as an output of these dtypes would compute them, but before they are rounded to them."""
        resolved = resolve_output(self._bound, node, self._facts)
        works = list(lowering.output(resolved, [targets.get(spec.name) for spec in resolved.specs]))
        values = [shortcuts.unrounded(work) for work in works if work.name in targets]
        return [work for work in values if work is not None]


def bytes_read(works: Sequence[TensorWork], lowering: Lowering | A1111Lowering) -> int:
    """What the executor will read of the sources; of tensors that are gone through more than once, about."""
    per_element = [sum(d.size for d in p.inputs) for p in lowering.programs]
    copied = sum(w.nbytes for w in works if w.program == COPY and not w.payload)
    in_stages = [sum(d.size for d in p.inputs) * (2 if measured(p) else 1) for p in lowering.staged]
    applied = sum(w.nbytes // w.dtype.size * in_stages[w.staged] for w in works if w.program == STAGED)
    return copied + applied + sum(w.nbytes // w.dtype.size * per_element[w.program] for w in works if w.program >= 0)
