"""What an edit costs: one weight of one block of a merge changed, against copying its output, making all of it again,
and finding nothing to do. Whole processes, by turns.

A build puts its output in the place of the last one, and the file system frees that: where it tells the disk of every
block that it frees (`discard`), that alone takes as long as a third of the copy. So like is compared with like: an
output under a new name with a copy under a new name, one that takes another's place with a copy over a file.
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
NEW = "new.safetensors"
WEIGHTS = ("0.4", "0.5")  # by turns: each is news to the output that the other has left
COPY: Command = ["sh", "-c", f"cp --reflink=never {OUTPUT} copy && sync copy"]
COPIED, COPIED_OVER = "copy of the output", "copy over a file of its size"
EDITED, EDITED_OVER = "one weight changed, a new name", "one weight changed, the old output replaced"
WHOLE, NOTHING = "all of it (--force)", "nothing changed"


@dataclass
class _Trial:
    """The folder with the recipe, and what is done in it."""

    workload: Workload
    place: Place
    mergeflow: Mergeflow
    folder: Path
    turn: int = 0
    runs: dict[str, list[Measurement]] = field(default_factory=dict)

    def edit(self, output: str = OUTPUT) -> None:
        """The recipe with the weight of this turn."""
        text = recipe(self.workload, self.place, self.folder).replace("* 0.3", "* k").replace(OUTPUT, output)
        weight = WEIGHTS[self.turn % len(WEIGHTS)]
        (self.folder / "recipe.yaml").write_text(text.replace("outputs:", PARAMS % weight + "outputs:"))

    def run(self, row: str, command: Command) -> None:
        """One process, nothing dirty and all inputs in the page cache before it."""
        inputs = [*self.place.models(self.workload), self.folder / OUTPUT]
        subprocess.run(["cat", *inputs], check=True, stdout=subprocess.DEVNULL)
        os.sync()
        log = self.place.scratch / "edit.log"
        run = measure.run(command, cwd=self.folder, log=log, env=self.mergeflow.env)
        self.runs.setdefault(row, []).append(run)


def section(
    workload: Workload, place: Place, mergeflow: Mergeflow, rounds: int
) -> tuple[str, dict[str, list[Measurement]]]:
    """Builds once, then measures `rounds` times each row of the table."""
    command, folder, _ = mergeflow.prepare(workload, place)
    trial = _Trial(workload, place, mergeflow, folder)
    trial.edit()
    measure.run(command, cwd=folder, log=place.scratch / "edit.log", env=mergeflow.env)
    counts = {}
    for done in range(rounds):
        trial.turn += 1
        trial.run(COPIED, COPY)
        trial.run(COPIED_OVER, COPY)
        (folder / "copy").unlink()
        trial.edit(NEW)
        counts = _planned(folder, mergeflow)
        trial.run(EDITED, command)
        (folder / NEW).unlink()
        trial.edit()
        trial.run(EDITED_OVER, command)
        trial.run(WHOLE, [*command, "--force"])
        trial.run(NOTHING, command)
        walls = ", ".join(f"{row} {runs[-1].wall:.2f} s" for row, runs in trial.runs.items())
        print(f"edit {done + 1}/{rounds}: {walls}", flush=True)
    text = (
        f"## An edit\n\n`{workload.formula.replace('* 0.3', '* k')}` with `k: {{ default: 0.3, {BLOCK}: 0.4 }}`, and "
        f"the number of {BLOCK} changed: {counts['computed']:,} tensors are computed, {counts['kept']:,} kept of the "
        f"output as it was, {counts['copied']:,} copied from a source. Medians of {rounds} whole processes; the copy "
        f"is `{COPY[2]}`, and each edit stands beside the copy that frees as much.\n\n{table(trial.runs)}"
    )
    return text, trial.runs


def _planned(folder: Path, mergeflow: Mergeflow) -> dict[str, int]:
    """How many tensors are to be made in which way."""
    command: Command = [executable(), "plan", "recipe.yaml", "--json"]
    answer = subprocess.run(command, check=True, cwd=folder, env={**os.environ, **mergeflow.env}, capture_output=True)
    (output,) = json.loads(answer.stdout)["outputs"]
    return {how: output["tensors"].get(how, 0) for how in ("computed", "kept", "copied")}


def table(runs: dict[str, list[Measurement]]) -> str:
    """Medians, and each beside the copy that replaces a file where it does, and beside making everything again."""
    whole = runs[WHOLE]
    quantities: tuple[Callable[[Measurement], float], ...] = (report.wall, report.cpu)
    head = "| | wall s | wall / copy | wall / all of it | CPU s | CPU / all of it | read GB |"
    lines = [head, "|---|---:|---:|---:|---:|---:|---:|"]
    for row in (COPIED, EDITED, COPIED_OVER, EDITED_OVER, WHOLE, NOTHING):
        mine, copy = runs[row], runs[COPIED if row in (COPIED, EDITED, NOTHING) else COPIED_OVER]
        wall, cpu = (report.middle(mine, quantity) for quantity in quantities)
        lines.append(
            f"| {row} | {report.spread(mine)} | {wall / report.middle(copy, report.wall):.2f} "
            f"| {wall / report.middle(whole, report.wall):.2f} | {cpu:.2f} "
            f"| {cpu / report.middle(whole, report.cpu):.2f} | {report.middle(mine, report.read) / 1e9:.2f} |"
        )
    return "\n".join(lines)
