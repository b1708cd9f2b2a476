"""Tensors computed whole: as many at a time as there is memory for, their products the same on all processors."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Intel's library, which torch calls for matrices on x86-64, picks instructions by the processor unless it is told
# before its first call to keep to those that all of them have. Other builds of torch do not know the word.
os.environ["MKL_CBWR"] = "COMPATIBLE"


class Gate:
    """Room of so many bytes that workers share. Nobody asks for more than all of it: the plan sees to that."""

    def __init__(self, nbytes: int) -> None:
        self._free = nbytes
        self._changed = threading.Condition()

    @contextmanager
    def admitted(self, nbytes: int) -> Iterator[None]:
        """Wait until there is room, and hold it meanwhile."""
        with self._changed:
            self._changed.wait_for(lambda: nbytes <= self._free)
            self._free -= nbytes
        try:
            yield
        finally:
            with self._changed:
                self._free += nbytes
                self._changed.notify_all()
