"""What a sweep costs: five multipliers of one difference, built together in one pass over their sources, against five
builds of one output each.

`python -m bench.sweep RECIPE OUTPUT,OUTPUT OUTPUT …` is what is measured: each argument after the recipe is a build of
its own, with a project of its own, that makes everything anew. It prints the bytes that were read of the sources, as
the readers of files count them.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import mergeflow
from bench import measure, report
from bench.contenders import ROOT, Command, Mergeflow, Place, recipe
from bench.measure import Measurement
from bench.workloads import Workload

POINTS = ("0.1", "0.2", "0.3", "0.4", "0.5")
OUTPUTS = [f"mix-{point}.safetensors" for point in POINTS]
SPARE = 2 << 30  # bytes of disk to leave free
TOGETHER, APART, PROCESSES = "one build of five", "five builds in one process", "five processes"


def section(workload: Workload, place: Place, ours: Mergeflow, rounds: int) -> tuple[str, dict[str, list[Measurement]]]:
    """Measures the three ways by turns, and compares their outputs in the first round."""
    size = place.models(workload)[0].stat().st_size
    free = shutil.disk_usage(place.scratch).free
    if free < len(POINTS) * size + SPARE:
        print(
            f"sweep: {len(POINTS) * size / 1e9:.0f} GB of output need more than the {free / 1e9:.0f} GB free; skipped"
        )
        return "", {}
    folder = place.fresh("sweep")
    text = recipe(workload, place, folder).replace("* 0.3", "* m").replace("out.safetensors", '"mix-{m}.safetensors"')
    text = text.replace("outputs:", f"params: {{ m: {{ sweep: [{', '.join(POINTS)}] }} }}\noutputs:")
    (folder / "sweep.yaml").write_text(text)
    ways = {TOGETHER: [[",".join(OUTPUTS)]], APART: [OUTPUTS], PROCESSES: [[output] for output in OUTPUTS]}
    _once([[OUTPUTS[0]]], workload, place, ours, folder)  # so that the digests of the sources are known
    runs: dict[str, list[Measurement]] = {way: [] for way in ways}
    read: dict[str, int] = {}
    sums: dict[str, list[str]] = {}
    for turn in range(rounds):
        for way, builds in ways.items():
            run, read[way], found = _once(builds, workload, place, ours, folder, check=not turn)
            runs[way].append(run)
            sums[way] = found or sums[way]
            print(f"sweep {turn + 1}/{rounds} {way}: {run.wall:.2f} s", flush=True)
    if any(found != sums[TOGETHER] for found in sums.values()):
        raise measure.RunFailed("sweep: the outputs of one pass are not those of builds of one output each")
    shutil.rmtree(folder)
    return _text(workload, runs, read, rounds), runs


def _once(
    builds: Sequence[Sequence[str]], workload: Workload, place: Place, ours: Mergeflow, folder: Path, *,
    check: bool = False,
) -> tuple[Measurement, int, list[str]]:  # fmt: skip
    """One process for each of `builds`, added up; what they read of sources; the sha256 of the outputs, if asked for.
    The outputs are removed: at full size, those of two ways do not fit on every disk."""
    measured, read = [], 0
    subprocess.run(["cat", *place.models(workload)], check=True, stdout=subprocess.DEVNULL)
    os.sync()
    for groups in builds:
        log = place.scratch / "sweep.log"
        command: Command = [sys.executable, "-m", "bench.sweep", "sweep.yaml", *groups]
        env = {**ours.env, "PYTHONPATH": str(ROOT)}
        measured.append(measure.run(command, cwd=folder, log=log, env=env))
        read += int(log.read_text().split()[-1])
    made = [path for path in (folder / output for output in OUTPUTS) if path.exists()]
    sums = []
    for path in made:
        if check:
            with path.open("rb") as file:
                sums.append(hashlib.file_digest(file, "sha256").hexdigest())
        path.unlink()
    return measure.total(measured), read, sums


def _text(workload: Workload, runs: dict[str, list[Measurement]], read: dict[str, int], rounds: int) -> str:
    what = (
        f"`{workload.formula.replace('* 0.3', '* m')}` for m of {', '.join(POINTS)}; medians of {rounds}, everything "
        "made anew. *Read of sources* is counted where files are read. The outputs are the same, byte for byte."
    )
    lines = [
        f"## A sweep\n\n{what}\n",
        "| | wall s | wall / one build | CPU s | CPU / one build | read of sources GB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    wall, cpu = (report.middle(runs[TOGETHER], quantity) for quantity in (report.wall, report.cpu))
    for way, mine in runs.items():
        lines.append(
            f"| {way} | {report.spread(mine)} | {report.middle(mine, report.wall) / wall:.2f} "
            f"| {report.middle(mine, report.cpu):.2f} | {report.middle(mine, report.cpu) / cpu:.2f} "
            f"| {read[way] / 1e9:.2f} |"
        )
    return "\n".join(lines)


def main(path: str, *builds: str) -> None:
    read = 0
    for outputs in builds:
        settings = mergeflow.Settings(force=True)
        with mergeflow.load(path, settings=settings) as project:
            read += sum(output.bytes_read for output in project.build(outputs.split(",")).outputs)
    print(read)


if __name__ == "__main__":
    main(*sys.argv[1:])
