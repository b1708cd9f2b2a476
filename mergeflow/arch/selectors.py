"""Selectors: what a profile may call a set of tensors, and which of two that hold for one tensor is narrower.

    BASE                       all that lies outside the network
    text_encoder, vae          a group of components, a component
    OUT, IN00-IN05, IN05       a group of blocks, a range of them, one block
    *.attn1.*, /attn[12]/      a glob, a regular expression to be found anywhere in the name
    OUT *.attn1.*              any of the above that has no wildcard, a space, and a glob, an expression or a name
    model.….to_k.weight        a tensor by name

Ranks are integers in that order, so the narrowest selector is the one with the highest rank.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from enum import IntEnum
from functools import lru_cache
from typing import NoReturn

from mergeflow.arch.base import Architecture
from mergeflow.arch.blocks import BASE
from mergeflow.errors import Place, RecipeError, UnknownName, nearest

RANGE = re.compile(r"(\S*?[0-9]|[A-Z]+[0-9]*)-(\S*?[0-9]|[A-Z]+[0-9]*)")
WILDCARDS = frozenset("*?[")
_SPAN = re.compile(r"(\S+?)\s*(?:\.\.+|…|–|:)\s*(\S+)")  # what people write for a range
_ELSEWHERE = {  # what other tools, and people, call parts of models
    "te": "text_encoder", "text": "text_encoder", "encoder": "text_encoder",
    "mid": "M00", "middle": "M00", "transformer": "diffuser", "dit": "diffuser",
}  # fmt: skip


class Rank(IntEnum):
    """How narrow a selector is. A glob inside something is WITHIN plus the rank of what it is inside of; a tensor's own
    name is narrower than all else.

    DEFAULT and LISTED are not selectors but what lies beneath them: `default`, and the numbers of a preset or list.
    """

    DEFAULT = 0
    BASE = 10
    LISTED = 20
    COMPONENT_GROUP = 30
    COMPONENT = 40
    GROUP = 50
    RANGE = 60
    BLOCK = 70
    GLOB = 80
    WITHIN = 100
    EXACT = 200


def select(
    architecture: Architecture, selector: str, names: Sequence[str], *, place: Place | None = None
) -> tuple[int, list[int]]:
    """How narrow the selector is (see Rank), and the positions in `names` that it holds for, in order.

    A component or a pattern that is known and fits nothing gives an empty list; that is the caller's to judge.

    Raises:
        UnknownName: neither a part of this architecture, nor a pattern, nor a tensor.
        RecipeError: a regular expression or a range that cannot be read.
    """
    return _index(architecture, tuple(names)).select(selector.strip(), place)


def blocks_of(architecture: Architecture, names: Sequence[str]) -> tuple[str, ...]:
    """The blocks that these tensors are in, front to back; more than `architecture.blocks` where depths vary."""
    return tuple(architecture.layout.sorted(_index(architecture, tuple(names)).blocks))


class _Index:
    """The tensors of one model by block and by component, so that a profile of 26 selectors looks at them once."""

    def __init__(self, architecture: Architecture, names: tuple[str, ...]) -> None:
        self.architecture, self.names = architecture, names
        self.blocks: dict[str, list[int]] = {}
        self.components: dict[str, list[int]] = {}
        self.positions = {name: i for i, name in enumerate(names)}
        block, component = architecture.block, architecture.component
        for i, name in enumerate(names):
            if found := block(name):
                self.blocks.setdefault(found, []).append(i)
            if found := component(name):
                self.components.setdefault(found, []).append(i)
        self.known = dict.fromkeys((*architecture.blocks, *self.blocks))

    def select(self, selector: str, place: Place | None) -> tuple[int, list[int]]:
        position = self.positions.get(selector)
        if position is not None and self._part(selector, place) is None:
            return Rank.EXACT, [position]
        if _is_expression(selector) or not any(c.isspace() for c in selector):
            found = self._pattern(selector, range(len(self.names)), place) or self._part(selector, place)
            if found is None:
                self._unknown(selector, place)
            return found
        head, inner = selector.split(None, 1)
        outer = self._part(head, place)
        if outer is None:
            self._unknown(head, place)
        rank, inside = outer
        pattern = self._pattern(inner, inside, place)
        if pattern is None:
            pattern = Rank.EXACT, [i for i in inside if self.names[i] == inner]
        return Rank.WITHIN + rank, pattern[1]

    def _pattern(self, text: str, among: Sequence[int], place: Place | None) -> tuple[int, list[int]] | None:
        names = self.names
        if _is_expression(text):
            try:
                search = re.compile(text[1:-1]).search
            except re.error as error:
                raise RecipeError(
                    f"{text} is not a regular expression: {error}",
                    place=place,
                    hint="for a plain pattern write it without the slashes, as *.attn1.*",
                ) from None
            return Rank.GLOB, [i for i in among if search(names[i])]
        if WILDCARDS.isdisjoint(text):
            return None
        match = re.compile(fnmatch.translate(text)).match
        return Rank.GLOB, [i for i in among if match(names[i])]

    def _part(self, name: str, place: Place | None) -> tuple[int, list[int]] | None:
        """A part of the model: of two things that share a name, the narrower one."""
        layout = self.architecture.layout
        if name == BASE and layout.names:
            return Rank.BASE, self._joined(b for b in self.blocks if layout.is_outside(b))
        if name in self.known:
            return Rank.COMPONENT if layout.is_outside(name) else Rank.BLOCK, self.blocks.get(name, [])
        if name in layout.groups:
            return Rank.GROUP, self._joined(b for b in self.blocks if layout.group(b) == name)
        if (components := self.architecture.groups.get(name)) is not None:
            return Rank.COMPONENT_GROUP, self._joined(components, self.components)
        if name in self.architecture.components:
            return Rank.COMPONENT, self.components.get(name, [])
        return self._range(name, place)

    def _range(self, text: str, place: Place | None) -> tuple[int, list[int]] | None:
        layout = self.architecture.layout
        if not layout.names or not (ends := RANGE.fullmatch(text)):
            return None
        first, last = ends.groups()
        if last.isdecimal():
            last = layout.numbered(first, last)
        for end in (first, last):
            if end not in self.known or layout.is_outside(end):
                self._unknown(end, place)
        if layout.place(first) > layout.place(last):
            raise RecipeError(f"the range {text} runs backwards", place=place, hint=f"write {last}-{first}")
        low, high = layout.place(first), layout.place(last)
        network = (b for b in self.blocks if not layout.is_outside(b))
        return Rank.RANGE, self._joined(b for b in network if low <= layout.place(b) <= high)

    def _joined(self, keys: Iterable[str], among: dict[str, list[int]] | None = None) -> list[int]:
        table = self.blocks if among is None else among
        return sorted(i for key in keys for i in table.get(key, ()))

    def _unknown(self, name: str, place: Place | None) -> NoReturn:
        architecture = self.architecture
        parts = [*self.known, *architecture.layout.groups, *architecture.component_names]
        what = "component or tensor"
        if parts:
            what = f"{'block or ' if self.known else ''}component of {architecture.title}"
        hint = "a pattern has a wildcard, as in '*.attn1.*'"
        if not parts:
            hint = f"the architecture is not known, nor are its parts; {hint}"
        elif (ends := _SPAN.fullmatch(name)) and {*ends.groups()} <= {*self.known}:
            raise RecipeError(f"{name} is no range of blocks", place=place, hint=f"write {ends[1]}-{ends[2]}")
        elif (other := _ELSEWHERE.get(name.casefold())) in parts:
            raise UnknownName(what, name, (), place=place, hint=f"did you mean {other}? {hint}")
        elif not nearest(name, [*parts, "default", *self.names[:5000]]):
            hint = f"there are {', '.join([*architecture.component_names, *architecture.layout.order])}; {hint}"
        padded = re.sub(r"(?<=[A-Z])(?=[0-9]$)", "0", name)  # IN0, for IN00
        meant = [padded] if padded in self.known else [*parts, "default", *self.names[:5000]]
        raise UnknownName(what, name, meant, place=place, hint=hint)


def _is_expression(text: str) -> bool:
    return len(text) > 2 and text.startswith("/") and text.endswith("/")


@lru_cache(maxsize=4)
def _index(architecture: Architecture, names: tuple[str, ...]) -> _Index:
    return _Index(architecture, names)
