"""`make gpu`: what can only be seen on an accelerator. One line where there is none.

    python -m bench.gpu [--work FOLDER] [--shrink 16] [--no-peers] [--no-tests] [--rounds 3] [--device cuda:1]

First the tests of devices, which CUDA takes part in where torch has it: contract, the same bytes, committed digests.
Then the machine's rates, and merges of full-size files from the page cache on the CPU and on the card: the same bytes,
seconds (torch's start is in them) and peak memory of both. The last two rows leave the start out: a linear merge in a
process whose card is awake, and what share that is of the rate that copies to the card reach. A slow disk shows in all
of them; `--work /dev/shm/gpu` leaves it out, where there are 15 GB of memory for that.

sd-mecha and mergekit do the weighted sum, the difference, slerp, TIES and the cut to a rank on the same card, as far as
they have them. mergeflow computes the last of these on the CPU whatever the device.

Any Python will do that has torch with CUDA and what pyproject.toml asks for; where mergeflow is not installed in it,
`python setup.py build_ext --inplace` compiles what the CPU's rows need. `--device cpu` is a trial without a card.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from bench import contenders, layout, measure, peer_methods, peers, workloads
from bench.contenders import ROOT, Mergeflow, Place
from mergeflow.build.accelerators import driver_is_there, look

METHODS = {
    "linear": "a + (b - c) * 0.3",
    "five outputs": "a + (b - c) * s",
    "slerp": "slerp(a, b, 0.3)",
    "ties": "ties(c, [a, b], density=0.2)",
    "svd": "a + truncate_rank(b - c, 16)",
}


COMMAND = [sys.executable, "-m", "mergeflow"]
FALLEN_BACK = ("it is not used", "computed on the CPU", "the CPU computes")  # words of warnings
AWAKE = """
import sys, time
from pathlib import Path
import mergeflow
from mergeflow.build.settings import Settings
folder, memo, device = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
settings = Settings(output_root=folder, cache=folder / "cache", memo=memo, device=device, force=True)
took, read = [], 0
for _ in range(1 + int(sys.argv[4])):
    began = time.perf_counter()
    with mergeflow.load(folder / "recipe.yaml", settings=settings) as project:
        read = sum(output.bytes_read for output in project.build().outputs)
    took.append(time.perf_counter() - began)
print(min(took[1:]), read)
"""
HAS_CUDA = "from mergeflow.executor.torchdevice import without_cuda; print(without_cuda() or '')"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.gpu", description="Tests and timings on an accelerator.")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--shrink", type=int, default=1, metavar="N", help="small files, for a trial")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--no-tests", action="store_true")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args(arguments)
    if options.device != "cpu" and (why := missing()):
        print(why)
        return 0
    if not options.no_tests:
        tests = [sys.executable, "-m", "pytest", "-q", "tests/devices"]
        if code := subprocess.run(tests, cwd=ROOT, check=False).returncode:
            return code
    work: Path = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    subprocess.run([*COMMAND, "devices", "--measure"], cwd=work, env={**os.environ, **environment(work)}, check=True)
    table(options)
    return 0


def missing() -> str:
    """Why nothing can be run, and what would help; empty where torch has a card. Asked in a process of its own: a
    parent that has woken the card would take some of its memory."""
    why = subprocess.run([sys.executable, "-c", HAS_CUDA], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    if not why.strip():
        return ""
    said = f"no CUDA device that torch can use ({why.strip()}): nothing was run"
    if "without CUDA" not in why or not driver_is_there():
        return f"{said} (`mergeflow devices` shows what there is)"
    index = "--index-url https://pypi.org/simple"  # whose builds for Linux have CUDA, whatever other sources offer
    fix = f"{sys.executable} -m pip install --force-reinstall {peers.TORCH} {index}"
    return f"{said}; there is a card, for a build with CUDA: {fix}"


def environment(work: Path) -> dict[str, str]:
    """Of mergeflow's processes: the rates that were measured are found again, and it need not be installed."""
    return {**Mergeflow(work / "memo").env, "PYTHONPATH": str(ROOT)}


def table(options: argparse.Namespace) -> None:
    work: Path = options.work.resolve()
    models = work / f"gpu-{options.shrink}"
    models.mkdir(parents=True, exist_ok=True)
    tensors = layout.sd15_layout(shrink=options.shrink)
    for letter in "ABC":
        layout.write(models / f"sd15-{letter}.safetensors", tensors, layout.Model(letter))
    print("| merge | device | wall s | peak anonymous MiB | peak of the card MiB | bytes |")
    print("|---|---|---:|---:|---:|---|")
    for name, formula in METHODS.items():
        seen: set[str] = set()
        for device in dict.fromkeys(("cpu", options.device)):
            run, card, made = best(work, models, formula, device, options.rounds)
            seen |= made
            same = "same" if len(seen) == len(made) else "DIFFERENT"
            print(f"| {name} | {device} | {run.wall:.2f} | {run.anonymous / 2**20:,.0f} | {card:,.0f} | {same} |")
            for line in fallen_back(work):
                print(f"| | | | | | {line} |")
    awake(work, models, options.device, options.rounds)
    if not options.no_peers:
        beside(work, models, options.rounds)


def fallen_back(work: Path) -> list[str]:
    """What the last build said of work that the CPU did in the card's place: its row is not the card's."""
    lines = (work / "scratch" / "gpu.log").read_text(errors="replace").splitlines()
    return [line.strip() for line in lines if any(words in line for words in FALLEN_BACK)]


def awake(work: Path, models: Path, device: str, rounds: int) -> None:
    """A linear merge in a process that has made it once, and how much of the card's link that uses."""
    folder = work / "scratch" / "gpu"
    write_recipe(folder, models, METHODS["linear"])
    env, memo = environment(work), environment(work)["MERGEFLOW_MEMO"]
    command = [sys.executable, "-c", AWAKE, folder, memo, device, str(rounds)]
    answer = subprocess.run(command, env={**os.environ, **env}, check=True, capture_output=True, text=True)
    seconds, read = map(float, answer.stdout.split())
    print(f"| linear, awake | {device} | {seconds:.2f} | | | {read / seconds / 1e9:.1f} GB/s of inputs |")
    for name, rates in json.loads((Path(memo) / "speeds.json").read_text())["accelerators"].items():
        bound = read / rates["up"]
        share = f"{bound / seconds:.0%} of it reached" if device != "cpu" else ""
        print(f"| copying that to {name} alone | {device} | {bound:.2f} | | | {rates['up'] / 1e9:.1f} GB/s; {share} |")


def best(
    work: Path, models: Path, formula: str, device: str, rounds: int
) -> tuple[measure.Measurement, float, set[str]]:
    """The fastest of some builds from the page cache, the card's peak (MiB), and the sha256 of what was made."""
    folder = work / "scratch" / "gpu"
    found: measure.Measurement | None = None
    peak, made = 0.0, set()
    for _ in range(rounds):
        write_recipe(folder, models, formula)
        with Card(device) as card:
            run = measure.run(
                [*COMMAND, "build", "recipe.yaml", "--device", device], cwd=folder,
                log=work / "scratch" / "gpu.log", env=environment(work),
            )  # fmt: skip
        made = {sha256(path) for path in folder.glob("*.safetensors")}
        peak = max(peak, card.peak)
        found = run if found is None or run.wall < found.wall else found
    assert found is not None
    return found, peak, made


def write_recipe(folder: Path, models: Path, formula: str) -> None:
    """Into a folder that holds nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    sweep = "params: { s: { sweep: [0.1, 0.2, 0.3, 0.4, 0.5] } }\n" if "* s" in formula else ""
    output = '"out-{s}.safetensors"' if sweep else "out.safetensors"
    sources = ", ".join(f"{m}: {models}/sd15-{m.upper()}.safetensors" for m in "abc")
    (folder / "recipe.yaml").write_text(
        f"mergeflow: 1\nsources: {{ {sources} }}\n{sweep}outputs: {{ {output}: '{formula}' }}\n"
    )


def beside(work: Path, models: Path, rounds: int) -> None:
    """Peers on the same card, on what they have in common with mergeflow."""
    try:
        python, place = peers.ensure(), Place(models, work / "scratch")
        has_cuda = "import sys, torch; sys.exit(not torch.cuda.is_available())"
        subprocess.run([python, "-c", has_cuda], check=True)
    except subprocess.CalledProcessError:  # what pip or torch says of it is above
        print("the peers cannot use a card here: they are left out (`--no-peers` does not ask for them)")
        return
    env: Mapping[str, str] = {**contenders.sd_mecha(python).env, "BENCH_DEVICE": "cuda"}
    for workload in (workloads.WEIGHTED, workloads.DIFFERENCE):
        for peer in (contenders.sd_mecha(python), contenders.mergekit(python)):
            walls = []
            for _ in range(rounds):
                command, folder, _ = peer.prepare(workload, place)
                walls.append(measure.run(command, cwd=folder, log=place.scratch / "peer.log", env=env).wall)
            print(f"| {workload.name} | {peer.name} on cuda | {min(walls):.2f} | | | |")
    for name, methods in peer_methods.METHODS.items():
        for method in methods:
            walls = []
            for _ in range(rounds):
                folder = place.fresh("peer")
                output = folder / ("out.safetensors" if name == "sd-mecha" else "out")
                one = [python, "-m", "bench.peer_methods", name, method, models, output]
                walls.append(measure.run(one, cwd=folder, log=place.scratch / "peer.log", env=env).wall)
            print(f"| {method} | {name} on cuda | {min(walls):.2f} | | | |")


class Card:
    """Samples the memory in use on a card (of several, the first), as the driver counts it, while something runs."""

    def __init__(self, device: str) -> None:
        self.peak, self._number = 0.0, int(device.partition(":")[2] or 0)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        before = None
        while not self._done.wait(0.05):
            card = next((found for found in look("auto") if found.name == "cuda"), None)
            if card is None:
                return
            used = (card.total[self._number] - card.free[self._number]) / 2**20
            before = used if before is None else before
            self.peak = max(self.peak, used - before)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main())
