"""Whether large merges keep to a limit: three files of SDXL's layout in an address space of 1.5 GB.

They are 6.9 GB each, and so is each output: 21 GB of disk, and 7 GB for the output at hand. What is made is checked
against numpy in float64, on the largest tensor and on a sample of all others: every 40th by name.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from bench import check, layout, measure, report, workloads
from bench.contenders import Mergeflow, executable

LIMIT = 1_500_000_000  # bytes of address space
DENSITY, EVERY = 0.2, 40
MODELS = "ABC"
RECIPE = """mergeflow: 1
sources: {{ a: {folder}/sdxl-A.safetensors, b: {folder}/sdxl-B.safetensors, c: {folder}/sdxl-C.safetensors }}
outputs:
  linear.safetensors: a + (b - c) * 0.3
  ties.safetensors: ties(c, [a, b], density={density})
"""


def section(work: Path, mergeflow: Mergeflow, shrink: int) -> tuple[str, dict[str, measure.Measurement]]:
    """Builds with the limit, the first of which hashes the files; the table and the runs.

    Raises:
        WrongOutput: a build made something else.
    """
    folder, scratch = work / "limited", work / "scratch" / "limited"
    folder.mkdir(parents=True, exist_ok=True)
    tensors = layout.sdxl_layout(shrink=shrink)
    inputs = {letter: folder / f"sdxl-{letter}.safetensors" for letter in MODELS}
    for letter, path in inputs.items():
        layout.write(path, tensors, layout.Model(letter))
    names, runs, missed = sample(tensors), {}, {}
    for output in ("linear", "ties"):
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        (scratch / "recipe.yaml").write_text(RECIPE.format(folder=folder, density=DENSITY))
        build = f"ulimit -v {LIMIT // 1024} && exec {executable()} build recipe.yaml {output}.safetensors"
        runs[output] = measure.run(
            ["sh", "-c", build], cwd=scratch, log=work / "scratch" / "limited.log", env=mergeflow.env
        )
        made = scratch / f"{output}.safetensors"
        if output == "linear":
            missed[output] = check.check(workloads.DIFFERENCE, list(inputs.values()), made, names)
        else:
            missed[output] = check.check_ties(inputs["C"], [inputs["A"], inputs["B"]], DENSITY, made, names)
    shutil.rmtree(scratch, ignore_errors=True)
    size = inputs["A"].stat().st_size / 1e9
    rows = [
        f"| {name} | {run.anonymous / report.MIB:,.0f} | {run.wall:.1f} | {missed[name]:.1f} |"
        for name, run in runs.items()
    ]
    head = "| | peak anonymous MiB | wall s | not nearest per million |\n|---|---:|---:|---:|"
    said = (
        f"Three files of SDXL's layout, {size:.1f} GB each, `ulimit -v` of {LIMIT / 1e9:.1f} GB; the first build "
        f"hashes them, too. Checked against numpy: {len(names)} of {len(tensors):,} tensors.\n"
    )
    return "\n".join(["## In a limited address space\n", said, head, *rows]), runs


def sample(tensors: Sequence[layout.Tensor]) -> set[str]:
    """The largest and the integers, and every 40th by name."""
    largest = max(tensors, key=lambda tensor: tensor.elements)
    found = {tensor.name for tensor in sorted(tensors, key=lambda tensor: tensor.name)[::EVERY]}
    return found | {largest.name} | {tensor.name for tensor in tensors if tensor.dtype == "I64"}
