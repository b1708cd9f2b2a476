"""Where in a TOML file a field is written: the standard library's reader keeps values and forgets lines."""

from __future__ import annotations

import re
from collections.abc import Iterator

_KEY = r"""(?:"(?:[^"\\]|\\.)*"|'[^']*'|[A-Za-z0-9_-]+)"""
_KEYS = rf"{_KEY}(?:\s*\.\s*{_KEY})*"
_HEADER = re.compile(rf"\s*(\[\[?)\s*({_KEYS})\s*\]")
_ENTRY = re.compile(rf"\s*({_KEYS})\s*=")
_PART = re.compile(rf"({_KEY})(?: ([0-9]+))?")

Path = tuple[str, ...]


def locate(text: str, field: str) -> tuple[int, int]:
    """Line and column, from 1, of a field as errors name it (`blocks.tensors."net.*"`, `detect 2.has`); of the nearest
    table around it where it is not there itself; (0, 0) where nothing is."""
    wanted = tuple(_wanted(field))
    best, place = 0, (0, 0)
    for number, column, path in _written(text):
        common = 0
        while common < min(len(path), len(wanted)) and path[common] == wanted[common]:
            common += 1
        if common == len(path) and common > best:
            best, place = common, (number, column)
    return place


def _wanted(field: str) -> Iterator[str]:
    """`detect 2.has` is ("detect", "2", "has")."""
    for match in _PART.finditer(field):
        yield _bare(match[1])
        if match[2]:
            yield match[2]


def _written(text: str) -> Iterator[tuple[int, int, Path]]:
    """Each header and each key at the beginning of a line: its place, and the path to it."""
    counts: dict[Path, int] = {}
    table: Path = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            table = tuple(_bare(key) for key in re.findall(_KEY, header[2]))
            if header[1] == "[[":
                counts[table] = counts.get(table, 0) + 1
            for depth in range(len(table), 0, -1):  # inside a list of tables, its last one is meant
                if nth := counts.get(table[:depth]):
                    table = (*table[:depth], str(nth), *table[depth:])
            yield number, header.start(1) + 1, table
        elif entry := _ENTRY.match(line):
            yield number, entry.start(1) + 1, (*table, *(_bare(key) for key in re.findall(_KEY, entry[1])))


def _bare(key: str) -> str:
    return key[1:-1] if key[0] in "\"'" else key
