"""What the parts of an expression come to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from mergeflow.errors import MergeflowError
from mergeflow.ir.nodes import Scaled
from mergeflow.ir.numbers import Number, Varying
from mergeflow.methods.registry import Weighted


@dataclass(frozen=True, slots=True)
class Word:
    """A name that nothing in scope has: one of the words that a method's option takes, or else the error `unknown`."""

    name: str
    unknown: Callable[[], MergeflowError]


Value = Number | Scaled | Weighted | list["Value"] | bool | Word


def known(value: Value) -> Value:
    """The value where no word of an option may stand.

    Raises:
        MergeflowError: it is one.
    """
    if isinstance(value, Word):
        raise value.unknown()
    return value


def flattened(values: Sequence[Value]) -> list[Value]:
    """A list of models, with those of the lists in it (a source may be a list) in their places."""
    flat: list[Value] = []
    stack = list(reversed(values))
    while stack:
        item = stack.pop()
        if isinstance(item, list):
            stack += reversed(item)
        else:
            flat.append(item)
    return flat


def described(value: object) -> str:
    """As a message calls it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Fraction | Varying):
        return "a number"
    if isinstance(value, Scaled):
        return "a model"
    if isinstance(value, Word):
        return value.name
    if isinstance(value, Weighted):
        return "a weighted model (@ belongs in a list of models)"
    return "a list" if isinstance(value, list) and flattened(value) else "an empty list"
