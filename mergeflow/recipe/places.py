"""Where something stands in a recipe: from a character to file, line, column and an excerpt for a message."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from mergeflow.errors import Place

EXCERPT = 80  # characters of a line that a message shows


@runtime_checkable
class Anchor(Protocol):
    """What ties a piece of text to the file it came from."""

    def place(self, offset: int) -> Place: ...


class SourceText:
    """A whole text under the name of its file. Offsets count characters; lines end with a line feed."""

    __slots__ = ("_starts", "file", "text")

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self.text = text
        self._starts: list[int] = []

    def place(self, offset: int) -> Place:
        starts = self._line_starts()
        line = bisect_right(starts, offset) - 1
        begin = starts[line]
        end = starts[line + 1] - 1 if line + 1 < len(starts) else len(self.text)
        return Place(self.file, line + 1, offset - begin + 1, excerpt(self.text, begin, end, offset))

    def line_start(self, offset: int) -> int:
        return self.text.rfind("\n", 0, offset) + 1

    def _line_starts(self) -> list[int]:
        if not self._starts:
            starts, at = [0], self.text.find("\n")
            while at >= 0:
                starts.append(at + 1)
                at = self.text.find("\n", at + 1)
            self._starts = starts
        return self._starts


@dataclass(frozen=True, slots=True)
class Shifted:
    """The anchor of a text that begins `by` characters into a longer one."""

    anchor: Anchor
    by: int

    def place(self, offset: int) -> Place:
        return self.anchor.place(offset + self.by)


@dataclass(frozen=True, slots=True)
class Pieces:
    """The anchor of a text put together from several: `starts[i]` is where the piece of `anchors[i]` begins."""

    starts: tuple[int, ...]
    anchors: tuple[Anchor, ...]

    def place(self, offset: int) -> Place:
        piece = max(0, bisect_right(self.starts, offset) - 1)
        return self.anchors[piece].place(max(0, offset - self.starts[piece]))


def excerpt(text: str, begin: int, end: int, at: int) -> str:
    """At most EXCERPT characters of text[begin:end] around `at`, with … where it was cut."""
    left, right = begin, end
    if end - begin > EXCERPT:
        left = max(begin, min(at - EXCERPT // 3, end - EXCERPT))
        right = left + EXCERPT
    shown = text[left:right]
    if not shown.isprintable():
        shown = "".join(c if c.isprintable() else " " for c in shown)
    return ("…" if left > begin else "") + shown.strip() + ("…" if right < end else "")
