"""Blocks: the stretches of a network, front to back, that a recipe gives numbers of their own (IN00 … OUT11, layers.7).

Every tensor belongs to exactly one block. What the network's patterns do not claim (text encoders, VAE, schedules)
lies outside the network, in BASE, or in a block of its own where block lists give it one.

A pattern is a glob with at most one `#`, which stands for a number; the block's name may take that number over.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import starmap

BASE = "BASE"
DIGITS = "0123456789"
NUMBER = "0|[1-9][0-9]{0,5}"


@dataclass(frozen=True, slots=True)
class NumberList:
    """One form of the lists of block weights that people paste: the blocks that its numbers are for, in order.

    `rest` is the number for the blocks outside the network that the list does not mention; None: the number of BASE.
    """

    names: tuple[str, ...]
    rest: Fraction | None = None

    @property
    def needs_base(self) -> bool:
        """Whether the number of BASE has to come from elsewhere."""
        return BASE not in self.names and self.rest is None


@dataclass(frozen=True, slots=True)
class Layout:
    """The blocks of an architecture. `order` has single names (M00), spans (IN00-IN11) and open groups (layers.#)."""

    order: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()
    tensors: Mapping[str, str] = field(default_factory=dict)
    lists: tuple[NumberList, ...] = ()
    names: tuple[str, ...] = field(init=False, compare=False)
    groups: tuple[str, ...] = field(init=False, compare=False)
    _places: Mapping[str, int] = field(init=False, repr=False, compare=False)
    _widths: Mapping[str, int] = field(init=False, repr=False, compare=False)
    _pattern: re.Pattern[str] = field(init=False, repr=False, compare=False)
    _targets: tuple[tuple[str, int], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        put = object.__setattr__
        names = expanded(self.order)
        places: dict[str, int] = {}
        widths: dict[str, int] = {}  # how many digits a block's number has at least, by what comes before the number
        for place, entry in enumerate(self.order):
            first = next(iter(expand(entry)), entry.removesuffix("#"))
            places[first] = place
            if not self.is_outside(first):
                before = first.rstrip(DIGITS)
                places[before], widths[before] = place, len(first) - len(before)
        put(self, "names", names)
        put(self, "groups", tuple(before.rstrip(".") for before in widths if before not in names))
        put(self, "_places", places)
        put(self, "_widths", widths)
        put(self, "_pattern", re.compile("|".join(starmap(_glob, self.tensors.items())) or r"(?!)", re.DOTALL))
        targets = [block.removesuffix("#") for block in self.tensors.values()]
        put(self, "_targets", (("", 0), *((target, widths.get(target, 0)) for target in targets)))

    def block(self, tensor: str) -> str | None:
        """The one block of the tensor, or None where no blocks are known."""
        found = self._pattern.match(tensor)
        if found is None:
            return BASE if self.names else None
        which = found.lastindex or 0
        before, width = self._targets[which]
        number: str = found[which]
        return before + number.zfill(width) if number else before

    def is_outside(self, block: str) -> bool:
        """Whether the block is no part of the network."""
        return block == BASE or block in self.outside

    def group(self, block: str) -> str | None:
        """IN of IN05, layers of layers.7; None for a block that stands alone."""
        if self.is_outside(block):
            return None
        group = block.rstrip(DIGITS).rstrip(".")
        return group if group in self.groups else None

    def numbered(self, like: str, number: str) -> str:
        """The block of that number in the group of another one: (layers.0, 15) -> layers.15, (IN00, 5) -> IN05."""
        before = like.rstrip(DIGITS)
        return before + number.zfill(self._widths.get(before, 0))

    def place(self, block: str) -> tuple[int, int]:
        """What sorts blocks front to back."""
        if block in self._places:
            return self._places[block], 0
        before = block.rstrip(DIGITS)
        return self._places.get(before, len(self.order)), int(block[len(before) :] or 0)

    def sorted(self, blocks: Iterable[str]) -> list[str]:
        return sorted(set(blocks), key=self.place)


def expand(entry: str) -> tuple[str, ...]:
    """IN00-IN11 -> IN00, IN01, … IN11. An open group has no names of its own: those are a model's.

    Raises:
        ValueError: the two ends are not of one group, or in the wrong order.
    """
    if entry.endswith("#"):
        return ()
    first, dash, last = entry.partition("-")
    if not dash:
        return (entry,)
    group = first.rstrip(DIGITS)
    digits, end = first[len(group) :], last.removeprefix(group)
    if not (digits.isdecimal() and end.isdecimal() and last.startswith(group) and int(digits) < int(end)):
        raise ValueError(f"{entry} is no span of blocks: write it as {group or 'IN'}00-{group or 'IN'}11")
    return tuple(f"{group}{i:0{len(digits)}}" for i in range(int(digits), int(end) + 1))


def expanded(entries: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for entry in entries for name in expand(entry))


def _glob(glob: str, block: str) -> str:
    """The glob with exactly one capturing group, which has the block's number: `lastindex` tells the globs apart."""
    body = re.escape(glob.removesuffix("*")).replace(r"\*", ".*").replace(r"\#", "#")
    body = body.replace("#", f"({NUMBER})") if block.endswith("#") else body.replace("#", f"(?:{NUMBER})") + "()"
    return body if glob.endswith("*") else body + r"\Z"
