"""Averages find their tensors, variants are told from shapes and markers, junk is told from weights."""

import arch_layouts as layouts
import pytest

from mergeflow.arch import ema_names, junk, variant

FIRST = "model.diffusion_model.input_blocks.0.0.weight"


@pytest.mark.parametrize("layout", [layouts.SD1, layouts.SD2, layouts.SDXL, layouts.REFINER])
def test_every_average_finds_its_tensor(layout):
    unet = [name for name, (component, _) in layout.items() if component == "unet"]
    found = ema_names([*layout, *layouts.ema(layout)])
    assert set(found.values()) == set(unet)
    assert len(found) == len(unet)


def test_the_name_of_an_average():
    names = ["model.diffusion_model.input_blocks.0.0.bias", "model_ema.diffusion_modelinput_blocks00bias"]
    assert ema_names(names) == {names[1]: names[0]}
    assert ema_names(dict.fromkeys(names, (320,))) == {names[1]: names[0]}
    assert ema_names(["model_ema.decay", "model_ema.num_updates", "model_ema.gone", "model.here", *names[:1]]) == {}


def test_an_average_of_either_of_two_tensors_is_nobodys():
    assert ema_names(["model.a.b", "model.ab", "model_ema.ab", "model.c.d", "model_ema.cd"]) == {
        "model_ema.cd": "model.c.d"
    }


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({FIRST: (320, 4, 3, 3)}, ""),
        ({}, ""),
        ({FIRST: (320, 9, 3, 3)}, "inpainting"),
        ({FIRST: (320, 8, 3, 3)}, "pix2pix"),
        ({FIRST: (320, 5, 3, 3)}, "depth"),
        ({FIRST: (320, 7, 3, 3)}, "7-channel"),
        ({"input_blocks.0.0.weight": (320, 9, 3, 3)}, "inpainting"),
        ({"conv_in.weight": (320, 9, 3, 3)}, "inpainting"),
        ({"unet.conv_in.weight": (320, 8, 3, 3)}, "pix2pix"),
        ({"depth_model.model.x": (1,)}, "depth"),
        ({FIRST: (320, 5, 3, 3), "depth_model.model.x": (1,)}, "depth"),
        ({"v_pred": (0,)}, "v-prediction"),
        ({"v_pred": (0,), "ztsnr": (0,)}, "v-prediction + zero-terminal-snr"),
        ({"edm_vpred.sigma_max": (), "edm_vpred.sigma_min": ()}, "edm-v-prediction"),
        ({FIRST: (320, 9, 3, 3), "v_pred": (0,)}, "inpainting + v-prediction"),
        ({FIRST: (320,)}, ""),
    ],
)
def test_variants(extra, expected):
    name, reason = variant({"model.diffusion_model.out.2.bias": (4,)} | extra)
    assert name == expected
    assert bool(reason) == bool(expected)
    assert not expected or any(tensor in reason for tensor in extra)


def test_why_an_inpainting_model_is_one():
    shapes = layouts.shapes(layouts.SD1) | {FIRST: (320, 9, 3, 3)}
    assert variant(shapes)[1] == f"{FIRST} takes 9 channels: a masked image and its mask beside the latent image"


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("optimizer_states.0.state.12.exp_avg", "optimizer"),
        ("optimizer.state.3.momentum_buffer", "optimizer"),
        ("lr_schedulers.0.last_epoch", "training"),
        ("callbacks.ModelCheckpoint.best_model_score", "training"),
        ("loops.fit_loop.state_dict", "training"),
        ("epoch", "training"),
        ("global_step", "training"),
        ("lr", "training"),
        ("pytorch-lightning_version", "training"),
        ("native_amp_scaling_state.scale", "mixed-precision"),
        ("loss.discriminator.main.0.weight", "loss"),
        ("first_stage_model.loss.logvar", "loss"),
        ("loss.perceptual_loss.net.slice1.0.weight", "loss"),
    ],
)
def test_what_only_a_training_needs_is_junk(name, what):
    assert what in junk([name])[name]


@pytest.mark.parametrize(
    "layout",
    [
        layouts.SD1 | layouts.ema(layouts.SD1) | layouts.SCHEDULE,
        layouts.SD2,
        layouts.SDXL,
        layouts.SD3,
        layouts.FLUX,
        layouts.LLAMA,
        dict.fromkeys(("logvar", "v_pred", "ztsnr", "lora_unet_x.alpha", "model.layers.0.loss_head.weight")),
        dict.fromkeys(("encoder.conv_in.weight", "decoder.conv_in.weight")),
    ],
)
def test_weights_schedules_averages_and_markers_are_no_junk(layout):
    assert junk(layout) == {}


def test_counters_without_averages_and_a_second_vae_that_nothing_reads():
    assert set(junk(["model_ema.decay", "model_ema.num_updates", "encoder.conv_in.weight"])) == {
        "model_ema.decay",
        "model_ema.num_updates",
    }
    names = ["first_stage_model.encoder.conv_in.weight", "encoder.conv_in.weight", "decoder.conv_in.weight"]
    assert list(junk(names)) == ["encoder.conv_in.weight"]
