"""What this machine lets a build use: cores by affinity and quota, memory by what is free and by its group's limit."""

from __future__ import annotations

import os
import re
from pathlib import Path

from mergeflow.errors import RecipeError
from mergeflow.plan.place import Budget

_UNITS = {"": 1, "B": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_GROUP = Path("/sys/fs/cgroup")


def parse_memory(text: str) -> int:
    """'4GB', '800M', '1.5 GiB' in bytes."""
    match = re.fullmatch(r"\s*([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([KMGT]?)(I?)B?\s*", text.upper())
    if match is None:
        shown = text if len(text) <= 40 else f"{text[:39]}…"
        raise RecipeError(f"{shown} is not an amount of memory", hint="write it as 4GB or 800MB")
    number, unit, binary = match.groups()
    factor = 1024 ** " KMGT".index(unit) if binary and unit else _UNITS[unit]
    amount = int(float(number) * factor)
    if not amount:
        raise RecipeError("no memory at all is too little", hint="write it as 4GB or 800MB")
    return amount


def budget(memory: int | None = None) -> Budget:
    """Cores that this process may use, and memory: what was asked for, else half of what is available now."""
    return Budget(memory or max(_available() // 2, 300_000_000), _cores())


def _cores() -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _read(_GROUP / "cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit():
        usable = min(usable, max(1, int(quota[0]) // int(quota[1])))
    return usable


def _available() -> int:
    """Free memory as the system counts it, and no more than what the control group has left."""
    available = _free()
    limit, used = _read(_GROUP / "memory.max"), _read(_GROUP / "memory.current")
    if limit.isdigit() and used.isdigit():
        cached = sum(
            int(n) for n in re.findall(r"^(?:active|inactive)_file (\d+)$", _read(_GROUP / "memory.stat"), re.M)
        )
        available = min(available, int(limit) - int(used) + cached)
    return available


def _free() -> int:
    """From /proc where there is one: importing psutil takes longer than a whole plan."""
    if match := re.search(r"^MemAvailable:\s+(\d+) kB", _read(Path("/proc/meminfo")), re.M):
        return int(match[1]) * 1024
    import psutil

    return int(psutil.virtual_memory().available)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
