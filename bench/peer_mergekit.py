"""Runs one workload with mergekit-pytorch: `python -m bench.peer_mergekit WORKLOAD FOLDER OUTPUT`, in the peers'
environment. OUTPUT is a folder, as mergekit has it.

Choices, all of them to mergekit's advantage:
- Method `linear` with the brackets multiplied out, in one pass. It accumulates in float32 and rounds once.
  `task_arithmetic`, the other way to say A + (B - C) * m, computes in the files' own float16, which is wrong in the
  last bits; with `dtype: float32` it is right and took 1.6 times as long.
- `normalize: false`: the weights sum to 1 already, and the division is saved.
- No `dtype:` and no `out_dtype:`: inputs stay float16 until they are added up, and so is the output.
- BENCH_DEVICE=cuda merges on the card.
- Default options. mergekit-pytorch has no option for threads of its own; torch's are all cores by default.
  `--lazy-unpickle` concerns pickles. `--async-write` has nothing to overlap while the output is one file, as everyone
  else's is, and with the output in shards it was no faster.
"""

import json
import os
import sys
from pathlib import Path

from bench import workloads


def config(workload: workloads.Workload, folder: Path) -> dict[str, object]:
    files = workload.files()
    return {
        "merge_method": "linear",
        "models": [
            {"model": str(folder / files[model]), "parameters": {"weight": float(weight)}}
            for model, weight in workload.weights.items()
        ],
        "parameters": {"normalize": False},
    }


def main() -> None:
    name, folder, output = sys.argv[1:]
    recipe = Path(output).with_suffix(".yaml")
    recipe.write_text(json.dumps(config(workloads.ALL[name], Path(folder))))  # JSON is YAML
    command = Path(sys.executable).with_name("mergekit-pytorch")
    device = ["--device", os.environ["BENCH_DEVICE"]] if "BENCH_DEVICE" in os.environ else []
    os.execv(command, [str(command), str(recipe), output, *device])


if __name__ == "__main__":
    main()
