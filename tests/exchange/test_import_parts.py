"""An output that others filled up, that has another model's components, or that tensors were taken from, comes back
from what it says of itself and from its header: build → import → build gives the same file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.tiny_models import SD1_BLOCKS, SDXL_BLOCKS, write_model

import mergeflow
from mergeflow.build.settings import Settings
from mergeflow.exchange.read import read
from mergeflow.recipe import loads

VAE = "first_stage_model."
WHOLE = {**SD1_BLOCKS, f"{VAE}encoder.conv_in.weight": (2, 3, 3, 3)}
HEAD = """mergeflow: 1
sources:
  a: a.safetensors
  b: b.safetensors
  c: c.safetensors
  single: single.safetensors
  few: few.safetensors
  unet: unet.safetensors
  vae: vae.safetensors
params:
  k: { preset: GRAD_V, BASE: 0.3 }
  attention: { default: 0.3, "*attn1*": 1 }
  base: { default: 0.3, BASE: 1 }
"""
OUTPUTS = {
    "filled": "'fallback(few, a)'",
    "filled sum": "'fallback(few*0.5 + unet*0.5, a)'",
    "filled by a sum": "'fallback(unet, a*0.5 + b*0.5)'",
    "filled, then mixed": "'fallback(few, a)*0.7 + b*0.3'",
    "filled, a VAE": "{ from: 'fallback(few*0.5 + unet*0.5, a)', replace: { vae: vae } }",
    "a VAE": "{ from: a + (b - c)*0.3, replace: { vae: vae } }",
    "a VAE, float16": "{ from: a + (b - c)*0.3, replace: { vae: vae }, dtype: float16 }",
    "of another dtype": "{ from: a*0.5 + b*0.5, replace: { vae: single } }",
    "two": "{ from: a*0.5 + b*0.5, replace: { vae: b*0.5 + c*0.5, text_encoder: c } }",
    "by blocks": "{ from: 'weighted_sum(a, b, k)', replace: { vae: vae }, dtype: float16 }",
    "difference by blocks": "{ from: a + (b - c)*k, replace: { vae: vae } }",
    "weight one": "'weighted_sum(a, b, attention)'",
    "weight one outside": "'weighted_sum(single, b, base)'",
    "into ties": "{ from: 'ties(a, [b, c], density=0.3)', replace: { vae: c } }",
    "without": "{ from: a*0.5 + b*0.5, drop: [vae] }",
    "alone": "{ from: a*0.5 + b*0.5, only: unet }",
    "a VAE alone": "{ from: a*0.5 + b*0.5, only: vae }",
    "ids": "{ from: b*0.5 + a*0.5, fix: [clip_position_ids] }",
    "marked": "{ from: b*0.5 + a*0.5, mark: [v_pred] }",
    "dtypes": "{ from: b*0.5 + a*0.5, dtype: { default: bfloat16, vae: float32, '*attn1*': float32 } }",
    "a dtype": "{ from: b*0.5 + a*0.5, dtype: { vae: float32 } }",
    "stock inside": "'weighted_sum(model_stock(a, b, c), slerp(a, b, 0.3), k)'",
    "of stock": "'slerp(model_stock(a, weighted_sum(b, c, 0.3), c), scale(c, 0.9), 0.2)'",
    "free inside": "'slerp(linear([a @ 0.7, b @ 0.4], normalize=false), c, 0.3)'",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models whose VAEs differ, one with broken position ids, one in float32, one without its VAE and a block, the
    network of one, and a VAE by itself."""
    found = tmp_path_factory.mktemp("parts")
    random = np.random.default_rng(7)
    for name in ("a", "b", "c", "single"):
        write_model(found / f"{name}.safetensors", WHOLE, name, np.float32 if name == "single" else np.float16)
        tensors = load_file(found / f"{name}.safetensors")
        for tensor, value in tensors.items():
            if tensor.startswith(VAE):
                tensors[tensor] = random.standard_normal(value.shape).astype(value.dtype)
            if tensor.endswith("position_ids") and name == "b":
                value[0, 3] = 99
        save_file(tensors, found / f"{name}.safetensors")
    few = {name: shape for name, shape in WHOLE.items() if VAE not in name and "input_blocks.3." not in name}
    write_model(found / "few.safetensors", few, "few")
    unet = {name: shape for name, shape in WHOLE.items() if "diffusion_model" in name}
    write_model(found / "unet.safetensors", unet, "unet")
    names = [name for name in WHOLE if name.startswith(VAE)]
    own = {name.removeprefix(VAE): random.standard_normal(WHOLE[name]).astype(np.float32) for name in names}
    save_file(own, found / "vae.safetensors")
    return found


def build(folder: Path, text: str, out: Path) -> Path:
    settings = Settings(output_root=out, memo=folder / "memo", cache=folder / "cache")
    with mergeflow.Project(loads(text, folder=folder), settings) as project:
        project.build()
    return out


@pytest.fixture(scope="module")
def made(folder: Path) -> Path:
    """All outputs, of one recipe."""
    lines = [f"  {name}.safetensors: {value}\n" for name, value in OUTPUTS.items()]
    return build(folder, f"{HEAD}outputs:\n{''.join(lines)}", folder / "made")


@pytest.mark.parametrize("name", OUTPUTS)
def test_the_same_file(folder: Path, made: Path, tmp_path: Path, name: str) -> None:
    first = made / f"{name}.safetensors"
    again = build(folder, read(first).text, tmp_path) / first.name
    assert again.read_bytes() == first.read_bytes()


def test_block_weights_and_a_vae_are_what_a_person_writes(made: Path) -> None:
    found = loads(read(made / "by blocks.safetensors").text)
    (output,) = found.outputs.values()
    assert output.expr is not None
    assert output.expr.text.startswith("weighted_sum(x_")
    assert set(output.replace) == {"vae"}
    (param,) = found.params.values()
    assert param.listed is not None
    assert param.listed.mbw is not None
    assert param.listed.mbw.split(",")[12] == "0"
    assert {entry.selector for entry in param.profile} == {"BASE"}


def test_blocks_of_sdxl(tmp_path: Path) -> None:
    """Few lines: ranges of blocks. Its VAE is a block of its own."""
    for name in "ab":
        write_model(tmp_path / f"{name}.safetensors", SDXL_BLOCKS, name)
        tensors = load_file(tmp_path / f"{name}.safetensors")
        values = np.random.default_rng(ord(name)).standard_normal((2, 4, 3, 3)).astype(np.float16)
        save_file(tensors | {f"{VAE}decoder.conv_in.weight": values}, tmp_path / f"{name}.safetensors")
    head = "mergeflow: 1\nsources: { a: a.safetensors, b: b.safetensors }\n"
    head += "params: { k: { default: 0.25, IN03-IN07: 0.5, M00: 0.75, clip_g: 0, VAE: 0.125 } }\n"
    build(tmp_path, f"{head}outputs: {{ mix.safetensors: 'weighted_sum(a, b, k)' }}\n", tmp_path / "first")
    made = tmp_path / "first" / "mix.safetensors"
    found = read(made)
    lines = {entry.selector: entry.numbers[0].text for entry in loads(found.text).params["k"].profile}
    assert lines == {"IN03-IN07": "0.5", "M00": "0.75", "clip_g": "0", "VAE": "0.125"}
    again = build(tmp_path, found.text, tmp_path / "second") / "mix.safetensors"
    assert again.read_bytes() == made.read_bytes()
