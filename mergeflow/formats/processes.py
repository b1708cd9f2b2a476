"""Which process of which machine wrote a file or needs it, as a part of file names; and whether it still lives."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from mergeflow.digest import hash_bytes


def process_mark() -> str:
    """This process on this machine, as a part of file names: who writes or needs them. `process_is_gone` reads it."""
    return f"{_host()}-{_boot()}-{os.getpid()}-{_started(os.getpid())}"


def process_is_gone(mark: str) -> bool:
    """Whether the process of a mark is known to be dead; of other machines nothing is known."""
    fields = mark.split("-")
    return len(fields) == 4 and _writer_is_dead(*fields)


def _writer_is_dead(host: str, boot: str, pid: str, started: str) -> bool:
    if host != _host() or not pid.isdigit():
        return False
    return boot != _boot() or _started(int(pid)) != started


@functools.cache
def _host() -> str:
    import platform

    return hash_bytes(platform.node().encode()).hex()[:8]


@functools.cache
def _boot() -> str:
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        return "0"
    return hash_bytes(text.encode()).hex()[:8]


def _started(pid: int) -> str:
    """When a process was started, as text, or 'gone': a pid alone may have been given to another process since."""
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return "gone"
        return str(int(process.create_time() * 100))
    except psutil.Error:
        return "gone"
