"""Models with wider first convolutions, whole: what `inpainting + (model - base)` makes of every tensor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from kind_models import Model, build, same_bits, torch_of, write

FIRST = "model.diffusion_model.input_blocks.0.0.weight"
IDS = "cond_stage_model.transformer.text_model.embeddings.position_ids"


def widened(model: Model, channels: int) -> Model:
    """An inpainting (9) or pix2pix (8) model with this one's other weights."""
    shape = model[FIRST].shape
    more = np.random.default_rng(channels).standard_normal((shape[0], channels - 4, *shape[2:])) * 0.05
    return model | {FIRST: np.concatenate([model[FIRST], more.astype(model[FIRST].dtype)], axis=1)}


@pytest.mark.parametrize("container", ["ckpt", "safetensors"])
@pytest.mark.parametrize("channels", [8, 9])
def test_the_conversion_against_float64(tmp_path: Path, whole: dict[str, Model], channels: int, container: str) -> None:
    a, b = widened(whole["A"], channels), whole["B"]
    c = {n: (v.astype(np.float32) * 0.9).astype(v.dtype) if v.dtype.kind == "f" else v for n, v in whole["A"].items()}
    write(tmp_path, a=a, b=b, c=c)
    name = "a.safetensors"
    if container == "ckpt":
        torch.save({"state_dict": torch_of(a)}, tmp_path / (name := "sd-v1-5-inpainting.ckpt"))
    made = build(tmp_path, f"a: {name}, b: b.safetensors, c: c.safetensors", "a + (b - c)")
    assert made.keys() == a.keys()
    for n, value in made.items():
        if n == IDS:
            assert same_bits(value, a[n])
            continue
        wanted = a[n].astype(np.float64)
        part = wanted[:, :4] if n == FIRST else wanted
        part += b[n].astype(np.float64) - c[n].astype(np.float64)
        assert same_bits(value, wanted.astype(a[n].dtype)), n
    assert same_bits(made[FIRST][:, 4:].copy(), a[FIRST][:, 4:].copy())
