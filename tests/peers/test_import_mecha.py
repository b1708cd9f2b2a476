"""sd-mecha's recipes with `a | b`, imported and built, against sd-mecha itself: `make test-peers`."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bench.peers import ROOT
from mergeflow import Settings, load
from mergeflow.exchange.read import read

HERE = Path(__file__).parent
PYTHON = ROOT / "build" / "bench-venv" / "bin" / "python"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason="sd-mecha and mergekit are not installed: `make test-peers` does"),
]
TENSORS = {
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
    "model.diffusion_model.out.2.bias": 4,
    "model.diffusion_model.time_embed.0.bias": 1280,
    "cond_stage_model.transformer.text_model.final_layer_norm.bias": 768,
    "first_stage_model.decoder.conv_out.bias": 3,
}
LACKING = {"a": "first_stage_model", "b": "cond_stage_model", "c": "nothing"}
MODELS = "".join(f'model "{x}.safetensors" model_config="sd1-ldm" merge_space="weight"\n' for x in LACKING)
ALPHA = 'dict key=0.25\nliteral &{} model_config="singleton-mecha" merge_space="param"\nmerge "convert_singleton" &{}\n'
PART = 'dict key="vae"\nliteral &3 model_config="singleton-mecha" merge_space="param"\nmerge "convert_singleton" &4\n'
RECIPES = {
    "a component": PART + 'merge "pick_component" &1 &5\nmerge "fallback" &6 &2\n',
    "all but a component": PART + 'merge "omit_component" &2 &5\nmerge "fallback" &6 &1\n',
    "two parts": PART + 'merge "omit_component" &2 &5\nmerge "pick_component" &1 &5\nmerge "fallback" &6 &7\n',
    "two": 'merge "fallback" &0 &1\n',
    "three": 'merge "fallback" &0 &1\nmerge "fallback" &3 &2\n',
    "nested": 'merge "fallback" &1 &2\nmerge "fallback" &0 &3\n',
    "of a difference": 'merge "subtract" &1 &2\n' + ALPHA.format(4, 5) + 'merge "add_difference" &0 &3 &6\n'
    'merge "fallback" &7 &0\n',
    "filled, then mixed": 'merge "fallback" &0 &2\n' + ALPHA.format(4, 5) + 'merge "weighted_sum" &3 &2 &6\n',
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All recipes merged by sd-mecha."""
    found = tmp_path_factory.mktemp("mecha")
    rng = np.random.default_rng(3)
    for name, lacking in LACKING.items():
        own = {n: rng.standard_normal(size).astype(np.float32) for n, size in TENSORS.items() if lacking not in n}
        save_file(own, found / f"{name}.safetensors")
    for name, lines in RECIPES.items():
        (found / f"{name}.mecha").write_text(f"version 0.1.0\n{MODELS}{lines}")
    done = subprocess.run(
        [PYTHON, HERE / "run_mecha.py", found], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return found


@pytest.mark.parametrize("name", RECIPES)
def test_the_same_tensors_and_values(folder: Path, name: str) -> None:
    """Those of the first that has them. Values in float64 there, of three roundings at most, and in float32 last."""
    (folder / f"{name}.yaml").write_text(read(folder / f"{name}.mecha").text)
    settings = Settings(output_root=folder, memo=folder / "memo")
    with load(folder / f"{name}.yaml", settings=settings) as project:
        project.build()
    ours, theirs = load_file(folder / f"{name}.safetensors"), load_file(folder / f"{name}.theirs.safetensors")
    assert set(ours) == set(theirs)
    for tensor, value in ours.items():
        np.testing.assert_allclose(value, theirs[tensor], rtol=2e-7, atol=1e-9)
