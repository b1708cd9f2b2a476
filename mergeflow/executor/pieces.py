"""A tensor whose program has kernels, as the loop sees it: results that come a piece at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from mergeflow.executor.device import Bytes
from mergeflow.formats.blocks import Block


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of the result, in a buffer that the next one is made in, too."""

    data: Bytes
    block: Block
    begin: int
    elements: int


class Making(Protocol):
    """One tensor, of whose operands everything is known that its kernels have to know."""

    def pieces(self) -> Iterator[Piece]:
        """The result from its beginning to its end."""

    def lost_before_rounding(self, piece: Piece) -> int:
        """How many of a piece's values were not finite before the last rounding."""
