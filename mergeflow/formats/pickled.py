"""What the reader of pickles makes of things that are no data: marks of ours in the place of functions, classes and
objects, and the two ways in which a pickle can be wrong."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass


class Malformed(ValueError):
    """Not a pickle, or not one that a model could be. The text says why; `load` puts the path before it."""


class Refused(Exception):
    """A valid pickle that asks for something that is not data."""


class Inert:
    """Stands for an object that was not made: an instance of a class, a set, a device. It can be filled, not used."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


@dataclass(frozen=True, slots=True, eq=False)
class Stranger:
    """The mark of a class that is known to be harmless to name. Calling it gives an Inert."""

    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Function:
    """The mark of a function that is allowed, with what this program does in its place: it must check its arguments,
    raise `Malformed` when they are wrong, and take time in proportion to what it was given."""

    name: str
    run: Callable[[tuple[object, ...]], object]


class Fillable(ABC):
    """Base of what a BUILD opcode may set state on, besides mappings and Inert."""

    __slots__ = ()

    @abstractmethod
    def build(self, state: object) -> None:
        """Take the state in, as far as it is of any use."""


def plain_key(key: object) -> object:
    """A key that hashes fast and honestly; in place of any other, one that nothing will ever find."""
    if isinstance(key, (str, bytes, float, Stranger)) or key is None:
        return key
    if isinstance(key, int) and key.bit_length() <= 64:
        return key
    return Inert(type(key).__name__)
