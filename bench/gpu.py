"""`make gpu`: what can only be seen on an accelerator. One line where there is none.

    python -m bench.gpu [--work FOLDER] [--shrink 16] [--no-peers] [--no-tests] [--rounds 3]

First the tests of devices, which CUDA takes part in where torch has it: contract, the same bytes, committed digests.
Then the machine's rates, and merges of full-size files from the page cache on the CPU and on the card: the same bytes,
seconds (torch's start is in them) and peak memory of both. sd-mecha and mergekit do the weighted sum, the difference,
slerp, TIES and the cut to a rank on the same card, as far as they have them. mergeflow computes the last of these on
the CPU whatever the device.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from bench import contenders, layout, measure, peer_methods, peers, workloads
from bench.contenders import ROOT, Mergeflow, Place, executable

METHODS = {
    "linear": "a + (b - c) * 0.3",
    "five outputs": "a + (b - c) * s",
    "slerp": "slerp(a, b, 0.3)",
    "ties": "ties(c, [a, b], density=0.2)",
    "svd": "a + truncate_rank(b - c, 16)",
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.gpu", description="Tests and timings on an accelerator.")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--shrink", type=int, default=1, metavar="N", help="small files, for a trial")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--no-tests", action="store_true")
    options = parser.parse_args(arguments)
    if not available():
        print("no CUDA device that torch can use: nothing was run (`mergeflow devices` shows what there is)")
        return 0
    if not options.no_tests:
        tests = [sys.executable, "-m", "pytest", "-q", "tests/devices"]
        if code := subprocess.run(tests, cwd=ROOT, check=False).returncode:
            return code
    subprocess.run([executable(), "devices", "--measure"], check=True)
    table(options)
    return 0


def available() -> bool:
    """In a process of its own: a parent that has woken the card would take some of its memory."""
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


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
        for device in ("cpu", "cuda"):
            run, card, made = best(work, models, formula, device, options.rounds)
            seen |= made
            same = "same" if len(seen) == len(made) else "DIFFERENT"
            print(f"| {name} | {device} | {run.wall:.2f} | {run.anonymous / 2**20:,.0f} | {card:,.0f} | {same} |")
    if not options.no_peers:
        beside(work, models, options.rounds)


def best(
    work: Path, models: Path, formula: str, device: str, rounds: int
) -> tuple[measure.Measurement, float, set[str]]:
    """The fastest of some builds from the page cache, the card's peak (MiB), and the sha256 of what was made."""
    folder = work / "scratch" / "gpu"
    found: measure.Measurement | None = None
    peak, made = 0.0, set()
    for _ in range(rounds):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        sweep = "params: { s: { sweep: [0.1, 0.2, 0.3, 0.4, 0.5] } }\n" if "* s" in formula else ""
        output = '"out-{s}.safetensors"' if sweep else "out.safetensors"
        sources = ", ".join(f"{m}: {models}/sd15-{m.upper()}.safetensors" for m in "abc")
        (folder / "recipe.yaml").write_text(
            f"mergeflow: 1\nsources: {{ {sources} }}\n{sweep}outputs: {{ {output}: '{formula}' }}\n"
        )
        with Card() as card:
            run = measure.run(
                [executable(), "build", "recipe.yaml", "--device", device], cwd=folder,
                log=work / "scratch" / "gpu.log", env=Mergeflow(work / "memo").env,
            )  # fmt: skip
        made = {sha256(path) for path in folder.glob("*.safetensors")}
        peak = max(peak, card.peak)
        found = run if found is None or run.wall < found.wall else found
    assert found is not None
    return found, peak, made


def beside(work: Path, models: Path, rounds: int) -> None:
    """Peers on the same card, on what they have in common with mergeflow."""
    python, place = peers.ensure(), Place(models, work / "scratch")
    env = {**contenders.sd_mecha(python).env, "BENCH_DEVICE": "cuda"}
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
    """Samples the memory in use on the first card, as the driver counts it, while something runs."""

    def __init__(self) -> None:
        self.peak = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        from mergeflow.build.accelerators import look

        before = None
        while not self._done.wait(0.05):
            (card,) = look("cuda")
            used = (card.total[0] - card.free[0]) / 2**20
            before = used if before is None else before
            self.peak = max(self.peak, used - before)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main())
