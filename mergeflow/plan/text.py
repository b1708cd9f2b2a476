"""Normal forms in a line that people read: `1·anything + 0.3·nai − 0.3·sfw`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction

from mergeflow.ir.forms import Form, Rounded
from mergeflow.ir.numbers import decimal

LONGEST = 24  # terms shown of one sum


def join_terms(terms: Iterable[tuple[Fraction, str]]) -> str:
    parts, shown = list(terms), ""
    for i, (share, name) in enumerate(parts[:LONGEST]):
        sign = "−" if share < 0 else "" if not i else "+"
        space = " " if i else ""
        shown += f"{space}{sign}{space}{decimal(abs(share))}·{name}"
    if len(parts) > LONGEST:
        shown += f" … ({len(parts):,} terms)"
    return shown or "0"


def form_text(form: Form, name: Callable[[int], str]) -> str:
    """Terms with the largest shares first, then by name. Rounding points show as round(dtype)."""
    terms = [
        (share, f"round({leaf.dtype.label})" if isinstance(leaf, Rounded) else name(leaf)) for share, leaf in form.terms
    ]
    return join_terms(sorted(terms, key=lambda t: (-t[0], t[1])))
