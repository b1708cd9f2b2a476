"""The shares that the terms of a graph's forms have: in most tensors, and in those where it is another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any


@dataclass(slots=True)
class Share:
    """A term's share: in most tensors, and in those where it is another."""

    usual: Fraction = Fraction(0)
    others: dict[str, Fraction] = field(default_factory=dict)

    def __neg__(self) -> Share:
        return Share(-self.usual, {name: -share for name, share in self.others.items()})

    @property
    def least(self) -> Fraction:
        return min([self.usual, *self.others.values()])


def terms(form: Mapping[str, Any]) -> dict[str, Fraction]:
    """The terms of a sum, models by digest and inner forms as the graph names them."""
    over = int(form["over"])
    return {str(leaf): Fraction(int(count), over) for count, leaf in form["terms"]}


def shares_of(
    forms: Sequence[Mapping[str, Any]], primary: str, usual: int, elsewhere: Mapping[int, Sequence[str]]
) -> dict[str, Share]:
    """The share of each term, the primary's first. A term that a form has not has the share 0 there."""
    sums = {n: terms(forms[n]) for n in (usual, *elsewhere)}
    found: dict[str, Share] = {}
    for leaf in sorted({leaf: None for n in sums for leaf in sums[n]}, key=lambda leaf: leaf != primary):
        share = found[leaf] = Share(sums[usual].get(leaf, Fraction(0)))
        for n, names in elsewhere.items():
            here = sums[n].get(leaf, Fraction(0))
            if here != share.usual:
                share.others |= dict.fromkeys(names, here)
    return found
