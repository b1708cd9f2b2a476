"""Which process of which machine wrote a file or needs it, as a part of file names; and whether it still lives."""

from __future__ import annotations

import functools
import os
import sys
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
    return boot != _boot() or _started(int(pid)) not in (started, _UNKNOWN)


@functools.cache
def _host() -> str:
    """This machine, among those that may share a folder. By its name alone two of one name would take each other's
    processes for dead; so would two containers that are called as their host: each counts processes by itself."""
    import platform

    return hash_bytes(f"{platform.node()}\n{_text('/etc/machine-id')}\n{_processes_of()}".encode()).hex()[:8]


def _processes_of() -> str:
    """The namespace that process numbers are of; that of a system without containers has the same name after a boot."""
    try:
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115  # a name, not a path
    except OSError:
        return ""


@functools.cache
def _boot() -> str:
    text = _text("/proc/sys/kernel/random/boot_id")
    return hash_bytes(text.encode()).hex()[:8] if text else "0"


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


_GONE, _UNKNOWN = "gone", "unknown"


def _started(pid: int) -> str:
    """When a process was started, as text: a pid alone may have been given to another process since. _GONE where there
    is none, _UNKNOWN where that is not for us to see.

    On Linux in the kernel's own count since the boot. The time of day that psutil makes of it moves with the clock,
    and when somebody set that, every process that lives would look like another one.
    """
    return _started_on_linux(pid) if sys.platform.startswith("linux") else _started_elsewhere(pid)


def _started_on_linux(pid: int) -> str:
    try:
        # Behind the name of the program, which may have spaces and brackets in it: the state is the third field of
        # proc(5), the start the 22nd.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return _GONE if fields[0] in (b"Z", b"X") else fields[19].decode("ascii")
    except (FileNotFoundError, ProcessLookupError):
        return _hidden(pid)
    except (OSError, LookupError, UnicodeDecodeError):
        return _UNKNOWN


def _hidden(pid: int) -> str:
    """A process that /proc does not show: where it is mounted with hidepid, those of other users are there."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return _GONE
    except OSError:
        return _UNKNOWN
    return _UNKNOWN


def _started_elsewhere(pid: int) -> str:
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return _GONE
        return str(int(process.create_time() * 100))
    except psutil.NoSuchProcess:
        return _GONE
    except psutil.Error:
        return _UNKNOWN
