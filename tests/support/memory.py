"""How much memory a process takes while it does something."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil


def own() -> int:
    """Bytes that nobody but this process has: without libraries shared with others and the page cache."""
    return int(psutil.Process().memory_full_info().uss)


@dataclass
class Peak:
    """`most` of what was seen every few milliseconds, `before` what there was at the beginning; bytes."""

    before: int
    most: int


@contextmanager
def watched() -> Iterator[Peak]:
    peak, done = Peak(own(), 0), threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak.most = max(peak.most, own())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
