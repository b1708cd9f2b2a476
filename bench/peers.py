"""Makes the peers' own environment, build/bench-venv: `python -m bench.peers` (nothing is done when it is there).

torch comes first, at the version that mergeflow's measurements use: pulled in by another package it would be the newest
build, another version than mergeflow's and, on Linux, with gigabytes of CUDA libraries.
"""

import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TORCH = "torch==2.13.0"
REQUIREMENTS = Path(__file__).with_name("peers.txt")
PACKAGES = ("torch", "numpy", "safetensors", "sd-mecha", "mergekit")


def ensure(folder: Path = ROOT / "build" / "bench-venv") -> Path:
    """The environment's interpreter, after installing what is missing."""
    python = folder / "bin" / "python"
    stamp = folder / "bench-peers.txt"  # written last: an environment left half made is made again
    wanted = f"{TORCH}\n{REQUIREMENTS.read_text()}"
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"installing the peers into {folder.relative_to(ROOT)}", flush=True)
    venv.create(folder, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, TORCH], check=True)
    subprocess.run([*pip, "-r", str(REQUIREMENTS)], check=True)
    stamp.write_text(wanted)
    return python


if __name__ == "__main__":
    sys.exit(subprocess.run([ensure(), "-c", "import sd_mecha, mergekit"], check=False).returncode)
