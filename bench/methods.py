"""What methods that are no sums cost, against sums of the same files: TIES and DARE over three models and a base
against a sum of the four, SLERP against a weighted sum of the two. Whole processes, by turns; TIES by mergekit-pytorch
too.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from bench import measure, report
from bench.contenders import OUTPUT, Command, Mergeflow, Place, executable
from bench.measure import Measurement
from bench.workloads import Term, Workload

FOUR = "sum of four"
TWO = "sum of two"
LINEAR = Workload(
    name="methods",
    title="Methods",
    formula="a + (b - a)*0.3 + (c - a)*0.3 + (d - a)*0.3",
    base="a",
    terms=tuple(Term(model, "a", "0.3") for model in "bcd"),
)
FORMULAS = {
    FOUR: LINEAR.formula,
    "TIES": "ties(a, [b, c, d], density=0.2)",
    "DARE": "dare(a, [b, c, d], density=0.3)",
    TWO: "a*0.7 + b*0.3",
    "SLERP": "slerp(a, b, 0.3)",
}
AGAINST = {FOUR: FOUR, "TIES": FOUR, "DARE": FOUR, TWO: TWO, "SLERP": TWO}
PEER = "TIES, mergekit-pytorch"


def section(
    place: Place, mergeflow: Mergeflow, rounds: int, peers: Path | None
) -> tuple[str, dict[str, list[Measurement]]]:
    """`place` has four models; `peers` is the interpreter that has mergekit. Its TIES runs once: it takes minutes."""
    inputs = place.models(LINEAR)
    folder = place.fresh("methods")
    runs: dict[str, list[Measurement]] = {name: [] for name in FORMULAS}
    for turn in range(rounds + 1):  # the first round lets mergeflow see the files
        for name, formula in FORMULAS.items():
            sources = "".join(
                f"  {m}: {os.path.relpath(p, folder)}\n" for m, p in zip(LINEAR.models, inputs, strict=True)
            )
            text = f'mergeflow: 1\nsources:\n{sources}outputs:\n  {OUTPUT}: "{formula}"\n'
            (folder / "recipe.yaml").write_text(text)
            run = _once([executable(), "build", "recipe.yaml", "--force"], inputs, folder, place, mergeflow)
            (folder / OUTPUT).unlink()
            if turn:
                runs[name].append(run)
                print(f"methods {turn}/{rounds} {name}: {run.cpu:.2f} s of CPU", flush=True)
    if peers is not None:
        runs[PEER] = [_once(_mergekit(peers, inputs, folder), inputs, folder, place, mergeflow)]
    shutil.rmtree(folder)
    return _text(runs, rounds), runs


def _once(command: Command, inputs: Sequence[Path], folder: Path, place: Place, mergeflow: Mergeflow) -> Measurement:
    subprocess.run(["cat", *inputs], check=True, stdout=subprocess.DEVNULL)
    os.sync()
    env = {**mergeflow.env, "HF_HUB_OFFLINE": "1"}
    return measure.run(command, cwd=folder, log=place.scratch / "methods.log", env=env)


def _mergekit(python: Path, inputs: Sequence[Path], folder: Path) -> Command:
    """Its own defaults, which are float16 like the files."""
    base, *others = map(str, inputs)
    config = {
        "merge_method": "ties",
        "base_model": base,
        "models": [{"model": model, "parameters": {"weight": 1.0, "density": 0.2}} for model in others],
    }
    (folder / "ties.yaml").write_text(json.dumps(config))  # JSON is YAML
    return [python.with_name("mergekit-pytorch"), "ties.yaml", "out"]


def _text(runs: dict[str, list[Measurement]], rounds: int) -> str:
    what = (
        f"Files of SD 1.5's size in float16; medians of {rounds}. *CPU / sum* is beside the sum of the same files, in "
        "the same rounds."
    )
    lines = [
        f"## Methods\n\n{what}\n",
        "| | formula | wall s | CPU s | CPU / sum | peak anonymous MiB |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for name, mine in runs.items():
        cpu = report.middle(mine, report.cpu)
        under = report.middle(runs[AGAINST.get(name, FOUR)], report.cpu)
        lines.append(
            f"| {name} | `{FORMULAS.get(name, FORMULAS['TIES'])}` | {report.spread(mine)} | {cpu:.2f} "
            f"| {cpu / under:.2f} | {report.middle(mine, report.anonymous) / report.MIB:,.0f} |"
        )
    return "\n".join(lines)
