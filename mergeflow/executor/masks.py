"""Random masks of the compiled kernels: which elements of a tensor are kept (`mergeflow.methods.compiled.Drop`)."""

from __future__ import annotations

from math import floor

from mergeflow.executor import _kernels
from mergeflow.executor.device import Bytes
from mergeflow.methods.compiled import Drop

_UNDECIDED = 2


class Mask:
    """The mask of one operand, any stretch of it. The density is below 1."""

    def __init__(self, drop: Drop) -> None:
        limit = drop.density * 65536
        self._key = drop.key
        self._words = int.from_bytes(drop.key[:8], "little"), int.from_bytes(drop.key[8:16], "little")
        self._whole = floor(limit)
        self._rest = floor((limit - self._whole) * (1 << 64))

    def write(self, begin: int, out: Bytes) -> None:
        """A byte for each element from `begin` on: 1 where it is kept, else 0."""
        equal = _UNDECIDED if self._rest else 0
        if _kernels.mask(self._words, self._whole, equal, begin, out) and self._rest:
            from blake3 import blake3

            written, i = out.tobytes(), -1
            while (i := written.find(_UNDECIDED, i + 1)) >= 0:  # one element in 65,536, by 64 more bits
                more = blake3(self._key + (begin + i).to_bytes(8, "little")).digest()
                out[i] = int.from_bytes(more[:8], "little") < self._rest
