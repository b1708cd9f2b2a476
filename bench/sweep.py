"""What a sweep costs: five multipliers of one difference, built together in one pass over their sources, against five
builds of one output each.

`python -m bench.sweep RECIPE OUTPUT,OUTPUT OUTPUT …` is what is measured: each argument after the recipe is a build of
its own, with a project of its own, that makes everything anew. It prints the bytes that were read of the sources, as
the readers of files count them.

Twice: with the sources in the page cache, and with none of them there before each build, as it is for models that do
not fit into memory beside the outputs (`--cold MODEL,MODEL`). The first measures mostly how fast the disk writes five
files; the second what reading once saves.
"""

import argparse
import hashlib
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class _Case:
    """Where the sources are when a build begins."""

    name: str
    cold: bool

    def runs(self, way: str) -> str:
        return f"{way}, {self.name}"


CASES = (_Case("sources in the page cache", False), _Case("sources on the disk only", True))


def section(workload: Workload, place: Place, ours: Mergeflow, rounds: int) -> tuple[str, dict[str, list[Measurement]]]:
    """Measures the three ways by turns, and compares their outputs in the first round."""
    size = place.models(workload)[0].stat().st_size
    folder = place.fresh("sweep")
    free = shutil.disk_usage(folder).free
    if free < len(POINTS) * size + SPARE:
        print(
            f"sweep: {len(POINTS) * size / 1e9:.0f} GB of output need more than the {free / 1e9:.0f} GB free; skipped"
        )
        return "", {}
    text = recipe(workload, place, folder).replace("* 0.3", "* m").replace("out.safetensors", '"mix-{m}.safetensors"')
    text = text.replace("outputs:", f"params: {{ m: {{ sweep: [{', '.join(POINTS)}] }} }}\noutputs:")
    (folder / "sweep.yaml").write_text(text)
    ways = {TOGETHER: [[",".join(OUTPUTS)]], APART: [OUTPUTS], PROCESSES: [[output] for output in OUTPUTS]}
    _once([[OUTPUTS[0]]], workload, place, ours, folder)  # so that the digests of the sources are known
    runs: dict[str, list[Measurement]] = {}
    read: dict[str, int] = {}
    sums: dict[str, list[str]] = {}
    for turn in range(rounds):
        for case, (way, builds) in itertools.product(CASES, ways.items()):
            name = case.runs(way)
            run, read[name], found = _once(builds, workload, place, ours, folder, check=not turn, cold=case.cold)
            runs.setdefault(name, []).append(run)
            sums[name] = found or sums[name]
            print(f"sweep {turn + 1}/{rounds} {name}: {run.wall:.2f} s", flush=True)
    if len({*map(tuple, sums.values())}) > 1:
        raise measure.RunFailed("sweep: the outputs of one pass are not those of builds of one output each")
    shutil.rmtree(folder)
    return _text(workload, runs, read, rounds), runs


def _once(
    builds: Sequence[Sequence[str]], workload: Workload, place: Place, ours: Mergeflow, folder: Path, *,
    check: bool = False, cold: bool = False,
) -> tuple[Measurement, int, list[str]]:  # fmt: skip
    """One process for each of `builds`, added up; what they read of sources; the sha256 of the outputs, if asked for.
    The outputs are removed: at full size, those of two ways do not fit on every disk."""
    measured, read = [], 0
    models = place.models(workload)
    subprocess.run(["cat", *models], check=True, stdout=subprocess.DEVNULL)
    os.sync()
    for groups in builds:
        log = place.scratch / "sweep.log"
        command: Command = [sys.executable, "-m", "bench.sweep", "sweep.yaml", *groups]
        command += ["--cold", ",".join(map(str, models))] if cold else []
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
        "made anew. *Read of sources* is counted where files are read. The outputs are the same, byte for byte. Each "
        f"way beside the one build of five of its case: {CASES[0].name} before the first build, or {CASES[1].name} "
        "before each, as it is for models that do not fit into memory beside what is written."
    )
    lines = [
        f"## A sweep\n\n{what}\n",
        "| | wall s | wall / one build | CPU s | CPU / one build | read of sources GB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for case, way in itertools.product(CASES, (TOGETHER, APART, PROCESSES)):
        one, mine = runs[case.runs(TOGETHER)], runs[case.runs(way)]
        lines.append(
            f"| {case.runs(way)} | {report.spread(mine)} "
            f"| {report.middle(mine, report.wall) / report.middle(one, report.wall):.2f} "
            f"| {report.middle(mine, report.cpu):.2f} "
            f"| {report.middle(mine, report.cpu) / report.middle(one, report.cpu):.2f} "
            f"| {read[case.runs(way)] / 1e9:.2f} |"
        )
    return "\n".join(lines)


def evict(paths: Sequence[Path]) -> None:
    """Leave nothing of these files in the page cache."""
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.sweep", description="Build outputs, and count what is read.")
    parser.add_argument("recipe")
    parser.add_argument("builds", nargs="+", help="the outputs of each build, by commas")
    parser.add_argument("--cold", default="", help="files to evict from the page cache before each build, by commas")
    options = parser.parse_args()
    cold = [Path(path) for path in options.cold.split(",") if path]
    read = 0
    for outputs in options.builds:
        evict(cold)
        settings = mergeflow.Settings(force=True)
        with mergeflow.load(options.recipe, settings=settings) as project:
            read += sum(output.bytes_read for output in project.build(outputs.split(",")).outputs)
    print(read)


if __name__ == "__main__":
    main()
