"""Runs in the peers' environment: `python run_mecha.py FOLDER` merges each `.mecha` of the folder with sd-mecha, in
float64, into a `.theirs.safetensors` in float32. A tensor that is not there is left out."""

import os
import sys
from pathlib import Path

import sd_mecha
import torch
from safetensors.torch import save_file


def main() -> None:
    os.chdir(sys.argv[1])
    for path in sorted(Path().glob("*.mecha")):
        recipe = sd_mecha.deserialize(path.read_text().strip())
        found = sd_mecha.merge(recipe, merge_dtype=torch.float64, output_dtype=torch.float32, threads=0)
        tensors = {name: value.contiguous() for name, value in found.items() if isinstance(value, torch.Tensor)}
        save_file(tensors, path.with_suffix(".theirs.safetensors"))


if __name__ == "__main__":
    main()
