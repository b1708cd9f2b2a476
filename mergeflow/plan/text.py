"""Normal forms in a line that people read: `1·anything + 0.3·nai − 0.3·sfw`, `1·a + 1·ties_trim(1·b − 1·a, …)`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction

from mergeflow.ir.forms import Applied, Form, Rounded
from mergeflow.ir.numbers import decimal

LONGEST = 24  # terms shown of one sum
DEEPEST = 4  # calls shown inside one another


def join_terms(terms: Iterable[tuple[Fraction, str]]) -> str:
    parts, shown = list(terms), ""
    for i, (share, name) in enumerate(parts[:LONGEST]):
        sign = "−" if share < 0 else "" if not i else "+"
        space = " " if i else ""
        shown += f"{space}{sign}{space}{decimal(abs(share))}·{name}"
    if len(parts) > LONGEST:
        shown += f" … ({len(parts):,} terms)"
    return shown or "0"


def form_text(form: Form, name: Callable[[int], str], point: Callable[[Rounded | Applied], str] | None = None) -> str:
    """Terms with the largest shares first, then by name. Rounding points show as round(dtype) and kernels as calls of
    what they are applied to, unless `point` has a name for them."""
    return _form(form, name, point or (lambda leaf: ""), DEEPEST)


def _form(form: Form, name: Callable[[int], str], point: Callable[[Rounded | Applied], str], depth: int) -> str:
    terms = []
    for share, leaf in form.terms:
        if isinstance(leaf, int):
            shown = name(leaf)
        elif not (shown := point(leaf)):
            rounded = isinstance(leaf, Rounded) and leaf.dtype
            shown = f"round({rounded.label})" if rounded else _call(leaf, name, point, depth)
        terms.append((share, shown))
    return join_terms(sorted(terms, key=lambda t: (-t[0], t[1])))


def _call(
    leaf: Rounded | Applied, name: Callable[[int], str], point: Callable[[Rounded | Applied], str], depth: int
) -> str:
    """sum_sign(ties_trim(1·b − 1·a, density=0.2), …): as deep as a reader follows, and no deeper."""
    assert isinstance(leaf, Applied)
    if not depth:
        return f"{leaf.kernel.name}(…)"
    operands = []
    for i, operand in enumerate(leaf.operands):
        text = _form(operand.form, name, point, depth - 1).removeprefix("1·" if len(operand.form.terms) == 1 else "")
        weight = leaf.weights[i] if leaf.weights else 1
        if weight != 1:
            several = len(operand.form.terms) != 1
            text = f"{f'({text})' if several else text} @ {decimal(leaf.weights[i])}"
        operands.append(text)
    if leaf.kernel.symmetric:
        operands.sort()
    arguments = [f"{key}={decimal(value)}" for key, value in leaf.arguments]
    arguments += [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in leaf.options]
    return f"{leaf.kernel.name}({', '.join([*operands, *arguments])})"
