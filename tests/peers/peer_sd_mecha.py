"""Runs in the peers' environment: `python peer_sd_mecha.py JOBS`, a JSON file with a list of merges (`Job` in
test_peers.py says what each holds). A call is a list: the name of a method, its models (names or calls), and, last, its
numbers and options by name.

With masks, tensors are merged one by one, and what `torch.bernoulli` would draw is given.
"""

import inspect
import json
import sys
from pathlib import Path
from typing import Any

import sd_mecha
import torch
from safetensors.torch import load_file, save_file
from sd_mecha.extensions import merge_methods


def node(call: Any, models: dict[str, Any]) -> Any:
    """A model's name, or a call, as what sd-mecha merges. The functions that sd-mecha shows to its users come first,
    but over calls: there its `add_difference` fails."""
    if isinstance(call, str):
        return sd_mecha.model(models[call])
    if not isinstance(call, list):
        return call
    name, *operands, named = call
    wrapper = getattr(sd_mecha, name, None) if all(isinstance(o, str) for o in operands) else None
    function = wrapper if inspect.isfunction(wrapper) else merge_methods.resolve(name)
    return function(*(node(o, models) for o in operands), **{key: node(value, models) for key, value in named.items()})


def merge(call: Any, models: dict[str, Any], job: dict[str, Any]) -> dict[str, torch.Tensor]:
    found = sd_mecha.merge(
        node(call, models),
        merge_dtype=getattr(torch, job["compute"]),
        output_dtype=getattr(torch, job["dtype"]),
        threads=0,
    )
    return {name: tensor.contiguous() for name, tensor in found.items() if isinstance(tensor, torch.Tensor)}


def one_by_one(call: Any, folder: Path, job: dict[str, Any]) -> dict[str, torch.Tensor]:
    models = {path.stem: load_file(path) for path in folder.glob("*.safetensors")}
    masks = [load_file(path) for path in job["masks"]]
    merged = {}
    drawn = torch.bernoulli
    for name in masks[0]:
        left = [mask[name] for mask in masks]
        torch.bernoulli = lambda p, left=left, **_: left.pop(0).to(p.dtype).reshape(p.shape)
        try:
            merged |= merge(call, {key: {name: model[name]} for key, model in models.items()}, job)
        finally:
            torch.bernoulli = drawn
        assert not left, "each mask is used once"
    return merged


def main() -> None:
    for job in json.loads(Path(sys.argv[1]).read_text()):
        folder = Path(job["models"])
        if job["masks"]:
            found = one_by_one(job["call"], folder, job)
        else:
            found = merge(job["call"], {path.stem: path for path in folder.glob("*.safetensors")}, job)
        save_file(found, job["output"])


if __name__ == "__main__":
    main()
