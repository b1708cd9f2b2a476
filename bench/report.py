"""Turns measurements into tables: medians, ratios, markdown."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median

from bench.measure import Measurement
from bench.workloads import Workload

Runs = Mapping[str, Sequence[Measurement]]  # by contender, in the order of the table
MIB = 1 << 20

METHOD = """\
Each figure is the median of {rounds} rounds; in a round every contender runs once, in turn, as a whole process started
from nothing. Before each run its output is removed, dirty pages are written back and the inputs are read once, so that
they come from the page cache. Outputs are float16 like the inputs. Contenders:

- **floor**: `cat` of the inputs to `/dev/null`, then `cp` of one of them and `sync` of the copy. No merge at all: what
  reading every input byte once and writing one output costs here.
- **import torch**: Python started and torch imported, nothing else. sd-mecha and mergekit pay it; mergeflow's sums
  and its commonest methods are compiled for the processor; only other methods import torch.
- **mergeflow**: `mergeflow build recipe.yaml` with the digests of its inputs remembered, as from the second merge of
  the same files on. It syncs its output to the disk before it ends; the peers leave that to the system.
- **mergeflow, first**: the same with nothing remembered, so that it hashes every input too.
- **sd-mecha**, **mergekit-pytorch**: set up as each one's documentation says and at its fastest
  (`bench/peer_sd_mecha.py` and `bench/peer_mergekit.py` give the reasons).

*CPU* is user and system seconds of the process and its children. *Peak RSS* counts pages of mapped files, which the
system can take back; *peak anonymous* does not, sampled every 20 ms over the process tree. *Read* is what was asked for
by read calls; what is read through mapped files is not in it, so it says nothing about mergekit's inputs.
*Not nearest*: elements, of one million, that are not the float16 nearest to the exact result, on small files.
"""


def table(runs: Runs, missed: Mapping[str, float]) -> str:
    """One workload's medians, a row per contender."""
    names = list(runs)
    floor, ours = runs.get("floor"), runs.get("mergeflow")
    head = ["", "wall s", "wall / floor", "wall / mergeflow", "CPU s", "CPU / mergeflow"]
    head += ["peak RSS MiB", "peak anonymous MiB", "read GB", "not nearest"]
    rows = [head, ["---", *["---:"] * (len(head) - 1)]]
    for name in names:
        mine = runs[name]
        rows.append(
            [
                name,
                spread(mine),
                _ratio(mine, floor, wall),
                _ratio(mine, ours, wall),
                f"{middle(mine, cpu):.2f}",
                _ratio(mine, ours, cpu),
                f"{middle(mine, rss) / MIB:,.0f}",
                f"{middle(mine, anonymous) / MIB:,.0f}",
                f"{middle(mine, read) / 1e9:.2f}",
                f"{missed[name]:,.0f}" if name in missed else "",
            ]
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def section(workload: Workload, runs: Runs, missed: Mapping[str, float]) -> str:
    """One workload: what it is, and its table."""
    lines = [f"## {workload.title}", "", f"`{workload.formula}`", "", table(runs, missed)]
    if not workload.peers:
        lines += ["", "The peers are left out: at their cost per tensor they need many minutes for it."]
    return "\n".join(lines)


def page(
    machine: Mapping[str, str], versions: Mapping[str, Mapping[str, str]], rounds: int, body: Sequence[str]
) -> str:
    """docs/benchmarks.md."""
    facts = "\n".join(f"| {key} | {value} |" for key, value in machine.items())
    packages = "\n".join(
        f"- {where}: " + ", ".join(f"{name} {version}" for name, version in found.items())
        for where, found in versions.items()
    )
    parts = [
        "# Benchmarks",
        "Written by `python -m bench.run --write-docs`; figures of other machines differ.",
        METHOD.format(rounds=rounds).rstrip(),
        *body,
        "## Machine",
        f"| | |\n|---|---|\n{facts}",
        packages,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


Quantity = Callable[[Measurement], float]


def wall(run: Measurement) -> float:
    return run.wall


def cpu(run: Measurement) -> float:
    return run.cpu


def rss(run: Measurement) -> float:
    return run.rss


def anonymous(run: Measurement) -> float:
    return run.anonymous


def read(run: Measurement) -> float:
    return run.read


def middle(runs: Sequence[Measurement], quantity: Quantity) -> float:
    return median(quantity(run) for run in runs)


def spread(runs: Sequence[Measurement]) -> str:
    """The median wall time, with the smallest beside it where there were several."""
    smallest = min(run.wall for run in runs)
    return f"{middle(runs, wall):.2f}" + (f" ({smallest:.2f})" if len(runs) > 1 else "")


def _ratio(runs: Sequence[Measurement], to: Sequence[Measurement] | None, quantity: Quantity) -> str:
    if not to or not middle(to, quantity):
        return ""
    return f"{middle(runs, quantity) / middle(to, quantity):.2f}"
