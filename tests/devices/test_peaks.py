"""The predicted peak is true: builds in a process of their own, whose anonymous memory is watched from outside."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support.builds import TESTS, recipe, write_models
from support.checkpoints import related, weights

from mergeflow.executor.device import KERNELS_VARIABLE
from mergeflow.plan.place import TENSOR, TILES, TWO_PHASE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory of a process is told by /proc")
ROWS, COLUMNS, TENSORS = 1024, 1024, 4
BUILD = """
import sys
from pathlib import Path
from support.builds import project
with project(Path(sys.argv[1]), sys.argv[2], memory=int(sys.argv[3]), jobs=2, force=True) as p:
    placement = p.plan().outputs[0].placement
    print(placement.strategy, placement.workers, placement.peak)
    p.build()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng, found = np.random.default_rng(2), tmp_path_factory.mktemp("peaks")
    base = {f"w{i}": weights(rng, "F16", (ROWS, COLUMNS)) for i in range(TENSORS)}
    write_models(found, {m: {name: related(rng, tensor) for name, tensor in base.items()} for m in "abc"})
    return found


def watched(folder: Path, text: str, memory: int, kernels: str) -> tuple[str, int, int, int]:
    """Strategy, workers and peak by the plan; then the most anonymous memory that was seen of the process."""
    command = [sys.executable, "-P", "-c", BUILD, str(folder), text, str(memory)]
    environment = {"PYTHONPATH": TESTS, KERNELS_VARIABLE: kernels}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        seen, status = 0, Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            if said := re.search(r"RssAnon:\s+(\d+) kB", status.read_text()):
                seen = max(seen, int(said[1]) * 1024)
            time.sleep(0.003)
        assert process.stdout is not None
        strategy, workers, peak = process.stdout.read().split()
    assert process.returncode == 0
    return strategy, int(workers), int(peak), seen


TIES, SVD = "ties(c, [a, b], density=0.2)", "truncate_rank(a - b, 16) + b"
ROOMY = 2 * 10**9
WITH_TORCH = pytest.mark.slow  # its import alone takes seconds


@pytest.mark.parametrize(
    ("expression", "strategy", "kernels", "memory", "workers"),
    [
        ("a + (b - c) * 0.3", TILES, "", ROOMY, 2),
        (TIES, TWO_PHASE, "", ROOMY, 2),
        (TIES, TWO_PHASE, "", 150_000_000, 1),
        pytest.param("a + (b - c) * 0.3", TILES, "torch", ROOMY, 2, marks=WITH_TORCH),
        pytest.param(TIES, TWO_PHASE, "torch", ROOMY, 2, marks=WITH_TORCH),
        pytest.param(TIES, TWO_PHASE, "torch", 300_000_000, 1, marks=WITH_TORCH),
        pytest.param(SVD, TENSOR, "", ROOMY, 2, marks=WITH_TORCH),
        pytest.param("top_k_tensor_sum(a, b, 0.5)", TENSOR, "", 450_000_000, 2, marks=WITH_TORCH),
    ],
)
def test_no_build_takes_more_than_its_plan_says(
    folder: Path, expression: str, strategy: str, kernels: str, memory: int, workers: int
) -> None:
    """And not a small part of it either, with much room and with little."""
    found, count, predicted, seen = watched(folder, recipe(expression), memory, kernels)
    assert (found, count) == (strategy, workers)
    assert predicted <= memory
    assert predicted / 4 < seen < predicted
