"""Runs one command as a whole process and measures it from outside (Linux).

What the numbers are:
- wall: from starting the process to its end.
- user, system: CPU seconds of the process and the children it waited for (wait4).
- rss: the largest resident set of any one of these processes, pages of mapped files included (wait4's maxrss; Linux
  starts it at the measuring process's own, less than 100 MB, so nothing smaller shows).
- anonymous: the largest sum of RssAnon over the process tree, sampled every 20 ms: memory that is really needed, which
  mapped files are not. A peak shorter than that can be missed.
- read: bytes asked of the kernel by read calls (rchar), from the page cache or not, taken after the process has ended
  and before it is reaped, so nothing is missed. What is read through mappings of files is not in it.
"""

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
INTERVAL_MS = 20


@dataclass(frozen=True)
class Measurement:
    """One run; seconds and bytes."""

    wall: float
    user: float
    system: float
    rss: int
    anonymous: int
    read: int

    @property
    def cpu(self) -> float:
        return self.user + self.system


def total(runs: Sequence[Measurement]) -> Measurement:
    """Processes one after the other, as one: seconds and bytes read add up, memory is that of the largest."""
    return Measurement(
        sum(run.wall for run in runs),
        sum(run.user for run in runs),
        sum(run.system for run in runs),
        max(run.rss for run in runs),
        max(run.anonymous for run in runs),
        sum(run.read for run in runs),
    )


class RunFailed(Exception):
    """A measured command failed or took too long; the text ends with the last of its output."""


def run(
    command: Sequence[str | Path], *, cwd: Path, log: Path, env: Mapping[str, str] | None = None, timeout: float = 3600
) -> Measurement:
    """Runs a command with its output going to `log`."""
    ours = {**os.environ, **(env or {})}
    ours.pop("PYTHONDONTWRITEBYTECODE", None)  # packages are compiled once, when installed or first imported
    with log.open("wb") as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=cwd,
            env=ours,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        anonymous, in_time = _watch(process.pid, start + timeout)
        wall = time.perf_counter() - start
    if not in_time:
        os.killpg(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    read = _field(PROC / str(process.pid) / "io", "rchar:")
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        tail = log.read_text(errors="replace")[-2000:]
        reason = f"exit status {process.returncode}" if in_time else f"over {timeout:.0f} s"
        raise RunFailed(f"{Path(command[0]).name}: {reason}\n{tail}")
    return Measurement(wall, usage.ru_utime, usage.ru_stime, usage.ru_maxrss * 1024, anonymous, read)


def _watch(pid: int, deadline: float) -> tuple[int, bool]:
    """Samples until the process ends or the deadline passes: the peak of anonymous bytes, and whether it ended."""
    peak = 0
    handle = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        while not poll.poll(INTERVAL_MS):
            peak = max(peak, sum(_field(PROC / str(one) / "status", "RssAnon:") * 1024 for one in _tree(pid)))
            if time.perf_counter() > deadline:
                return peak, False
    finally:
        os.close(handle)
    return peak, True


def _tree(pid: int) -> Iterator[int]:
    """A process and all its descendants."""
    waiting = [pid]
    while waiting:
        pid = waiting.pop()
        yield pid
        for task in _listed(PROC / str(pid) / "task"):
            waiting.extend(int(child) for child in _text(task / "children").split())


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _text(path: Path) -> str:
    """A file of /proc, empty when its process has just gone."""
    with contextlib.suppress(OSError):
        return path.read_text()
    return ""


def _field(path: Path, name: str) -> int:
    """The number in the line that starts with `name`, 0 where there is none."""
    for line in _text(path).splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    return 0
