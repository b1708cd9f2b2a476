"""What is known of the files that sources are, apart from their tensors: only outputs that ask for it look."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


def _no_metadata(source: int) -> Mapping[str, str]:
    return {}


def _no_hashes(source: int) -> tuple[str, str] | None:
    return None


@dataclass(frozen=True, slots=True)
class Originals:
    """`metadata` is what a source's file says of itself. `hashes` are its sha256 and A1111's old hash (64 and 8
    digits), None where the source is not one file; asking for them reads the file, the first time."""

    metadata: Callable[[int], Mapping[str, str]] = _no_metadata
    hashes: Callable[[int], tuple[str, str] | None] = _no_hashes
