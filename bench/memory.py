"""Whether memory depends on the size of the model: mergeflow's anonymous peak on files of one size and of ten.

The large inputs are sparse files, which take no disk; the output is not sparse, so this asks for as much free space as
one large model (`--sparse-times` sets how large).
"""

import shutil
import subprocess
import sys

from bench import measure, report
from bench.contenders import ROOT, Mergeflow, Place
from bench.workloads import Workload

SPARE = 2 << 30  # bytes to leave free


def section(
    workload: Workload, place: Place, mergeflow: Mergeflow, times: int | None
) -> tuple[str, dict[str, measure.Measurement]]:
    """Merges the ordinary files and, if `times` is given and the disk has room, files that many times as large."""
    runs = {"1": _merge(workload, place, mergeflow)}
    note = "Not measured on larger files; `--sparse` does that."
    if times:
        size = times * place.models(workload)[0].stat().st_size
        free = shutil.disk_usage(place.scratch).free
        if free < size + SPARE:
            note = f"Not measured on {times} times larger files: the output needs {size / 1e9:.0f} GB of disk."
            print(
                f"memory: {size / 1e9:.0f} GB of output need more than the {free / 1e9:.0f} GB free; skipped",
                flush=True,
            )
        else:
            runs[str(times)] = _merge(workload, _sparse(workload, place, times), mergeflow)
            note = ""
    rows = [
        f"| {scale} | {int(scale) * place.models(workload)[0].stat().st_size / 1e9:.1f} "
        f"| {run.anonymous / report.MIB:,.0f} | {run.rss / report.MIB:,.0f} | {run.wall:.1f} |"
        for scale, run in runs.items()
    ]
    head = "| size | GB per model | peak anonymous MiB | peak RSS MiB | wall s |\n|---:|---:|---:|---:|---:|"
    text = "\n".join([f"## Memory\n\n`{workload.formula}`, one run each, digests not remembered.\n", head, *rows])
    return (f"{text}\n\n{note}" if note else text), runs


def _merge(workload: Workload, place: Place, mergeflow: Mergeflow) -> measure.Measurement:
    command, folder, _ = mergeflow.prepare(workload, place)
    try:
        return measure.run(command, cwd=folder, log=place.scratch / "memory.log", env=mergeflow.env)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sparse(workload: Workload, place: Place, times: int) -> Place:
    layout = [sys.executable, "-m", "bench.layout", str(place.inputs), "--sparse-times", str(times)]
    subprocess.run([*layout, "--models", str(len(workload.models))], check=True, cwd=ROOT)
    return Place(place.inputs, place.scratch, prefix=f"sd15x{times}")
