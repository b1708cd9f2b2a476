"""What an output leaves out, sets and marks; in which dtypes; and what a source's averages are used for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mergeflow.build.project import Project
from mergeflow.build.settings import Settings
from mergeflow.errors import RecipeError, UnknownName
from mergeflow.recipe import loads

UNET = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
OUT = "model.diffusion_model.out.2.weight"
TEXT = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
IDS = "cond_stage_model.transformer.text_model.embeddings.position_ids"
VAE = "first_stage_model.decoder.conv_in.weight"
AVERAGE = "model_ema." + UNET.removeprefix("model.").replace(".", "")


Model = dict[str, np.ndarray]


def model(seed: int) -> Model:
    random = np.random.default_rng(seed)

    def weights(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float16)

    ids = (np.arange(77, dtype=np.float32) - np.float32(1e-6)).reshape(1, 77)
    tensors = {UNET: weights(320, 768), OUT: weights(4, 320, 3, 3), TEXT: weights(8, 768), VAE: weights(512, 4, 3, 3)}
    return tensors | {IDS: ids}


def build(folder: Path, output: str, source: str = "a.safetensors", **models: Model) -> Model:
    for name, tensors in ({"a": model(1), "b": model(2)} | models).items():
        save_file(tensors, folder / f"{name}.safetensors")
    text = f"mergeflow: 1\nsources: {{ a: {source}, b: b.safetensors }}\noutputs: {{ x.safetensors: {output} }}\n"
    with Project(loads(text, folder=folder), Settings(folder, memo=folder / "memo")) as project:
        project.build()
    return load_file(folder / "x.safetensors")


def test_only_and_drop(tmp_path: Path) -> None:
    assert set(build(tmp_path, "{ from: a, only: [unet, vae] }")) == {UNET, OUT, VAE}
    assert set(build(tmp_path, "{ from: a, only: unet, drop: ['*.out.*'] }")) == {UNET}
    assert set(build(tmp_path, "{ from: a, drop: [ema, junk] }")) == set(model(1))


def test_junk_is_what_training_left(tmp_path: Path) -> None:
    left = {"optimizer_states.0.exp_avg": np.zeros(3, np.float32), "global_step": np.zeros(1, np.int64)}
    assert set(build(tmp_path, "{ from: a, drop: junk }", a=model(1) | left)) == set(model(1))


def test_dtypes_by_component(tmp_path: Path) -> None:
    made = build(tmp_path, "{ from: a*0.5 + b*0.5, dtype: { vae: float32, unet: float16, default: float64 } }")
    assert (made[VAE].dtype, made[UNET].dtype, made[TEXT].dtype) == (np.float32, np.float16, np.float64)
    a, b = model(1), model(2)
    assert np.array_equal(made[VAE], (a[VAE].astype(np.float64) + b[VAE].astype(np.float64)).astype(np.float32) / 2)


def test_position_ids_are_repaired(tmp_path: Path) -> None:
    bent = build(tmp_path, "a")[IDS]
    assert bent.dtype == np.float32
    assert int(bent[0, 29]) == 28
    fixed = build(tmp_path, "{ from: a, fix: clip_position_ids }")[IDS]
    assert fixed.dtype == np.int64
    assert np.array_equal(fixed, np.arange(77).reshape(1, 77))


def test_marks_are_empty_tensors(tmp_path: Path) -> None:
    made = build(tmp_path, "{ from: a, mark: [v_pred, ztsnr] }")
    assert made["v_pred"].size == made["ztsnr"].size == 0
    assert set(made) == {*model(1), "v_pred", "ztsnr"}


@pytest.mark.parametrize(("ema", "names"), [("keep", {AVERAGE}), ("drop", set()), ("use", set())])
def test_running_averages(tmp_path: Path, ema: str, names: set[str]) -> None:
    average = np.full((320, 768), 0.25, np.float16)
    made = build(tmp_path, "a", f"{{ path: a.safetensors, ema: {ema} }}", a=model(1) | {AVERAGE: average})
    assert set(made) == set(model(1)) | names
    assert np.array_equal(made[UNET], average if ema == "use" else model(1)[UNET])


@pytest.mark.parametrize(
    ("output", "error", "said"),
    [
        ("{ from: a, only: unett }", UnknownName, "unet"),
        ("{ from: a, drop: '*.nothing' }", RecipeError, "fits no tensor"),
        ("{ from: a, only: unet, drop: unet }", RecipeError, "leave no tensor"),
        ("{ from: a, fix: everything }", UnknownName, "everything"),
        ("{ from: a, mark: vpred }", UnknownName, "v_pred"),
    ],
)
def test_refused(tmp_path: Path, output: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error) as caught:
        build(tmp_path, output)
    assert said in str(caught.value)
    assert not (tmp_path / "x.safetensors").exists()
