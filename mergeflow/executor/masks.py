"""Random masks of the compiled kernels: which elements of a tensor are kept (`mergeflow.methods.compiled.Drop`)."""

from __future__ import annotations

from mergeflow.executor import _kernels
from mergeflow.executor.device import Bytes
from mergeflow.methods.compiled import Drop
from mergeflow.methods.masks import limits


class Mask:
    """The mask of one operand, any stretch of it. The density is below 1."""

    def __init__(self, drop: Drop) -> None:
        self._name = drop.name
        self._whole, self._rest = limits(drop.density)

    def write(self, begin: int, out: Bytes) -> None:
        """A byte for each element from `begin` on: 1 where it is kept, else 0."""
        _kernels.mask(self._name, self._whole, self._rest, begin, out)
