"""What this machine lets a build use: cores by affinity and quota, memory by what is free and by the limits
of its control groups and of its address space."""

from __future__ import annotations

import os
import re
from pathlib import Path

from mergeflow.errors import RecipeError
from mergeflow.plan.place import FLOOR, Budget
from mergeflow.tensors import parse_bytes

_GROUP = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_UNLIMITED = 1 << 60  # what version 1 of control groups says where there is no limit is a little less than 2**63
TORCH_MAPPED = 550_000_000  # address space that importing torch takes beyond the memory that counts (measured: 490 MB)
THREAD_MAPPED = 80_000_000  # of each thread: its stack and what the allocator sets aside for it


def parse_memory(text: str) -> int:
    """'4GB', '800M', '1.5 GiB' in bytes.

    Raises:
        RecipeError: it is no amount, or none at all.
    """
    amount = parse_bytes(text)
    if amount is None:
        shown = text if len(text) <= 40 else f"{text[:39]}…"
        raise RecipeError(f"{shown} is not an amount of memory", hint="write it as 4GB or 800MB")
    if not amount:
        raise RecipeError("no memory at all is too little", hint="write it as 4GB or 800MB")
    return amount


def budget(memory: int | None = None, vram: int | None = None) -> Budget:
    """Cores that this process may use, and memory: what was asked for, else half of what is available now; never more
    than limits that end a process which passes them. `vram` as it was asked for."""
    cores = _cores()
    free, limit = _free(), ""
    hard = _group_left()
    if hard is not None:
        limit = "the limit of its control group"
    space = _space_left()
    if space is not None:
        left = space + FLOOR - TORCH_MAPPED
        cores = max(1, min(cores, (left - FLOOR) // (2 * THREAD_MAPPED)))
        left -= cores * THREAD_MAPPED
        if hard is None or left < hard:
            hard, limit = left, "the limit of its address space (ulimit -v)"
    wanted = memory or max(min(free, free if hard is None else hard) // 2, 300_000_000)
    if hard is None or wanted <= hard:
        return Budget(wanted, cores, vram)
    return Budget(hard, cores, vram, limit)


def _cores() -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _groups("cpu"):
        quota = _read(folder / "cpu.max").split() or [
            _read(folder / "cpu.cfs_quota_us"),
            _read(folder / "cpu.cfs_period_us"),
        ]
        if len(quota) == 2 and quota[0].isdigit() and quota[1].isdigit():
            usable = min(usable, max(1, int(quota[0]) // int(quota[1])))
    return usable


def _groups(controller: str) -> list[Path]:
    """The folders of the control groups that this process is in, from its own to the root: of version 2, or of 1, where
    each controller has a tree. A container often sees its own group as the root, so the root always counts."""
    found: list[Path] = []
    for line in _read(_MEMBERSHIP).splitlines():
        _, names, path = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        root = _GROUP / controller if names else _GROUP
        inside = root / path.lstrip("/")
        found += [folder for folder in (inside, *inside.parents) if folder.is_relative_to(root)]
    return list(dict.fromkeys([*found, _GROUP]))


def _group_left() -> int | None:
    """Bytes that the control groups leave: limits less what is used, but for files in the page cache, which make room.
    None where there is no limit."""
    left: int | None = None
    for folder in _groups("memory"):
        limit = _read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")
        used = _read(folder / "memory.current") or _read(folder / "memory.usage_in_bytes")
        if not (limit.isdigit() and used.isdigit()) or int(limit) >= _UNLIMITED:
            continue
        said = re.findall(r"^(?:total_)?(?:active|inactive)_file (\d+)$", _read(folder / "memory.stat"), re.M)
        here = int(limit) - int(used) + sum(map(int, said[-2:]))  # of version 1 those with total_, which come last
        left = here if left is None else min(left, here)
    return left


def _space_left() -> int | None:
    """Bytes of address space that `ulimit -v` leaves this process. None where there is no limit."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    limits = [resource.getrlimit(which)[0] for which in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    limits = [limit for limit in limits if limit != resource.RLIM_INFINITY]
    if not limits:
        return None
    pages = _read(Path("/proc/self/statm")).split()
    mapped = int(pages[0]) * resource.getpagesize() if pages else 0
    return min(limits) - mapped


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
