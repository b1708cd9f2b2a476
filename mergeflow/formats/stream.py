"""Bytes of a file in order, a window at a time."""

from __future__ import annotations

from mergeflow.formats.files import ReadFile
from mergeflow.formats.pickled import Malformed

_WINDOW = 1 << 18


class Stream:
    """From one offset of a file to another. What it gives has the length that was asked for, or Malformed is raised."""

    def __init__(self, file: ReadFile, start: int, end: int) -> None:
        self.file = file
        self._next, self._end = start, min(end, file.size)
        self._window, self._at = b"", 0

    @property
    def position(self) -> int:
        return self._next - len(self._window) + self._at

    def take(self, n: int) -> bytes:
        at = self._at
        if at + n > len(self._window):
            self._need(n)
            at = 0
        self._at = at + n
        return self._window[at : at + n]

    def byte(self) -> int:
        if self._at >= len(self._window):
            self._need(1)
        self._at += 1
        return self._window[self._at - 1]

    def line(self) -> bytes:
        """Up to a newline, which is consumed and not returned."""
        searched = 0
        while (end := self._window.find(b"\n", self._at + searched)) < 0:
            searched = len(self._window) - self._at
            self._need(searched + 1)
        line = self._window[self._at : end]
        self._at = end + 1
        return line

    def _need(self, n: int) -> None:
        rest = self._window[self._at :]
        if n > len(rest) + self._end - self._next:
            raise Malformed("it ends in the middle")
        more = min(max(n - len(rest), _WINDOW, len(rest)), self._end - self._next)
        self._window, self._at = rest + self.file.read(more, self._next), 0
        self._next += more
