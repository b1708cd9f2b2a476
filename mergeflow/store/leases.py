"""Which objects running builds will use: one small file for each lease, named after the process that holds it, so that
the lease of a build that died is recognised and does not keep anything for ever."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterable
from pathlib import Path

from mergeflow.formats.parts import write_text_file
from mergeflow.formats.processes import process_is_gone, process_mark

FIRST_LINE = "mergeflow lease 1"
FOREIGN = 24 * 3600.0  # seconds after which a lease of another machine, whose processes we cannot see, is given up
_serial = itertools.count()


class Leases:
    def __init__(self, folder: Path) -> None:
        self._folder = folder / "leases"

    def take(self, keys: Iterable[str]) -> Path:
        path = self._folder / f"{process_mark()}-{next(_serial)}.lease"
        write_text_file(path, "\n".join([FIRST_LINE, *keys, ""]))
        return path

    def names(self) -> frozenset[str]:
        """Of the files of leases that hold. A lease never changes, so equal names are equal leases."""
        return frozenset(path.name for path in self._files() if not _is_over(path))

    def keys(self, names: Iterable[str]) -> frozenset[str]:
        """The keys that these leases hold; none for one that ended meanwhile."""
        held: set[str] = set()
        for name in names:
            with contextlib.suppress(OSError):
                first, *keys = (self._folder / name).read_text(encoding="utf-8").splitlines() or [""]
                held.update(keys if first == FIRST_LINE else ())
        return frozenset(held)

    def clear(self) -> int:
        """Remove the leases that are over. Returns how many."""
        removed = 0
        for path in self._files():
            if _is_over(path):
                with contextlib.suppress(OSError):
                    path.unlink()
                    removed += 1
        return removed

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("*.lease"))


def _is_over(path: Path) -> bool:
    mark = path.stem.rpartition("-")[0]
    if process_is_gone(mark):
        return True
    if mark.partition("-")[0] == process_mark().partition("-")[0]:
        return False
    try:
        return time.time() - path.stat().st_mtime > FOREIGN
    except OSError:
        return True
