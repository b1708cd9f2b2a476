"""VAEs in files of their own: put into models bit for bit, merged with each other, never taken for a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from kind_models import VAE, Model, build, same_bits, torch_of, vae, write
from safetensors.numpy import save_file

from mergeflow.arch import get, to_diffusers
from mergeflow.cli.main import cli
from mergeflow.errors import RecipeError

JUNK = {
    "loss.discriminator.main.0.weight": np.ones((4, 3), np.float32),
    "loss.logvar": np.zeros((), np.float32),
    "model_ema.decay": np.ones((), np.float32),
    "model_ema.num_updates": np.ones((), np.int32),
}


def of_diffusers(model: Model) -> Model:
    """The same VAE as diffusers saves it: other names, and matrices in the attention."""
    names = to_diffusers(get("vae"), {n: v.shape for n, v in vae(model).items()})
    return {a.name.removeprefix("vae."): vae(model)[n].reshape(a.shape) for n, a in names.items()}


def in_a_folder(folder: Path, model: Model) -> str:
    (folder / "v").mkdir()
    save_file(of_diffusers(model), folder / "v/diffusion_pytorch_model.safetensors")
    return "v"


def as_ckpt(folder: Path, model: Model, **options: bool) -> str:
    """As NAI's and A1111's .vae.pt are, training's leftovers included."""
    torch.save({"state_dict": torch_of(vae(model) | JUNK), "epoch": 7}, folder / "v.vae.pt", **options)
    return "v.vae.pt"


def plain(folder: Path, tensors: Model) -> str:
    save_file(tensors, folder / "v.safetensors")
    return "v.safetensors"


DONORS: dict[str, Callable[[Path, Model], str]] = {
    "bare": lambda folder, model: plain(folder, vae(model)),
    "with a prefix": lambda folder, model: plain(folder, {VAE + n: v for n, v in vae(model).items()}),
    "vae.pt, zip": as_ckpt,
    "vae.pt, legacy": lambda folder, model: as_ckpt(folder, model, _use_new_zipfile_serialization=False),
    "diffusers, a file": lambda folder, model: plain(folder, of_diffusers(model)),
    "diffusers, a folder": in_a_folder,
    "a whole model": plain,
}


@pytest.mark.parametrize("donor", DONORS)
@pytest.mark.parametrize("stated", ["", "kind: vae"])
def test_a_vae_is_put_into_a_model_bit_for_bit(
    tmp_path: Path, whole: dict[str, Model], donor: str, stated: str
) -> None:
    a, b = whole["A"], whole["B"]
    write(tmp_path, a=a)
    path = DONORS[donor](tmp_path, b)
    sources = f"a: a.safetensors, v: {{ path: {path}{', ' if stated else ''}{stated} }}"
    made = build(tmp_path, sources, "{ from: a, replace: { vae: v } }")
    assert set(made) == set(a)
    for name, value in made.items():
        assert same_bits(value, b[name] if name.startswith(VAE) else a[name]), name
    assert any(not same_bits(a[n], b[n]) for n in a if n.startswith(VAE))


def test_a_model_without_a_vae_gets_one(tmp_path: Path, whole: dict[str, Model]) -> None:
    a = {n: v for n, v in whole["A"].items() if not n.startswith(VAE)}
    write(tmp_path, a=a, v=vae(whole["B"]))
    made = build(tmp_path, "a: a.safetensors, v: v.safetensors", "{ from: a, replace: { vae: v } }")
    assert set(made) == set(whole["B"])
    assert all(same_bits(made[n], whole["B"][n]) for n in made if n.startswith(VAE))
    filled = build(tmp_path, "a: a.safetensors, v: v.safetensors", "'fallback(a, v)'")
    assert set(filled) == set(made)
    assert all(same_bits(filled[n], made[n]) for n in made)
    with pytest.raises(RecipeError, match="they cannot be merged"):
        build(tmp_path, "a: a.safetensors, v: v.safetensors", "'fallback(v, a)'")


def test_vaes_merge_with_each_other_under_bare_names(tmp_path: Path, whole: dict[str, Model]) -> None:
    write(tmp_path, p=vae(whole["A"]), q=of_diffusers(whole["B"]))
    made = build(tmp_path, "p: p.safetensors, q: q.safetensors", "p*0.75 + q*0.25")
    one, other = vae(whole["A"]), vae(whole["B"])
    assert set(made) == set(one)
    for name, value in made.items():
        expected = (3 * one[name].astype(np.float64) + other[name].astype(np.float64)) / 4
        assert same_bits(value, expected.astype(np.float16)), name


def test_the_vae_of_a_model_merges_with_a_vae(tmp_path: Path, whole: dict[str, Model]) -> None:
    write(tmp_path, p=vae(whole["A"]), q=whole["B"])
    sources = "p: p.safetensors, q: { path: q.safetensors, kind: vae }"
    made = build(tmp_path, sources, "p*0.5 + q*0.5")
    pair = vae(whole["A"]), vae(whole["B"])
    wanted = {n: ((pair[0][n].astype(np.float64) + pair[1][n]) / 2).astype(np.float16) for n in pair[0]}
    assert made.keys() == wanted.keys()
    assert all(same_bits(made[n], wanted[n]) for n in made)
    write(tmp_path, a=whole["A"])
    baked = build(tmp_path, f"a: a.safetensors, {sources}", "{ from: a, replace: { vae: p*0.5 + q*0.5 } }")
    assert all(same_bits(baked[VAE + n], wanted[n]) for n in wanted)
    assert all(same_bits(baked[n], whole["A"][n]) for n in baked if not n.startswith(VAE))


def test_a_vae_is_compared_with_that_of_a_model(tmp_path: Path, whole: dict[str, Model]) -> None:
    write(tmp_path, a=whole["A"], b=whole["B"], v=vae(whole["A"]))
    for other, code in (("a", 0), ("b", 3)):
        arguments = ["diff", str(tmp_path / "v.safetensors"), str(tmp_path / f"{other}.safetensors")]
        assert CliRunner().invoke(cli, arguments).exit_code == code


def test_what_a_vaes_training_left_is_not_written(tmp_path: Path, whole: dict[str, Model]) -> None:
    path = as_ckpt(tmp_path, whole["A"])
    assert set(build(tmp_path, f"v: {path}", "v")) == set(vae(whole["A"]))


def test_the_digest_and_the_bytes_do_not_depend_on_where_a_vae_came_from(
    tmp_path: Path, whole: dict[str, Model]
) -> None:
    write(tmp_path, a=whole["A"])
    made = set()
    for donor in DONORS.values():
        path = donor(tmp_path, whole["B"])
        sources = f"a: a.safetensors, v: {{ path: {path}, kind: vae }}"
        build(tmp_path, sources, "{ from: a, replace: { vae: v } }", name="same")
        made.add((tmp_path / "same.safetensors").read_bytes())
    assert len(made) == 1


@pytest.mark.parametrize("expression", ["a*0.5 + v*0.5", "v*0.5 + a*0.5", "a + (v - a) * 0.3"])
def test_a_vae_is_no_model(tmp_path: Path, whole: dict[str, Model], expression: str) -> None:
    write(tmp_path, a=whole["A"], v=vae(whole["B"]))
    with pytest.raises(RecipeError) as caught:
        build(tmp_path, "a: a.safetensors, v: v.safetensors", expression)
    assert "v is a VAE (channels 4) and a is a model: they cannot be merged" in str(caught.value)
    assert "`replace: { vae: v }`" in str(caught.value)


def test_a_vae_of_other_channels_does_not_fit(tmp_path: Path, whole: dict[str, Model]) -> None:
    other = vae(whole["B"]) | {"decoder.conv_in.weight": np.zeros((32, 16, 3, 3), np.float16)}
    write(tmp_path, a=whole["A"], v=other)
    with pytest.raises(
        RecipeError, match=r"v does not fit a: first_stage_model\.decoder\.conv_in\.weight is 32×16×3×3"
    ):
        build(tmp_path, "a: a.safetensors, v: v.safetensors", "{ from: a, replace: { vae: v } }")


def test_what_is_said_to_be_a_vae_has_one(tmp_path: Path, whole: dict[str, Model]) -> None:
    write(tmp_path, a={n: v for n, v in whole["A"].items() if not n.startswith(VAE)})
    with pytest.raises(RecipeError, match="a is said to be a VAE, but it is Stable Diffusion 1 and has no VAE"):
        build(tmp_path, "a: { path: a.safetensors, kind: vae }", "a")


def test_a_flux_model_gets_flux_names(tmp_path: Path, whole: dict[str, Model]) -> None:
    flux = {
        "model.diffusion_model.double_blocks.0.img_attn.qkv.weight": np.ones((6, 2), np.float16),
        "model.diffusion_model.txt_in.weight": np.ones((2, 2), np.float16),
        "model.diffusion_model.vector_in.in_layer.weight": np.ones((2, 2), np.float16),
    }
    own = {
        "encoder.conv_in.weight": np.ones((2, 3, 3, 3), np.float16),
        "decoder.conv_in.weight": np.ones((2, 16, 3, 3), np.float16),
    }
    write(tmp_path, a=flux, v=own)
    made = build(tmp_path, "a: a.safetensors, v: v.safetensors", "{ from: a, replace: { vae: v } }")
    assert set(made) == {*flux, *(f"vae.{name}" for name in own)}
