"""What happens during a build, as frozen values. Whoever wants to show it passes a Reporter; nobody here prints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """Base of what a Reporter is told."""


@dataclass(frozen=True, slots=True)
class PhaseStarted(Event):
    """`verb` is 'hashing', 'fetching' or 'merging', `subject` what of, by its name, `total` the bytes to come."""

    verb: str
    subject: str
    total: int


@dataclass(frozen=True, slots=True)
class Progressed(Event):
    """`nbytes` more of the running phase are done."""

    nbytes: int


@dataclass(frozen=True, slots=True)
class PhaseEnded(Event):
    verb: str
    subject: str


@dataclass(frozen=True, slots=True)
class Planning(Event):
    """So many of the outputs are planned; told before each of them and, with `done` equal to `total`, when all of the
    plan is made."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class OutputDone(Event):
    """One output file is complete, or was complete already. `reason` says why in one line."""

    path: str
    built: bool
    reason: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class Noted(Event):
    """Something worth a line that nobody has to do anything about."""

    message: str


@dataclass(frozen=True, slots=True)
class Warned(Event):
    message: str


Reporter = Callable[[Event], None]


def silent(event: Event) -> None:
    """The reporter of those who only want the result."""
