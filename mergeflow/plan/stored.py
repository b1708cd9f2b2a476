"""Results that are kept in the store: which there are, and which are worth making.

Linear algebra goes on around what methods give, so what is kept of a step is what its kernels gave, in the compute
dtype and before anything is added to it: an edit of the sums around them does not touch it. A step with `keep: true` is
kept as a whole as well, for outputs and methods that use exactly it. Neither changes a result: a value in the compute
dtype is the same whether it was computed a moment or a month ago.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mergeflow.formats.layout import SafetensorsLayout
from mergeflow.plan.cost import Estimate, Rates, estimate
from mergeflow.plan.kept import Keeping, KeptFile
from mergeflow.plan.place import Placement
from mergeflow.plan.program import TensorWork
from mergeflow.plan.shortcuts import Place, Shortcuts
from mergeflow.store.objectfile import lay_out_object
from mergeflow.store.objects import Keyed, Stored


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
    works: Iterable[TensorWork], shortcuts: Shortcuts, found: Collection[str], rates: Rates, workers: int
) -> list[Wanted]:
    """What kernels give in these works and the store has not: grouped by kernel and arguments."""
    groups: dict[str, Wanted] = {}
    for work in works:
        for i, op, title in shortcuts.frontier(work):
            key = work.values[i]
            if not key or key in found:
                continue
            group = groups.get(title)
            if group is None:
                group = groups[title] = Wanted(title, "method")
            if key in group.works:
                continue
            part, group.works[key] = shortcuts.ending_with(work, i)
            elements = work.nbytes // work.dtype.size
            group.cost += estimate(part.inputs, part.ops, elements, op.to, rates, workers)
    return list(groups.values())


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
