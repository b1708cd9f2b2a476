"""The entries of a canonical graph in an order that follows from their content.

Entries name one another by number. Models that are listed in another order give the same entries with other numbers;
here each gets the number that its content gives it: simpler entries first, those alike by the hash of what they say.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from fractions import Fraction
from typing import Any

from mergeflow.digest import hash_bytes

Entry = dict[str, Any]


def in_order(entries: Sequence[Entry], symmetric: Collection[str]) -> tuple[list[Entry], list[int]]:
    """The entries in order, with their references; and the new number of each. Those that an entry refers to come
    before it. The operands of `symmetric` kernels are in no order, and get one."""
    names: list[str] = []
    heights: list[int] = []
    for entry in entries:
        inner = _references(entry)
        heights.append(1 + max((heights[n] for n in inner), default=0))
        said = _renamed(entry, names, entry.get("apply") in symmetric)
        names.append(hash_bytes(json.dumps(said).encode()).hex())
    order = sorted(range(len(entries)), key=lambda n: (heights[n], names[n]))
    number = {old: new for new, old in enumerate(order)}
    numbers = [number[n] for n in range(len(entries))]
    return [_renamed(entries[n], numbers, entries[n].get("apply") in symmetric) for n in order], numbers


def _references(entry: Entry) -> list[int]:
    if "to" in entry:
        return [n for _, n in entry["to"]]
    return [int(name.rpartition(" ")[2]) for _, name in entry["terms"] if " " in name]


def _renamed(entry: Entry, names: Sequence[str] | Sequence[int], symmetric: bool) -> Entry:
    """The entry with other names for those it refers to."""
    if "to" in entry:
        to = [[weight, names[n]] for weight, n in entry["to"]]
        return {**entry, "to": sorted(to, key=lambda item: (-Fraction(item[0]), item[1])) if symmetric else to}
    terms = []
    for share, name in entry["terms"]:
        what, _, n = name.rpartition(" ")
        terms.append([share, f"{what} {names[int(n)]}" if what else name])
    return {**entry, "terms": sorted(terms, key=lambda item: (-int(item[0]), item[1]))}
