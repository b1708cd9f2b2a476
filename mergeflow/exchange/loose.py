"""JSON of strangers: read without surprise, and asked for what may be there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

MOST_EXPONENT = 400


def table(text: object) -> dict[str, Any]:
    """A JSON object, given as one or as its text; {} for anything else. Numbers stay exact decimals."""
    if isinstance(text, Mapping):
        return dict(text)
    if not isinstance(text, str):
        return {}
    try:
        found = json.loads(text, parse_float=Decimal, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def number(value: object) -> Fraction | None:
    """An exact number from a number or its text; None where there is none that is finite."""
    if isinstance(value, bool) or value is None:
        return None
    text = str(value).strip()
    try:
        found = Decimal(text)
    except ArithmeticError:
        return None
    exponent = found.as_tuple().exponent
    if not isinstance(exponent, int) or abs(exponent) > MOST_EXPONENT or len(text) > MOST_EXPONENT:
        return None
    return Fraction(found)


def word(value: object) -> str:
    """A text that is not empty, or ''."""
    return value.strip() if isinstance(value, str) else ""


def true(value: object) -> bool:
    return value is True or (isinstance(value, str) and value.strip().lower() in ("true", "1", "yes"))
