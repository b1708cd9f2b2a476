"""Several files as one: a model in shards, or in the folders of a pipeline, read by positions that count through all.

Position 0 is the first byte of the first file; each file follows the one before it. A tensor lies in one file.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Self

from mergeflow.formats.files import Fingerprint, ReadFile


class ReadFiles:
    """An input of one or more files, read at positions by any number of threads."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files: list[ReadFile] = []
        try:
            for path in paths:
                self._files.append(ReadFile(path))  # those opened must be closed when one fails
        except BaseException:
            self.close()
            raise
        self.starts = [0, *accumulate(file.size for file in self._files)]

    @property
    def size(self) -> int:
        return self.starts[-1]

    @property
    def opened(self) -> tuple[Fingerprint, ...]:
        """What each file was when it was opened."""
        return tuple(file.opened for file in self._files)

    @property
    def bytes_read(self) -> int:
        return sum(file.bytes_read for file in self._files)

    def read_into(self, view: memoryview, position: int) -> None:
        """Fill `view`, which lies in one file, from `position`."""
        i = bisect.bisect_right(self.starts, position) - 1
        self._files[i].read_into(view, position - self.starts[i])

    def check_unchanged(self) -> None:
        for file in self._files:
            file.check_unchanged()

    def close(self) -> None:
        for file in self._files:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
