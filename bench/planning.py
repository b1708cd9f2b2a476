"""What reading, planning and refusing cost, in CPU seconds: the largest recipes and files, and the nastiest.

`python -m bench.planning FOLDER` measures every case once, in this process, and prints them as JSON. The files are of
tiny tensors: it is names and steps that count here, never bytes. Tests see to it that each of these gives the right
answer; how long that takes is not theirs to say, on a machine that others use as well.
"""

import json
import shutil
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median

import mergeflow
from bench.contenders import ROOT
from mergeflow.arch import get
from mergeflow.build.project import Project
from mergeflow.cli.describe import describe
from mergeflow.formats.contents import read_contents
from mergeflow.plan.plans import Plan
from mergeflow.recipe import load

HEAD = "mergeflow: 1\nsources: { a: a.safetensors, b: b.safetensors, c: c.safetensors }\n"
DIFFERENCE = "outputs: { mix.safetensors: a + (b - c)*0.3 }\n"
MANY = 50_000

Case = Callable[[Path], float]  # CPU seconds


def section(place: Path, rounds: int) -> tuple[str, dict[str, list[float]]]:
    """Each case in a process of its own kind, `rounds` times; the table."""
    found: dict[str, list[float]] = {}
    for turn in range(rounds):
        command = [sys.executable, "-m", "bench.planning", str(place)]
        answer = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
        for case, took in json.loads(answer.stdout).items():
            found.setdefault(case, []).append(took)
        print(f"planning {turn + 1}/{rounds}", flush=True)
    rows = [f"| {case} | {median(took):.2f} |" for case, took in found.items()]
    text = f"CPU seconds, medians of {rounds}; no tensor is read but to be hashed, once, by the first line.\n"
    return "\n".join(["## Planning", "", text, "| | CPU s |", "|---|---:|", *rows]), found


def large() -> dict[str, Case]:
    """Over three models of fifty thousand tensors each."""
    return {
        f"hashing three models of {MANY:,} tensors": hashing,
        f"planning a sum of them: {MANY:,} tensors × 3 sources": lambda folder: planning(folder, DIFFERENCE),
        "cutting that into units of work": cutting,
        "the block and the component of 50,000 names": questions,
        "a profile of 101 lines over them": lambda folder: planning(folder, profile()),
    }


def small() -> dict[str, Case]:
    """Over three models of one tensor."""
    return {
        "reading 10,000 steps": lambda folder: reading(folder, chain()),
        "planning a chain of 10,000 steps": lambda folder: planning(folder, chain()),
        "the forms of all its steps, as `plan --all` shows them": lambda folder: showing(folder, chain()),
        "a chain of 2,000 weighted sums, shares of 2,000 digits": lambda folder: planning(folder, fractions()),
        "a graph of depth 100 with 2^100 paths": lambda folder: planning(folder, shared()),
        "40 rounding points with 2^40 paths": lambda folder: planning(folder, rounded()),
        "a sum of 100,000 terms": lambda folder: planning(folder, one(" + ".join(["a/1e5", "b/1e5"] * 50_000))),
        "brackets 10,000 deep": lambda folder: planning(folder, one("(" * 10_000 + "a*0.5 + b*0.5" + ")" * 10_000)),
        "calls 10,000 deep": lambda folder: planning(folder, one("scale(" * 10_000 + "a" + ", 1)" * 10_000)),
        "100,000 brackets that are never closed": lambda folder: refusing(lambda: plan(folder, one("(" * 100_000))),
        "a pickle that copies one list 50,000 times": pickle,
    }


# ----------------------------------------------------------------------------------------------------------- recipes


def one(expression: str) -> str:
    return f"outputs:\n  mix.safetensors: {expression}\n"


def chain() -> str:
    steps = "".join(f"  s{i}: s{i - 1} + (b - c)*0.0001\n" for i in range(1, 10_000))
    return f"steps:\n  s0: a\n{steps}outputs: {{ mix.safetensors: s9999 }}\n"


def fractions() -> str:
    steps = "".join(f"  s{i}: s{i - 1}*0.7 + b*0.3\n" for i in range(1, 2_000))
    return f"steps:\n  s0: a\n{steps}outputs: {{ mix.safetensors: s1999 }}\n"


def shared() -> str:
    steps = "".join(f"  x{i}: x{i - 1} + x{i - 1} - y{i - 1}\n  y{i}: y{i - 1}*2 - x{i - 1}\n" for i in range(1, 101))
    return f"steps:\n  x0: a\n  y0: b\n{steps}outputs: {{ mix.safetensors: x100 }}\n"


def rounded() -> str:
    expression = "s{0}*0.5 + (s{0} - b)*0.5 + b*0.5"
    steps = "".join(f"  s{i}: {{ expr: {expression.format(i - 1)}, round: float16 }}\n" for i in range(1, 41))
    return f"steps:\n  s0: a\n{steps}outputs: {{ mix.safetensors: s40 }}\n"


def profile() -> str:
    lines = ", ".join(f"'layers.{i:03}.*': 0.{i + 100}" for i in range(100))
    return f"params: {{ k: {{ default: 0, {lines} }} }}\noutputs: {{ mix.safetensors: 'weighted_sum(a, b, k)' }}\n"


# --------------------------------------------------------------------------------------------------------- the cases


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process."""
    began = time.process_time()
    work()
    return time.process_time() - began


def project(folder: Path, text: str) -> Project:
    path = folder / "recipe.yaml"
    path.write_text(HEAD + text)
    settings = mergeflow.Settings(output_root=folder, cache=folder / "cache", memo=folder / "memo")
    return mergeflow.load(path, settings=settings)


def plan(folder: Path, text: str) -> Plan:
    with project(folder, text) as opened:
        return opened.plan()


def hashing(folder: Path) -> float:
    """Where the models are new to the memo, planning begins with this."""
    with project(folder, DIFFERENCE) as opened:
        return seconds(lambda: [opened.sources.identified(i) for i in range(3)])


def planning(folder: Path, text: str) -> float:
    return seconds(lambda: plan(folder, text))


def showing(folder: Path, text: str) -> float:
    made = plan(folder, text)
    return seconds(lambda: describe(made))


def cutting(folder: Path) -> float:
    made = plan(folder, DIFFERENCE)
    return seconds(lambda: made.work(made.outputs))


def questions(_: Path) -> float:
    """Of as many names of SD1.5."""
    architecture = get("sd1")
    names = [f"model.diffusion_model.input_blocks.{i % 12}.{i}.weight" for i in range(MANY)]
    return seconds(lambda: [(architecture.block(name), architecture.component(name)) for name in names])


def reading(folder: Path, text: str) -> float:
    path = folder / "recipe.yaml"
    path.write_text(HEAD + text)
    return seconds(lambda: load(path))


def refusing(what: Callable[[], object]) -> float:
    def refused() -> None:
        try:
            what()
        except mergeflow.MergeflowError:
            return
        raise AssertionError("it was not refused")

    return seconds(refused)


def pickle(folder: Path) -> float:
    """A small file that asks for a great deal of work."""
    path = folder / "bomb.ckpt"
    pairs = b"ccollections\nOrderedDict\nq\0(]q\1(" + b"K\0K\1\x86" * 20_000 + b"e0" + b"h\0h\1\x85R0" * 50_000 + b"t."
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x/data.pkl", pairs)
        file.writestr("x/data/0", bytes(8))
    return refusing(lambda: read_contents(path))


# ------------------------------------------------------------------------------------------------------------- files


def write(path: Path, names: Iterable[str], value: int) -> None:
    """Tensors of two by two float16, all alike, under these names."""
    entries: dict[str, object] = {}
    for at, name in enumerate(names):
        entries[name] = {"dtype": "F16", "shape": [2, 2], "data_offsets": [8 * at, 8 * at + 8]}
    text = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + value.to_bytes(2, "little") * 4 * len(entries))


def main(folder: Path) -> None:
    """Each case once: the first ones over large models, the others over small ones."""
    took: dict[str, float] = {}
    for kind, group in (("large", large()), ("small", small())):
        place = folder / kind
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        names = [f"layers.{i // 500:03}.part.{i % 500}.weight" for i in range(MANY)] if kind == "large" else ["w"]
        for value, model in enumerate("abc", 1):
            write(place / f"{model}.safetensors", names, value)
        time.sleep(0.1)  # files that were written a moment ago are not remembered
        took |= {title: case(place) for title, case in group.items()}
        shutil.rmtree(place)
    print(json.dumps(took))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
