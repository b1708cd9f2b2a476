"""Compares mergeflow with the floor and with its peers: `make bench`, or `python -m bench.run`.

    --only weighted,difference   workloads (all: weighted, difference, chain, many) or sections (edit, sweep,
                                 noop, planning, memory); `limited`, `methods` only
                                 if named
    --rounds 5                   rounds per workload (default 3)
    --no-peers, --no-mergeflow   leave contenders out
    --shrink 16                  small files, to see that everything runs; the figures mean nothing
    --models 3                   only workloads of at most that many models (six take 13 GB of disk)
    --sparse                     the memory section on files ten times as large too (needs 21 GB of disk)
    --write-docs                 write docs/benchmarks.md

Files go to build/bench and are used again by the next run. Progress is printed as it goes, tables at the end;
build/bench/results.json holds every single measurement.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench import (
    check,
    contenders,
    edit,
    limited,
    machine,
    measure,
    memory,
    methods,
    noop,
    peers,
    planning,
    report,
    sweep,
    workloads,
)
from bench.contenders import ROOT, Contender, Mergeflow, Place
from bench.workloads import Workload

SECTIONS = ("edit", "sweep", "noop", "planning", "memory")
ON_REQUEST = ("limited", "methods")  # take 28 and 11 GB of disk, and long
SMALL = ("--shrink", "16", "--count", "2000")  # the files that outputs are checked on
TIMEOUT = 1800.0  # seconds for one run of one contender


@dataclass
class Results:
    """Everything measured, as it goes into results.json."""

    machine: dict[str, str]
    versions: dict[str, dict[str, str]]
    rounds: int
    load: float
    workloads: dict[str, dict[str, list[dict[str, float]]]] = field(default_factory=dict)
    not_nearest_per_million: dict[str, dict[str, float]] = field(default_factory=dict)
    edit: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    sweep: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    noop: dict[str, list[float]] = field(default_factory=dict)
    planning: dict[str, list[float]] = field(default_factory=dict)
    memory: dict[str, dict[str, float]] = field(default_factory=dict)
    limited: dict[str, dict[str, float]] = field(default_factory=dict)
    methods: dict[str, list[dict[str, float]]] = field(default_factory=dict)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    work: Path = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    entrants = enter(options, work)
    results = Results(machine.describe(work), versions(entrants), options.rounds, machine.load())
    if results.load > 0.5:
        print(
            f"load average {results.load:.1f}: other processes are running, trust CPU seconds more than wall",
            flush=True,
        )
    body = [measured(workload, entrants, options, work, results) for workload in chosen(options)]
    ours = next((one for one in entrants if isinstance(one, Mergeflow) and not one.first), None)
    if ours:
        body += sections(options, work, ours, results)
    (work / "results.json").write_text(json.dumps(asdict(results), indent=1) + "\n")
    shutil.rmtree(work / "scratch", ignore_errors=True)
    text = report.page(results.machine, results.versions, options.rounds, body)
    print("\n" + text)
    if options.write_docs:
        (ROOT / "docs" / "benchmarks.md").write_text(text)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = [*workloads.ALL, *SECTIONS]
    parser = argparse.ArgumentParser(prog="bench.run", description="Compare mergeflow with the floor and its peers.")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench", help="folder for files (build/bench)")
    parser.add_argument("--only", default=",".join(names), metavar="LIST", help=f"of {', '.join(names)}")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--models", type=int, default=6, metavar="N", help="leave out workloads of more models")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--no-mergeflow", action="store_true")
    parser.add_argument("--no-check", action="store_true", help="do not check outputs against numpy first")
    parser.add_argument("--shrink", type=int, default=1, metavar="N", help="files of SD1.5 made smaller, for a trial")
    parser.add_argument("--sparse", action="store_true", help="memory on sparse files too")
    parser.add_argument("--sparse-times", type=int, default=10, metavar="N", help="how many times larger (10)")
    parser.add_argument("--write-docs", action="store_true", help="write docs/benchmarks.md")
    options = parser.parse_args(arguments)
    options.only = options.only.split(",")
    if unknown := set(options.only) - {*names, *ON_REQUEST}:
        parser.error(f"--only: {', '.join(sorted(unknown))}: not one of {', '.join([*names, *ON_REQUEST])}")
    if not options.no_mergeflow and not contenders.executable().exists():
        parser.error(f"no mergeflow command beside {Path(sys.executable).name}; install it, or use --no-mergeflow")
    return options


def chosen(options: argparse.Namespace) -> list[Workload]:
    """The workloads that were asked for and that the models suffice for."""
    asked = [workload for workload in workloads.ALL.values() if workload.name in options.only]
    return [workload for workload in asked if len(workload.models) <= options.models]


def enter(options: argparse.Namespace, work: Path) -> list[Contender]:
    """The contenders, in the order in which they run and are listed."""
    entrants: list[Contender] = [contenders.Floor(), contenders.ImportTorch()]
    if not options.no_mergeflow:
        memo = work / "memo"
        entrants += [Mergeflow(memo), Mergeflow(memo, first=True)]
    if not options.no_peers and any(workload.peers for workload in chosen(options)):
        python = peers.ensure()
        entrants += [contenders.sd_mecha(python), contenders.mergekit(python)]
    return entrants


def versions(entrants: Sequence[Contender]) -> dict[str, dict[str, str]]:
    found = {"mergeflow's environment": machine.packages()}
    for entrant in entrants:
        if isinstance(entrant, contenders.Peer):
            found["peers' environment"] = machine.peer_packages(entrant.python, peers.PACKAGES)
    return found


def measured(
    workload: Workload, entrants: Sequence[Contender], options: argparse.Namespace, work: Path, results: Results
) -> str:
    """Makes a workload's files, checks the contenders on small ones, runs the rounds; the section for the page."""
    place = Place(files(workload, *sized(options, work)), work / "scratch")
    taking = [entrant for entrant in entrants if entrant.takes(workload)]
    missed = {} if options.no_check else checked(workload, taking, work)
    warm_up(workload, taking, place)
    runs: dict[str, list[measure.Measurement]] = {entrant.name: [] for entrant in taking}
    for turn in range(options.rounds):
        for entrant in taking:
            run = once(entrant, workload, place)
            runs[entrant.name].append(run)
            print(f"{workload.name} {turn + 1}/{options.rounds} {entrant.name}: {run.wall:.2f} s", flush=True)
    results.workloads[workload.name] = singles(runs)
    results.not_nearest_per_million[workload.name] = missed
    return report.section(workload, runs, missed)


def sized(options: argparse.Namespace, work: Path) -> tuple[Path, *tuple[str, ...]]:
    """The folder of the models, and how they are made."""
    return (work,) if options.shrink == 1 else (work / f"shrunk-{options.shrink}", "--shrink", str(options.shrink))


def files(workload: Workload, folder: Path, *options: str) -> Path:
    """Makes the models of a workload where they are missing; the folder they are in."""
    count = ord(workload.models[-1]) - ord("a") + 1
    layout = [sys.executable, "-m", "bench.layout", str(folder), "--layout", workload.layout, "--models", str(count)]
    subprocess.run([*layout, *options], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return folder


def checked(workload: Workload, entrants: Sequence[Contender], work: Path) -> dict[str, float]:
    """Runs the contenders on small files and compares with numpy; elements not nearest, per million."""
    place = Place(files(workload, work / "small", *SMALL), work / "scratch")
    missed = {}
    for entrant in entrants:
        command, folder, made = entrant.prepare(workload, place)
        if made is None:
            continue
        measure.run(command, cwd=folder, log=log(entrant, place), env=entrant.env, timeout=TIMEOUT)
        missed[entrant.name] = check.check(workload, place.models(workload), made)
        print(f"{workload.name} check {entrant.name}: right; {missed[entrant.name]:,.0f} ppm not nearest", flush=True)
    return missed


def warm_up(workload: Workload, entrants: Sequence[Contender], place: Place) -> None:
    """Lets mergeflow see the files once, so that it knows their digests when it is measured."""
    for entrant in entrants:
        if isinstance(entrant, Mergeflow) and not entrant.first:
            once(entrant, workload, place)


def once(entrant: Contender, workload: Workload, place: Place) -> measure.Measurement:
    """One run from a clean start: nothing dirty, inputs in the page cache, no output there. Its output is removed."""
    command, folder, made = entrant.prepare(workload, place)
    subprocess.run(["cat", *place.models(workload)], check=True, stdout=subprocess.DEVNULL)
    os.sync()
    run = measure.run(command, cwd=folder, log=log(entrant, place), env=entrant.env, timeout=TIMEOUT)
    if made is not None and not made.exists():
        raise measure.RunFailed(f"{entrant.name} made no {made.name}")
    shutil.rmtree(folder, ignore_errors=True)
    return run


def singles(runs: Mapping[str, Sequence[measure.Measurement]]) -> dict[str, list[dict[str, float]]]:
    """Every single measurement, for results.json."""
    return {name: [asdict(run) for run in done] for name, done in runs.items()}


def log(entrant: Contender, place: Place) -> Path:
    return place.scratch / f"{entrant.name}.log"


def sections(options: argparse.Namespace, work: Path, ours: Mergeflow, results: Results) -> list[str]:
    """The sections about mergeflow alone."""
    body = []
    if "limited" in options.only:
        text, limits = limited.section(work, ours, options.shrink)
        results.limited = {name: dict[str, Any](asdict(run)) for name, run in limits.items()}
        body.append(text)
    if "methods" in options.only:
        folder, *how = sized(options, work)
        place = Place(files(methods.LINEAR, folder, *how), work / "scratch")
        text, runs = methods.section(place, ours, options.rounds, None if options.no_peers else peers.ensure())
        results.methods = singles(runs)
        body.append(text)
    if not set(options.only) & set(SECTIONS):
        return body
    workload = workloads.DIFFERENCE
    place = Place(files(workload, *sized(options, work)), work / "scratch")
    if "edit" in options.only:
        text, runs = edit.section(workload, place, ours, options.rounds)
        results.edit = singles(runs)
        body.append(text)
    if "sweep" in options.only:
        text, runs = sweep.section(workload, place, ours, options.rounds)
        results.sweep = singles(runs)
        body.append(text)
    if "noop" in options.only:
        text, results.noop = noop.section(workload, place, ours)
        body.append(text)
    if "planning" in options.only:
        text, results.planning = planning.section(work / "planning", options.rounds)
        body.append(text)
    if "memory" in options.only:
        first = Mergeflow(ours.memo, first=True)
        text, scales = memory.section(workload, place, first, options.sparse_times if options.sparse else None)
        results.memory = {scale: dict[str, Any](asdict(run)) for scale, run in scales.items()}
        body.append(text)
    return body


if __name__ == "__main__":
    try:
        main()
    except (measure.RunFailed, check.WrongOutput) as error:
        sys.exit(f"bench: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"bench: {error} (`--no-peers` needs no packages installed)")
