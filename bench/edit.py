"""What an edit costs: one weight of one block of a merge changed, against copying its output, making all of it again,
and finding nothing to do. Whole processes, by turns.
"""

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench import measure, report
from bench.contenders import OUTPUT, Command, Mergeflow, Place, executable, recipe
from bench.measure import Measurement
from bench.workloads import Workload

BLOCK = "IN05"
PARAMS = f"params: {{ k: {{ default: 0.3, {BLOCK}: %s }} }}\n"
WEIGHTS = ("0.4", "0.5")  # by turns: each is news to the output that the other has left
COPY: Command = ["sh", "-c", f"cp --reflink=never {OUTPUT} copy && sync copy"]
ROWS = ("copy of the output", "one weight changed", "all of it (--force)", "nothing changed")


@dataclass
class _Trial:
    """The folder with the recipe, and what is done in it."""

    workload: Workload
    place: Place
    mergeflow: Mergeflow
    folder: Path
    turn: int = 0
    runs: dict[str, list[Measurement]] = field(default_factory=lambda: {row: [] for row in ROWS})

    def edit(self) -> None:
        """The recipe with the weight that it has not now."""
        text = recipe(self.workload, self.place, self.folder).replace("* 0.3", "* k")
        weight = WEIGHTS[self.turn % len(WEIGHTS)]
        self.turn += 1
        (self.folder / "recipe.yaml").write_text(text.replace("outputs:", PARAMS % weight + "outputs:"))

    def run(self, row: str, command: Command) -> None:
        """One process, nothing dirty and all inputs in the page cache before it."""
        inputs = [*self.place.models(self.workload), self.folder / OUTPUT]
        subprocess.run(["cat", *inputs], check=True, stdout=subprocess.DEVNULL)
        os.sync()
        log = self.place.scratch / "edit.log"
        self.runs[row].append(measure.run(command, cwd=self.folder, log=log, env=self.mergeflow.env))
        (self.folder / "copy").unlink(missing_ok=True)


def section(
    workload: Workload, place: Place, mergeflow: Mergeflow, rounds: int
) -> tuple[str, dict[str, list[Measurement]]]:
    """Builds once, then measures `rounds` times each of ROWS."""
    command, folder, _ = mergeflow.prepare(workload, place)
    trial = _Trial(workload, place, mergeflow, folder)
    trial.edit()
    measure.run(command, cwd=folder, log=place.scratch / "edit.log", env=mergeflow.env)
    counts = {}
    for done in range(rounds):
        trial.edit()
        counts = _planned(folder, mergeflow)
        whole: Command = [*command, "--force"]
        for row, what in zip(ROWS, (COPY, command, whole, command), strict=True):
            trial.run(row, what)
        print(f"edit {done + 1}/{rounds}: {trial.runs[ROWS[1]][-1].wall:.2f} s", flush=True)
    text = (
        f"## An edit\n\n`{workload.formula.replace('* 0.3', '* k')}` with `k: {{ default: 0.3, {BLOCK}: 0.4 }}`, and "
        f"the number of {BLOCK} changed: {counts['computed']:,} tensors are computed, {counts['kept']:,} kept of the "
        f"output as it was, {counts['copied']:,} copied from a source. Medians of {rounds} whole processes; the copy "
        f"is `{COPY[2]}`.\n\n{table(trial.runs)}"
    )
    return text, trial.runs


def _planned(folder: Path, mergeflow: Mergeflow) -> dict[str, int]:
    """How many tensors are to be made in which way."""
    command: Command = [executable(), "plan", "recipe.yaml", "--json"]
    answer = subprocess.run(command, check=True, cwd=folder, env={**os.environ, **mergeflow.env}, capture_output=True)
    (output,) = json.loads(answer.stdout)["outputs"]
    return {how: output["tensors"].get(how, 0) for how in ("computed", "kept", "copied")}


def table(runs: dict[str, list[Measurement]]) -> str:
    """Medians, and each beside the copy and beside making everything again."""
    copy, whole = (runs[row] for row in (ROWS[0], ROWS[2]))
    quantities: tuple[Callable[[Measurement], float], ...] = (report.wall, report.cpu)
    head = "| | wall s | wall / copy | wall / all of it | CPU s | CPU / all of it | read GB |"
    lines = [head, "|---|---:|---:|---:|---:|---:|---:|"]
    for row, mine in runs.items():
        wall, cpu = (report.middle(mine, quantity) for quantity in quantities)
        lines.append(
            f"| {row} | {report.spread(mine)} | {wall / report.middle(copy, report.wall):.2f} "
            f"| {wall / report.middle(whole, report.wall):.2f} | {cpu:.2f} "
            f"| {cpu / report.middle(whole, report.cpu):.2f} | {report.middle(mine, report.read) / 1e9:.2f} |"
        )
    return "\n".join(lines)
