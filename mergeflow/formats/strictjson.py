"""JSON as the format of model files has it: what other readers of the same file would refuse is refused here.

Python's own parser is more generous. It takes UTF-16 and UTF-32 for text, halves of characters (lone surrogates) for
names, NaN and 1e999 for numbers, and of two entries of one name the later. https://www.rfc-editor.org/rfc/rfc8259
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

_HALF = re.compile(r"\\u[dD][89a-fA-F]")


class Duplicate(ValueError):
    """An object has two entries of this name."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def parse_json(raw: bytes) -> Any:
    """The document that `raw` is.

    Raises:
        Duplicate: two entries of one object have the same name.
        ValueError: it is not JSON, not UTF-8, or has text that is none.
        RecursionError: it is nested too deeply.
    """
    text = raw.decode("utf-8")
    document = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_refuse, parse_float=_fraction)
    if _HALF.search(text):  # escapes may join two halves into one character: only what comes out can tell
        json.dumps(document, ensure_ascii=False).encode("utf-8")
    return document


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise Duplicate(name)
            seen.add(name)
    return result


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


def _fraction(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is beyond all numbers")
    return value
