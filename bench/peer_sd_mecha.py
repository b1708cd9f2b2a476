"""Runs one workload with sd-mecha: `python -m bench.peer_sd_mecha WORKLOAD FOLDER OUTPUT`, in the peers' environment.

Choices, all of them to sd-mecha's advantage:
- `merge()` keeps its defaults: arithmetic in float32 on the CPU, its own number of threads (as many as cores, up to
  four), 256 MiB of buffers, float16 output, which is what the comparison asks for. They are what its README shows.
- The weighted sum is its `weighted_sum`. A difference is its `add_difference` method with the factor as `alpha`: one
  node, where `a + (b - c) * m` takes two (a multiplication of its own) and the public wrapper `sd_mecha.add_difference`
  adds a fallback to `a` (and fails on a base that is itself a merge).
- BENCH_DEVICE=cuda merges on the card.
- The chain is one recipe graph, merged in one go.
"""

import os
import sys
from pathlib import Path

import sd_mecha
from sd_mecha.extensions import merge_methods

from bench import workloads


def recipe(workload: workloads.Workload, folder: Path) -> sd_mecha.RecipeNode:
    models = {model: sd_mecha.model(folder / file) for model, file in workload.files().items()}
    result = models[workload.base]
    if len(workload.models) == 2:
        (term,) = workload.terms
        return sd_mecha.weighted_sum(result, models[term.plus], alpha=float(term.factor))
    add_difference = merge_methods.resolve("add_difference")
    for term in workload.terms:
        result = add_difference(result, models[term.plus] - models[term.minus], alpha=float(term.factor))
    return result


def main() -> None:
    name, folder, output = sys.argv[1:]
    device = {"merge_device": os.environ["BENCH_DEVICE"]} if "BENCH_DEVICE" in os.environ else {}
    sd_mecha.merge(recipe(workloads.ALL[name], Path(folder)), output=Path(output), **device)


if __name__ == "__main__":
    main()
