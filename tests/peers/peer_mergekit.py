"""Runs in the peers' environment: `python peer_mergekit.py JOBS`, a JSON file with a list of merges (`Job` in
test_peers.py says what each holds). Merges are planned and run by the code of `mergekit-pytorch`. The names of its
methods are left beside the file.

With masks, or for some tensors only, they are merged one by one through mergekit's Python interface. What
`torch.bernoulli` would draw is given then: mergekit draws in the order in which a set of names happens to be.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from mergekit import merge_methods
from mergekit.graph import Executor
from mergekit.merge_methods.api import merge_tensors
from mergekit.options import MergeOptions
from mergekit.scripts.merge_raw_pytorch import RawPyTorchMergeConfig, plan_flat_merge
from safetensors.torch import load_file, save_file


def merge(job: dict[str, Any], folder: Path) -> None:
    """A configuration of mergekit-pytorch; its output is a folder, from which the one file is taken."""
    call = job["call"]
    config = {
        "merge_method": call["method"],
        "models": [
            {"model": str(folder / f"{model}.safetensors"), "parameters": parameters}
            for model, parameters in call["models"].items()
        ],
        "parameters": call.get("parameters", {}),
        "dtype": job["compute"],
        "out_dtype": job["dtype"],
    }
    if "base" in call:
        config["base_model"] = str(folder / f"{call['base']}.safetensors")
    made = Path(job["output"]).with_suffix(".mergekit")
    options = MergeOptions(random_seed=0)
    options.apply_global_options()
    tasks = plan_flat_merge(RawPyTorchMergeConfig.model_validate(config), str(made), False, False, options)
    Executor(tasks).execute()
    (made / "model.safetensors").replace(job["output"])


def one_by_one(job: dict[str, Any], folder: Path) -> None:
    call = job["call"]
    names = [call["base"], *call["models"]]
    models = [load_file(folder / f"{name}.safetensors") for name in names]
    masks = [load_file(path) for path in job["masks"]]
    method = merge_methods.get(call["method"])
    parameters = dict(call.get("parameters", {}))
    for key in {key for given in call["models"].values() for key in given}:
        parameters[key] = [given[key] for given in call["models"].values()]  # the base has none
    merged = {}
    drawn = torch.bernoulli
    torch.manual_seed(0)
    for name in job["only"] or models[0]:
        left = [mask[name] for mask in masks]
        if masks:
            torch.bernoulli = lambda p, left=left, **_: left.pop(0).to(p.dtype).reshape(p.shape)
        try:
            merged[name] = merge_tensors(
                [model[name] for model in models],
                method,
                parameters=parameters,
                base_index=0,
                dtype=getattr(torch, job["compute"]),
                out_dtype=getattr(torch, job["dtype"]),
            )
        finally:
            torch.bernoulli = drawn
        assert not left, "each mask is used once"
    save_file({name: tensor.contiguous() for name, tensor in merged.items()}, job["output"])


def main() -> None:
    names = sorted(method.spec.name for method in merge_methods.registered_methods())
    Path(sys.argv[1]).with_suffix(".names").write_text("\n".join(names))
    for job in json.loads(Path(sys.argv[1]).read_text()):
        (one_by_one if job["masks"] or job["only"] else merge)(job, Path(job["models"]))


if __name__ == "__main__":
    main()
