"""Tensors that are there already: an earlier build made the same, by key, in a file that still lies where it was.

Those of outputs are copied instead of computed, and hashed as they are copied. Those of the store's objects, in the
compute dtype, are what programs begin from; they are hashed before. What a file was said to hold decides what is tried,
never what is written.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from mergeflow.formats.files import Fingerprint
from mergeflow.plan.program import COPY, TensorWork


@dataclass(frozen=True, slots=True)
class KeptFile:
    """A file with tensors to take: an output (`at` is what it looked like when its content was recorded), what an
    `interrupted` build of an output (its name) has left, or an object of the store by its id; a `new` one is made by
    this very build."""

    path: Path | None = None
    at: Fingerprint | None = None
    interrupted: str = ""
    object: str = ""
    new: bool = False


class Check(NamedTuple):
    """A tensor of an object: its bytes must have this digest before they are used."""

    key: str
    offset: int
    nbytes: int
    payload: bytes


class Kept(NamedTuple):
    """One tensor in an output: where its bytes begin, and the digest they must have."""

    file: KeptFile
    offset: int
    payload: bytes


@dataclass(slots=True)
class Keeping:
    """The files that tensors are taken from, numbered after the sources, and what has to be checked of each."""

    first: int
    files: dict[KeptFile, int] = field(default_factory=dict)
    checks: dict[int, list[Check]] = field(default_factory=dict)

    def number(self, file: KeptFile) -> int:
        return self.files.setdefault(file, self.first + len(self.files))


def wanted(works: Sequence[TensorWork]) -> set[str]:
    """The keys of the tensors that would have to be computed."""
    return {work.key for work in works if work.computed}


def take(works: Sequence[TensorWork], found: Mapping[str, Kept], keeping: Keeping) -> dict[str, TensorWork]:
    """By name, how tensors are copied that are there already."""
    taken = {}
    for work in works:
        kept = found.get(work.key) if work.computed else None
        if kept is not None:
            read = (keeping.number(kept.file), kept.offset)
            taken[work.name] = TensorWork(
                work.name, work.dtype, work.shape, work.key, COPY, (read,), payload=kept.payload
            )
    return taken


def nothing(keys: Collection[str]) -> Mapping[str, Kept]:
    """Where there is nowhere to look."""
    del keys
    return {}
