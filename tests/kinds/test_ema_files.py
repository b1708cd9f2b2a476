"""Training files with running averages, as .ckpt and as safetensors: what `ema:` leaves of them, in tensors and bytes.

The name of an average is that of its weight without dots (CompVis, ldm/modules/ema.py: LitEma): the average of
`model.diffusion_model.out.2.bias` is `model_ema.diffusion_modelout2bias`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from kind_models import Model, build, same_bits, torch_of, write
from safetensors.numpy import save_file
from support.commands import run_json

from mergeflow.errors import RecipeError

UNET = "model.diffusion_model."
COUNTERS = {"model_ema.decay": np.array(0.9999, np.float32), "model_ema.num_updates": np.array(470000, np.int32)}


def averages(model: Model) -> Model:
    """Of every weight of the UNet, a little off."""
    return {
        "model_ema." + name.removeprefix("model.").replace(".", ""): value + np.float32(0.125)
        for name, value in model.items()
        if name.startswith(UNET)
    }


@pytest.fixture(scope="session")
def trained(whole: dict[str, Model]) -> Model:
    """As a training run leaves it: float32, the averages and their counters beside the weights."""
    model = {n: v.astype(np.float32) if v.dtype.kind == "f" else v for n, v in whole["A"].items()}
    return model | averages(model) | COUNTERS


def saved(folder: Path, model: Model, container: str) -> str:
    if container == "safetensors":
        save_file(model, folder / "latest.safetensors")
        return "latest.safetensors"
    training = {"state_dict": torch_of(model), "global_step": 470000, "optimizer_states": [{"state": {}}]}
    torch.save(training, folder / "latest.ckpt", _use_new_zipfile_serialization=container == "zip")
    return "latest.ckpt"


def floats(model: Model) -> int:
    return sum(v.size for n, v in model.items() if v.dtype.kind == "f" and not n.startswith("model_ema."))


@pytest.mark.parametrize("container", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("choice", ["keep", "drop", "use"])
def test_what_is_left_of_a_training_file(tmp_path: Path, trained: Model, container: str, choice: str) -> None:
    source = f"a: {{ path: {saved(tmp_path, trained, container)}, ema: {choice} }}"
    made = build(tmp_path, source, "a")
    own = {n: v for n, v in trained.items() if not n.startswith("model_ema.")}
    found = averages(own)
    wanted = {"keep": trained, "drop": own}.get(choice) or {
        n: found["model_ema." + n.removeprefix("model.").replace(".", "")] if n.startswith(UNET) else v
        for n, v in own.items()
    }
    assert len(found) == 686
    assert made.keys() == wanted.keys()
    assert all(same_bits(made[n], wanted[n]) for n in wanted)
    if choice != "keep":  # 4.3: 4.27 GB of 7.7, and half of that as float16
        assert sum(v.nbytes for v in made.values()) == 4 * floats(trained) + 77 * 8
        half = build(tmp_path, source, "{ from: a, dtype: float16 }")
        assert sum(v.nbytes for v in half.values()) == 2 * floats(trained) + 77 * 8


@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_averages_are_what_is_merged(tmp_path: Path, whole: dict[str, Model], trained: Model, container: str) -> None:
    """A weighted sum with a model that has none, checked in float64."""
    write(tmp_path, b=whole["B"])
    path = saved(tmp_path, trained, container)
    made = build(tmp_path, f"a: {{ path: {path}, ema: use }}, b: b.safetensors", "{ from: a*0.75 + b*0.25 }")
    assert made.keys() == whole["A"].keys()
    for name, value in made.items():
        one, other = trained[name], whole["B"][name]
        if name.startswith(UNET):
            one = trained["model_ema." + name.removeprefix("model.").replace(".", "")]
        if one.dtype.kind == "i":
            assert same_bits(value, one), name
            continue
        exact = 0.75 * one.astype(np.float64) + 0.25 * other.astype(np.float64)
        assert same_bits(value, exact.astype(np.float32)), name


def test_the_digest_is_that_of_the_pruned_file(tmp_path: Path, trained: Model) -> None:
    """What `use` gives and what a pruning script wrote are one model to every key."""
    pruned = {n: v for n, v in trained.items() if not n.startswith("model_ema.")}
    pruned |= {
        n: trained["model_ema." + n.removeprefix("model.").replace(".", "")] for n in pruned if n.startswith(UNET)
    }
    write(tmp_path, pruned=pruned)
    files = []
    for source in (f"{{ path: {saved(tmp_path, trained, 'zip')}, ema: use }}", "pruned.safetensors"):
        build(tmp_path, f"a: {source}", "a * 1.0", name="one")
        files.append((tmp_path / "one.safetensors").read_bytes())
    assert files[0] == files[1]


def test_check_says_what_pruning_would_save(tmp_path: Path, trained: Model) -> None:
    (file,) = run_json("check", tmp_path / saved(tmp_path, trained, "zip"))["files"]
    unet = sum(v.size for n, v in trained.items() if n.startswith(UNET))
    counters = sum(v.nbytes for v in COUNTERS.values())
    assert file["savings"]["running averages (EMA)"] - counters in (4 * unet, 4 * unet - counters)


def test_without_averages_there_is_nothing_to_use(tmp_path: Path, whole: dict[str, Model]) -> None:
    write(tmp_path, a=whole["A"])
    with pytest.raises(RecipeError, match="keeps no running averages"):
        build(tmp_path, "a: { path: a.safetensors, ema: use }", "a")
