"""Describes the machine that figures were taken on, without naming it."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

PACKAGES = ("mergeflow", "torch", "numpy", "safetensors", "blake3")
ASK = """
import json, sys
from importlib.metadata import version
print(json.dumps({name: version(name) for name in sys.argv[1:]}))
"""


def describe(work: Path) -> dict[str, str]:
    """What a reader needs to judge the figures by."""
    return {
        "processor": _after("/proc/cpuinfo", "model name", ":"),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{int(_after('/proc/meminfo', 'MemTotal', ':').split()[0]) / (1 << 20):.1f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "file system": file_system(work),
        "python": platform.python_version(),
    }


def packages() -> dict[str, str]:
    """Versions in the project's environment; what is not installed is left out."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def peer_packages(python: Path, names: Sequence[str]) -> dict[str, str]:
    """Versions in the peers' environment."""
    answer = subprocess.run([python, "-c", ASK, *names], check=True, capture_output=True, text=True)
    return dict(json.loads(answer.stdout))


def file_system(path: Path) -> str:
    """The type of the file system that a folder is on, from the longest mount point above it."""
    folder = path.resolve()
    mounts = [line.split()[1:3] for line in Path("/proc/self/mounts").read_text().splitlines()]
    above = [(len(point), kind) for point, kind in mounts if folder.is_relative_to(point)]
    return max(above, default=(0, "unknown"))[1]


def load() -> float:
    """The load average of the last minute: above about 0.5 before a run, others are at work here too."""
    return os.getloadavg()[0]


def _after(path: str, name: str, separator: str) -> str:
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(separator)
        if key.strip() == name:
            return value.strip()
    return "unknown"


if __name__ == "__main__":
    json.dump(describe(Path.cwd()) | packages(), sys.stdout, indent=1)
