"""Tensors that are there already: an earlier build made the same, by key, in a file that still lies where it was.

They are copied instead of computed, and hashed as they are copied: what a file was said to hold decides what is tried,
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
    """A file with tensors to take. `at` is what it looked like when its content was recorded."""

    path: Path
    at: Fingerprint


class Kept(NamedTuple):
    """One tensor in such a file: where its bytes begin, and the digest they must have."""

    file: KeptFile
    offset: int
    payload: bytes


@dataclass(slots=True)
class Keeping:
    """The files that tensors are taken from, numbered after the sources."""

    first: int
    files: list[KeptFile] = field(default_factory=list)

    def number(self, file: KeptFile) -> int:
        if file not in self.files:
            self.files.append(file)
        return self.first + self.files.index(file)


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
