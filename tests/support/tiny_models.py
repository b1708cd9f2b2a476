"""Models of a few tensors under real names: enough for a header to be recognised, small enough to hash in no time.

Values come from a hash of the file's seed and the tensor's name, so that digests and keys are the same everywhere.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from mergeflow import Settings
from mergeflow.plan.bound import Bound

Shapes = Mapping[str, tuple[int, ...]]

SD1: Shapes = {
    "model.diffusion_model.input_blocks.0.0.weight": (8, 4, 3, 3),
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (2, 768),
    "model.diffusion_model.out.2.bias": (4,),
    "cond_stage_model.transformer.text_model.embeddings.position_ids": (1, 77),
    "cond_stage_model.transformer.text_model.final_layer_norm.weight": (768,),
    "first_stage_model.decoder.conv_in.weight": (2, 4, 3, 3),
    "alphas_cumprod": (100,),
}
INPAINTING: Shapes = {**SD1, "model.diffusion_model.input_blocks.0.0.weight": (8, 9, 3, 3)}
FLUX: Shapes = {
    "double_blocks.0.img_attn.qkv.weight": (12, 4),
    "single_blocks.0.linear1.weight": (8, 4),
    "txt_in.weight": (4, 8),
    "vector_in.in_layer.weight": (4, 4),
}
LLAMA: Shapes = {
    "model.embed_tokens.weight": (16, 4),
    "model.layers.0.input_layernorm.weight": (4,),
    "model.layers.0.self_attn.q_proj.weight": (4, 4),
    "lm_head.weight": (16, 4),
}
_NETWORK = "model.diffusion_model."
_BLOCKS = ("input_blocks", "middle_block", "output_blocks")


def _whole(first: Shapes, inputs: int, outputs: int) -> Shapes:
    """A UNet with a tensor in each of its blocks."""
    numbered = zip(_BLOCKS, (range(inputs), range(1), range(outputs)), strict=True)
    names = [f"{_NETWORK}{part}.{i}.0.in_layers.0.bias" for part, numbers in numbered for i in numbers]
    return {**first, **dict.fromkeys(names, (4,))}


_ATTENDING = ("input_blocks.4", "input_blocks.8", "output_blocks.5")
SD1_BLOCKS = {
    **_whole(SD1, 12, 12),
    "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.bias": (8,),
    **{f"{_NETWORK}{block}.1.transformer_blocks.0.attn1.to_q.bias": (4,) for block in _ATTENDING},
}
SDXL_BLOCKS = _whole(
    {
        f"{_NETWORK}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (2, 2048),
        f"{_NETWORK}label_emb.0.0.bias": (4,),
        "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight": (768,),
        "conditioner.embedders.1.model.ln_final.weight": (1280,),
        "first_stage_model.decoder.conv_in.weight": (2, 4, 3, 3),
    },
    9,
    9,
)
DIGITS: Shapes = {"layers.0.weight": (6, 4), "layers.0.bias": (6,), "layers.1.weight": (3, 6), "layers.1.bias": (3,)}
SHARED = ("position_ids", "alphas_cumprod", "first_stage_model")  # what every model of a family has alike


def shapes_for(path: Path) -> Shapes:
    """What a file of this name is likely to hold."""
    name = path.name.lower()
    if "inpaint" in name:
        return INPAINTING
    if "flux" in name:
        return FLUX
    if any(word in name for word in ("lwm", "coder", "codellama")):
        return LLAMA
    return SD1


def write_model(path: Path, shapes: Shapes, seed: str, dtype: type = np.float16) -> None:
    """A safetensors file, whatever its name ends in: readers go by content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: _values(name, shape, seed, dtype) for name, shape in shapes.items()}, path)


def write_sources(bound: Bound, shapes: Shapes | None = None) -> None:
    """A file for every source of a recipe, under the very path that it names."""
    for source in bound.sources:
        if not source.path.exists():
            write_model(source.path, shapes or shapes_for(source.path), seed=source.path.name)


def settings(folder: Path) -> Settings:
    """All that a project writes goes below `folder`; nothing is remembered elsewhere."""
    return Settings(output_root=folder / "out", cache=folder / "cache", memo=folder / "memo", memory=10**9)


def _values(name: str, shape: tuple[int, ...], seed: str, dtype: type) -> np.ndarray:
    count = math.prod(shape)
    if name.endswith("position_ids"):
        return np.arange(count, dtype=np.int64).reshape(shape)
    owner = "shared" if any(part in name for part in SHARED) else seed
    raw = hashlib.shake_256(f"{owner}/{name}".encode()).digest(2 * count)
    integers = np.frombuffer(raw, "<i2").astype(np.float32)
    return (integers / 65536).astype(dtype).reshape(shape)
