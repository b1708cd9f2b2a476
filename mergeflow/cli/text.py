"""How things are written on the terminal: tables, counts, durations; and JSON, always one object with a schema."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click


def paint(text: str, **style: Any) -> str:
    """Coloured, where the terminal shows colours (click strips them elsewhere) and NO_COLOR is not set."""
    return text if os.environ.get("NO_COLOR") else click.style(text, **style)


_CONTROL = re.compile(r"(\x1b\[[0-9;]*m)|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def echo(text: str, *, err: bool = False, nl: bool = True) -> None:
    """All that is printed but JSON. Names and metadata of files are whatever their makers wrote: control characters
    are shown as escapes, so that none moves the cursor or renames a window; colours stay."""
    click.echo(_CONTROL.sub(lambda found: found[1] or ascii(found[0])[1:-1], text), err=err, nl=nl)


def json_text(schema: str, **fields: Any) -> str:
    """Pure ASCII, so that no terminal or pipe can damage it."""
    return json.dumps({"schema": schema, **fields}, indent=2)


def print_json(schema: str, **fields: Any) -> None:
    click.echo(json_text(schema, **fields))


def plural(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def seconds(duration: float) -> str:
    if duration < 10:
        return f"{duration:.1f} s"
    if duration < 100:
        return f"{duration:.0f} s"
    minutes, rest = divmod(round(duration), 60)
    return f"{minutes} min {rest} s"


def listed(items: Sequence[str], limit: int = 6) -> str:
    rest = f" and {len(items) - limit:,} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + rest


def width(text: str) -> int:
    """Columns on a terminal: Chinese and Japanese characters take two."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def short_path(path: str | Path) -> str:
    """A file as somebody in the current folder would call it."""
    here = Path.cwd().resolve()
    return Path(path).relative_to(here).as_posix() if Path(path).is_relative_to(here) else str(path)


def kept_file(file: Mapping[str, Any]) -> str:
    """What an earlier build has left (an entry of `describe.kept_files`), as people call it."""
    name = file["interrupted"]
    return f"an interrupted build of {name}" if name else short_path(file["file"])


def table(
    rows: Iterable[Sequence[str]], *, indent: str = "  ", right: Iterable[int] = (), limit: int = 48
) -> list[str]:
    """Lines in aligned columns; the last column is never padded, and no other wider than `limit`. Columns in `right`
    are aligned on the right."""
    cells = [tuple(row) for row in rows]
    if not cells:
        return []
    count = max(map(len, cells))
    widths = [min(limit, max((width(row[i]) for row in cells if i < len(row)), default=0)) for i in range(count)]
    to_right = {i % count for i in right}
    lines = []
    for row in cells:
        parts = [_padded(cell, widths[i], i in to_right, last=i == len(row) - 1) for i, cell in enumerate(row)]
        lines.append(f"{indent}{'  '.join(parts)}".rstrip())
    return lines


def _padded(cell: str, columns: int, to_right: bool, *, last: bool) -> str:
    space = " " * max(0, columns - width(cell))
    return space + cell if to_right else cell if last else cell + space
