"""Which objects have to go, and in which order: a pure function, the same with a disk and without."""

from __future__ import annotations

from collections.abc import Iterable

from mergeflow.store.objects import Limits, ObjectInfo

SECOND = 1_000_000_000


def evict(objects: Iterable[ObjectInfo], leased: frozenset[str], limits: Limits, now_ns: int) -> list[ObjectInfo]:
    """The objects to remove, least recently used first, of equal ones the one with the least id first."""
    everything = sorted(objects, key=lambda o: (o.used_ns, o.id))
    total = sum(o.size for o in everything)
    chosen = []
    for o in everything:
        if is_kept(o, leased, limits, now_ns):
            continue
        old = limits.older_than is not None and now_ns - o.used_ns > limits.older_than * SECOND
        over = limits.max_size is not None and total > limits.max_size
        if old or over:
            chosen.append(o)
            total -= o.size
    return chosen


def is_kept(o: ObjectInfo, leased: frozenset[str], limits: Limits, now_ns: int) -> bool:
    """Whether gc may not touch it: pinned, in use, or too new."""
    return o.pinned or o.id in leased or now_ns - o.written_ns < limits.grace * SECOND
