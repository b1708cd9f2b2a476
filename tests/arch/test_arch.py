"""Every tensor of every known layout finds its component; detection is right, or says that it does not know."""

import pickle  # noqa: TID251 (an architecture travels to worker processes)
import subprocess
import sys

import arch_layouts as layouts
import pytest

from mergeflow import arch
from mergeflow.arch.registry import parse
from mergeflow.errors import UnknownName

FULL_SD1 = layouts.SD1 | layouts.ema(layouts.SD1) | layouts.SCHEDULE
MARKERS: layouts.Layout = dict.fromkeys(("v_pred", "ztsnr", "edm_vpred.sigma_max"), ("unet", (0,)))
WHOLE = {
    "sd1": FULL_SD1,
    "sd2": layouts.SD2 | layouts.SCHEDULE,
    "sdxl": layouts.SDXL | layouts.SCHEDULE | MARKERS,
    "sdxl-refiner": layouts.REFINER,
    "sd3": layouts.SD3,
    "flux": layouts.FLUX,
    "llama": layouts.LLAMA,
}
CONTEXT = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
FIRST = "model.diffusion_model.input_blocks.0.0.weight"


def detected(layout: layouts.Layout) -> str:
    return arch.detect(layouts.shapes(layout))[0].name


def part(layout: layouts.Layout, component: str) -> layouts.Layout:
    return {name: entry for name, entry in layout.items() if entry[0] == component}


# --- the fixtures themselves --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "tensors"),
    [
        (layouts.SD1_UNET, 686),
        (layouts.VAE, 248),
        (layouts.SD1, 1131),
        (part(FULL_SD1, "ema"), 688),
        (layouts.SD2_UNET, 686),
        (part(layouts.SD2, "clip_h"), 294),
        (layouts.SDXL_UNET, 1680),
        (layouts.SDXL, 2515),
        (layouts.REFINER_UNET, 1220),
        (layouts.FLUX_NETWORK, 780),
    ],
)
def test_the_rules_of_the_fixtures_give_the_published_counts(layout, tensors):
    assert len(layout) == tensors


# --- components ---------------------------------------------------------------------------------------------------


def test_a_fixture_for_each_architecture():
    assert tuple(sorted([*WHOLE, arch.VAE])) == arch.names()


@pytest.mark.parametrize("name", WHOLE)
def test_every_tensor_finds_its_component(name):
    architecture = arch.get(name)
    assert {t: architecture.component(t) for t in WHOLE[name]} == {t: c for t, (c, _) in WHOLE[name].items()}


@pytest.mark.parametrize("name", WHOLE)
def test_names_that_merely_look_alike_belong_nowhere(name):
    architecture = arch.get(name)
    for tensor in ("", "model", "xmodel.diffusion_model.out.0.weight", "first_stage_modelx.a", "lora_unet_out_0.alpha"):
        assert architecture.component(tensor) is None


def test_nai_names_of_the_text_encoder_are_clip_l():
    assert arch.get("sd1").component("cond_stage_model.transformer.embeddings.position_ids") == "clip_l"


def test_flux_without_the_prefix_is_all_diffuser():
    assert {arch.get("flux").component(t) for t in layouts.FLUX_NETWORK} == {"diffuser"}


def test_sd_turbo_text_encoder_is_clip_h():
    assert arch.get("sd2").component("conditioner.embedders.0.model.ln_final.weight") == "clip_h"


@pytest.mark.parametrize("name", [n for n in WHOLE if n != "llama"])
def test_diffuser_and_text_encoder_mean_something_in_every_image_model(name):
    architecture, layout = arch.get(name), WHOLE[name]
    encoders = {"clip_l", "clip_g", "clip_h", "t5"}
    for tensor, (component, _) in layout.items():
        assert architecture.matches("diffuser", tensor) == (component in ("unet", "diffuser"))
        assert architecture.matches("text_encoder", tensor) == (component in encoders)
        assert architecture.matches("vae", tensor) == (component == "vae")


def test_what_a_recipe_may_name():
    names = ("unet", "clip_l", "clip_g", "vae", "ema", "text_encoder", "diffuser")
    assert arch.get("sdxl").component_names == names
    assert arch.UNKNOWN.component_names == ()


def test_a_component_that_is_not_there_is_answered_with_the_nearest():
    with pytest.raises(UnknownName) as caught:
        arch.get("sdxl").matches("clip_q", "a.weight")
    assert "Stable Diffusion XL" in str(caught.value)
    assert "clip_l" in caught.value.hint


def test_the_component_written_first_has_the_tensor():
    data = {"title": "t", "components": {"head": ["a.*.head"], "rest": ["a.*"], "one": ["b"]}, "detect": []}
    architecture, _ = parse("x", data)
    found = {t: architecture.component(t) for t in ("a.1.head", "a.1\n2.head", "a.1.heads", "b", "b.c", "ab")}
    assert list(found.values()) == ["head", "head", "rest", "one", None, None]


# --- buffers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WHOLE)
def test_buffers_are_the_ids_schedules_and_markers_and_nothing_else(name):
    expected = {t for t in WHOLE[name] if t.endswith((".position_ids", ".sigmas")) or t in layouts.DDPM}
    expected |= {t for t in WHOLE[name] if t in {*MARKERS, "model_ema.decay", "model_ema.num_updates"}}
    assert {t for t in WHOLE[name] if arch.get(name).is_buffer(t)} == expected


@pytest.mark.parametrize("architecture", [arch.UNKNOWN, *map(arch.get, arch.names())], ids=lambda a: a.name)
def test_buffers_of_any_model(architecture):
    for buffer in ("position_ids", "visual.position_ids", "betas", "posterior_mean_coef2", "model_ema.num_updates"):
        assert architecture.is_buffer(buffer)
    assert architecture.is_buffer("model.layers.3.self_attn.rotary_emb.inv_freq")
    for weight in ("logit_scale", "a.logit_scale", "cell.betas", "position_ids.weight", "xposition_ids", "a.decay"):
        assert not architecture.is_buffer(weight)


# --- detection ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WHOLE)
def test_whole_files_are_recognised_with_a_reason_in_one_line(name):
    architecture, reason = arch.detect(layouts.shapes(WHOLE[name]))
    assert architecture is arch.get(name)
    assert "\n" not in reason
    assert any(tensor in reason for tensor in WHOLE[name])


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        (layouts.SD1_UNET, "sd1"),
        (layouts.SD2_UNET, "sd2"),
        (layouts.SDXL_UNET, "sdxl"),
        (layouts.REFINER_UNET, "sdxl-refiner"),
        (layouts.FLUX_NETWORK, "flux"),
        (part(layouts.SD3, "diffuser"), "sd3"),
        (part(layouts.SD1, "clip_l"), "sd1"),
        (part(layouts.SD2, "clip_h"), "sd2"),
        (part(layouts.SDXL, "clip_g"), "sdxl"),
        (part(layouts.REFINER, "clip_g"), "sdxl-refiner"),
        (layouts.VAE16, "sd3"),
    ],
)
def test_one_part_is_enough_where_it_is_unlike_the_others(layout, name):
    assert detected(layout) == name


def test_a_vae_that_four_models_share_is_not_guessed_at():
    architecture, reason = arch.detect(layouts.shapes(layouts.VAE))
    assert architecture is arch.UNKNOWN
    assert reason == "its VAE fits sd1, sd2, sdxl and sdxl-refiner alike"


def test_the_context_tells_sd1_from_sd2():
    shapes = layouts.shapes(layouts.SD1_UNET)
    assert arch.detect(shapes | {CONTEXT: (320, 1024)})[0].name == "sd2"
    architecture, reason = arch.detect(shapes)
    assert architecture.name == "sd1"
    assert reason.endswith(f"{CONTEXT} is 320×768")


@pytest.mark.parametrize("channels", [8, 9])
def test_inpainting_and_pix2pix_are_still_sd1(channels):
    assert arch.detect(layouts.shapes(layouts.SD1) | {FIRST: (320, channels, 3, 3)})[0].name == "sd1"


def test_the_network_decides_over_a_foreign_text_encoder():
    assert detected(layouts.SD1_UNET | part(layouts.SD2, "clip_h")) == "sd1"


@pytest.mark.parametrize("name", [n for n in WHOLE if n != "llama"])
def test_the_same_names_at_other_widths_are_the_same_layout(name):
    small = {t: tuple(-(-n // 16) if n > 77 else n for n in s) for t, s in layouts.shapes(WHOLE[name]).items()}
    assert arch.detect(small)[0].name == name


def test_nai_text_encoder_alone_is_sd1():
    nai = layouts.under("cond_stage_model.transformer.", layouts.clip(768, 12, ids=True, model=""), "clip_l")
    assert detected(nai) == "sd1"


def test_sd_turbo_is_sd2():
    turbo = layouts.under("conditioner.embedders.0.model.", layouts.open_clip(1024, 24), "clip_h")
    assert detected(turbo) == "sd2"
    assert detected(layouts.SD2_UNET | turbo | layouts.VAE) == "sd2"


def test_video_diffusion_is_not_sd2():
    video = layouts.SD2_UNET | {f"{layouts.NETWORK}input_blocks.1.1.time_mixer.mix_factor": ("unet", (1,))}
    assert detected(video) == "unknown"


def test_relatives_of_flux_are_not_flux():
    refined = {t: e for t, e in layouts.FLUX_NETWORK.items() if not t.startswith("txt_in.")}
    unguided = {t: e for t, e in layouts.FLUX_NETWORK.items() if not t.startswith("vector_in.")}
    assert detected(refined) == detected(unguided) == "unknown"


@pytest.mark.parametrize(
    "layer",
    ["input_layernorm.weight", "self_attn.q_proj.weight"],
)
def test_generic_language_models(layer):
    architecture, _ = arch.detect({"model.embed_tokens.weight": (100, 8), f"model.layers.0.{layer}": (8, 8)})
    assert architecture.name == "llama"


@pytest.mark.parametrize(
    "shapes",
    [
        {"hidden.weight": (128, 64), "hidden.bias": (128,)},
        {"lora_unet_input_blocks_1_1_proj_in.lora_down.weight": (8, 320)},
        {"down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (320, 768)},
        {"encoder.conv_in.weight": (128, 3, 3, 3), "decoder.conv_in.weight": (512, 4, 3, 3)},
        {CONTEXT: (320,)},
        {CONTEXT: ()},
        {"": ()},
    ],
)
def test_nonsense_and_other_families_are_unknown(shapes):
    architecture, reason = arch.detect(shapes)
    assert architecture is arch.UNKNOWN
    assert min(shapes) in reason


def test_an_empty_header_is_unknown():
    assert arch.detect({}) == (arch.UNKNOWN, "there are no tensors")


# --- the registry -------------------------------------------------------------------------------------------------


def test_an_unknown_architecture_is_answered_with_the_nearest():
    with pytest.raises(UnknownName, match="no architecture is called SDXL-refine") as caught:
        arch.get("SDXL-refine")
    assert "sdxl-refiner" in caught.value.hint


def test_architectures_compare_hash_and_pickle():
    sdxl = arch.get("sdxl")
    copy = pickle.loads(pickle.dumps(sdxl))
    assert copy == sdxl
    assert hash(copy) == hash(sdxl)
    assert copy.component("v_pred") == "unet"
    assert sdxl not in {arch.get("sd1"), arch.UNKNOWN}


GOOD = {"title": "t", "components": {"a": ["a.*"]}, "detect": [{"part": "vae", "why": "w", "has": {"a.b": [-1, 4]}}]}


@pytest.mark.parametrize(
    "wrong",
    [
        {"component": {}},
        {"title": 3, "components": {"a": "a.*"}},
        {"groups": {"g": ["b"]}},
        {"groups": {"a": ["a"]}},
        {"buffers": ["a.*"]},
        {"detect": [{"part": "lamp", "why": "w", "has": {"a.b": "*"}}]},
        {"detect": [{"part": "vae", "why": "w", "has": {}}]},
        {"detect": [{"part": "vae", "why": "w", "has": {"a.b": ["x"]}}]},
        {"detect": [{"part": "vae", "has": {"a.b": "*"}}]},
    ],
)
def test_a_data_file_that_breaks_the_format_is_refused(wrong):
    parse("x", GOOD)
    with pytest.raises((ValueError, TypeError, KeyError)):
        parse("x", GOOD | wrong)


# --- cost ---------------------------------------------------------------------------------------------------------


def test_importing_brings_in_nothing_heavy():
    code = (
        "import sys; from mergeflow import arch; arch.detect({'a': (1,)});"
        "sys.exit(bool({'torch', 'numpy', 'pydantic'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
