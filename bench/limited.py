"""Whether large merges keep to a limit: three files of the size of SDXL's in an address space of 1.5 GB.

The files have the names of Stable Diffusion 1.5 with every tensor's first dimension multiplied: 6.4 GB each, 19 GB of
disk, and 13 GB for the outputs. The sum is checked against exact numbers, TIES against the same build without a limit.
"""

import hashlib
import shutil
from pathlib import Path

from bench import check, layout, measure, report, workloads
from bench.contenders import Mergeflow, executable

LIMIT = 1_500_000_000  # bytes of address space
TIMES = 3  # of Stable Diffusion 1.5
MODELS = "ABC"
RECIPE = """mergeflow: 1
sources: {{ a: {folder}/A.safetensors, b: {folder}/B.safetensors, c: {folder}/C.safetensors }}
outputs:
  linear.safetensors: a + (b - c) * 0.3
  ties.safetensors: ties(c, [a, b], density=0.2)
"""


def section(work: Path, mergeflow: Mergeflow, shrink: int) -> tuple[str, dict[str, measure.Measurement]]:
    """Builds with the limit and without; the table and the runs.

    Raises:
        WrongOutput: a limited build made something else.
    """
    folder, scratch = work / "limited", work / "scratch" / "limited"
    folder.mkdir(parents=True, exist_ok=True)
    tensors = layout.sd15_layout(shrink=shrink, times=TIMES)
    for letter in MODELS:
        layout.write(folder / f"{letter}.safetensors", tensors, layout.Model(letter))
    runs = {}
    for output in ("linear", "ties"):
        digests = set()
        for name, limit in (("limited", LIMIT), ("free", None)):
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
            (scratch / "recipe.yaml").write_text(RECIPE.format(folder=folder))
            build = f"{executable()} build recipe.yaml {output}.safetensors"
            command = ["sh", "-c", f"ulimit -v {limit // 1024} && exec {build}" if limit else f"exec {build}"]
            runs[f"{output}, {name}"] = measure.run(
                command, cwd=scratch, log=work / "scratch" / "limited.log", env=mergeflow.env
            )
            digests.add(_sha256(scratch / f"{output}.safetensors"))
            if output == "linear" and limit:
                inputs = [folder / f"{letter}.safetensors" for letter in MODELS]
                check.check(workloads.DIFFERENCE, inputs, scratch / "linear.safetensors")
        if len(digests) > 1:
            raise check.WrongOutput(f"{output}: other bytes in {LIMIT / 1e9:.1f} GB of address space")
    shutil.rmtree(scratch, ignore_errors=True)
    size = (folder / "A.safetensors").stat().st_size / 1e9
    rows = [
        f"| {name} | {run.anonymous / report.MIB:,.0f} | {run.rss / report.MIB:,.0f} | {run.wall:.1f} |"
        for name, run in runs.items()
    ]
    head = "| | peak anonymous MiB | peak RSS MiB | wall s |\n|---|---:|---:|---:|"
    said = f"Three files of {size:.1f} GB, `ulimit -v` of {LIMIT / 1e9:.1f} GB; the same bytes with it and without.\n"
    return "\n".join(["## In a limited address space\n", said, head, *rows]), runs


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
