"""Other tools' names of the same tensors: one to one, there and back, and never two tensors under one name."""

import hashlib

import arch_layouts as layouts
import pytest

from mergeflow import arch
from mergeflow.arch import Alias, canonical, to_diffusers
from mergeflow.arch.registry import parse

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP = "cond_stage_model.transformer.text_model."
SD1, SD2, SDXL, FLUX, SD3 = map(arch.get, ("sd1", "sd2", "sdxl", "flux", "sd3"))
WHOLE = {"sd1": layouts.SD1, "sd2": layouts.SD2, "sdxl": layouts.SDXL, "sdxl-refiner": layouts.REFINER}


def part(layout, *components):
    return {name: shape for name, (component, shape) in layout.items() if component in components}


def renamed(architecture, shapes):
    """The tensors under the names they have here."""
    aliases = canonical(architecture, shapes)
    found = dict(aliases.get(name, Alias(name, shape)) for name, shape in shapes.items())
    assert len(found) == len(shapes)
    return found


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("sd1", layouts.SD1 | layouts.ema(layouts.SD1) | layouts.SCHEDULE),
        ("sd2", layouts.SD2),
        ("sdxl", layouts.SDXL),
        ("sdxl-refiner", layouts.REFINER),
        ("flux", layouts.FLUX),
        ("sd3", layouts.SD3),
        ("llama", layouts.LLAMA),
    ],
)
def test_whole_files_are_called_as_they_should_be(name, layout):
    assert canonical(arch.get(name), layouts.shapes(layout)) == {}


def test_nothing_is_known_of_an_unknown_model():
    assert canonical(arch.UNKNOWN, layouts.shapes(layouts.SD1)) == to_diffusers(arch.UNKNOWN, {"a.b": (1,)}) == {}


# --- parts of whole files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "prefix", "components"),
    [
        ("sd1", UNET, ("unet",)),
        ("sd1", "model.", ("unet",)),
        ("sd1", VAE, ("vae",)),
        ("sd1", "cond_stage_model.transformer.", ("clip_l",)),
        ("sd1", CLIP, ("clip_l",)),
        ("sdxl", UNET, ("unet",)),
        ("sdxl", VAE, ("vae",)),
        ("sdxl-refiner", UNET, ("unet",)),
        ("sd2", VAE, ("vae",)),
    ],
)
def test_files_of_one_part_without_what_a_whole_file_puts_before(name, prefix, components):
    shapes = part(WHOLE[name], *components)
    bare = {tensor.removeprefix(prefix): shape for tensor, shape in shapes.items()}
    assert renamed(arch.get(name), bare) == shapes


def test_a_vae_under_the_name_of_its_folder():
    shapes = part(layouts.SDXL, "vae")
    assert renamed(SDXL, {"vae." + t.removeprefix(VAE): s for t, s in shapes.items()}) == shapes


def test_networks_and_encoders_of_flux_and_sd3():
    assert renamed(FLUX, layouts.shapes(layouts.FLUX_NETWORK)) == part(layouts.FLUX, "diffuser")
    bare = {t.removeprefix(UNET): s for t, s in part(layouts.SD3, "diffuser").items() if t.startswith(UNET)}
    assert set(renamed(SD3, bare)) == {t for t in part(layouts.SD3, "diffuser") if t.startswith(UNET)}
    for architecture, layout in ((FLUX, layouts.FLUX), (SD3, layouts.SD3)):
        t5 = part(layout, "t5")
        bare = {t.removeprefix("text_encoders.t5xxl.transformer."): s for t, s in t5.items()}
        assert renamed(architecture, bare) == t5
        vae = part(layout, "vae")
        prefix = "vae." if architecture is FLUX else VAE
        assert renamed(architecture, {t.removeprefix(prefix): s for t, s in vae.items()}) == vae


def test_nai_names_of_the_text_encoder():
    nai = layouts.shapes(layouts.under("cond_stage_model.transformer.", layouts.clip(768, 12, True, ""), "clip_l"))
    assert renamed(SD1, nai) == part(layouts.SD1, "clip_l")
    assert canonical(SD1, nai)["cond_stage_model.transformer.final_layer_norm.bias"] == (
        CLIP + "final_layer_norm.bias",
        (1,),
    )


def test_sd_turbo_names_of_the_text_encoder():
    turbo = layouts.shapes(layouts.under("conditioner.embedders.0.model.", layouts.open_clip(1024, 24), "clip_h"))
    assert renamed(SD2, turbo) == part(layouts.SD2, "clip_h")


def test_language_models_without_their_head():
    bare = {t.removeprefix("model."): s for t, (_, s) in layouts.LLAMA.items()}
    assert renamed(arch.get("llama"), bare) == layouts.shapes(layouts.LLAMA)


# --- diffusers ----------------------------------------------------------------------------------------------------


# Names of all tensors, ours and diffusers', as compared with its converters (diffusers 0.42.1).
@pytest.mark.parametrize(
    ("name", "tensors", "digest"),
    [
        ("sd1", 934, "11bf4b82aa13b0d4"),
        ("sd2", 934, "11bf4b82aa13b0d4"),
        ("sdxl", 1928, "8cc1afb8329f01b3"),
        ("sdxl-refiner", 1468, "b0eb523c0192cd44"),
    ],
)
def test_unet_and_vae_as_diffusers_converts_them(name, tensors, digest):
    found = to_diffusers(arch.get(name), part(WHOLE[name], "unet", "vae"))
    lines = sorted(f"{ours} {theirs.name}" for ours, theirs in found.items())
    assert len(lines) == tensors
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == digest


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("folder", [True, False])
def test_diffusers_names_there_and_back(name, folder):
    architecture = arch.get(name)
    for component in ("unet", "vae"):
        shapes = part(WHOLE[name], component)
        theirs = dict(to_diffusers(architecture, shapes).values())
        assert len(theirs) == len(shapes)
        if not folder:
            theirs = {t.removeprefix(f"{component}."): s for t, s in theirs.items()}
        assert renamed(architecture, theirs) == shapes


@pytest.mark.parametrize(
    ("name", "theirs", "ours"),
    [
        ("sd1", "down_blocks.0.downsamplers.0.conv.weight", "input_blocks.3.0.op.weight"),
        ("sd1", "up_blocks.0.upsamplers.0.conv.weight", "output_blocks.2.1.conv.weight"),
        ("sd1", "up_blocks.1.upsamplers.0.conv.weight", "output_blocks.5.2.conv.weight"),
        ("sd1", "mid_block.resnets.1.time_emb_proj.bias", "middle_block.2.emb_layers.1.bias"),
        ("sdxl", "up_blocks.0.upsamplers.0.conv.weight", "output_blocks.2.2.conv.weight"),
        ("sdxl", "add_embedding.linear_2.weight", "label_emb.0.2.weight"),
        ("sdxl", "down_blocks.1.attentions.0.proj_in.weight", "input_blocks.4.1.proj_in.weight"),
    ],
)
def test_well_known_pairs(name, theirs, ours):
    assert canonical(arch.get(name), {theirs: (2, 2)}) == {theirs: (UNET + ours, (2, 2))}


@pytest.mark.parametrize("theirs", ["to_q", "query"])
@pytest.mark.parametrize("prefix", ["", "vae."])
def test_the_attention_of_a_vae_gets_the_shape_of_a_convolution(theirs, prefix):
    name = f"{prefix}encoder.mid_block.attentions.0.{theirs}"
    shapes = {f"{name}.weight": (512, 512), f"{name}.bias": (512,)}
    ours = f"{VAE}encoder.mid.attn_1.q"
    assert canonical(SD1, shapes) == {
        f"{name}.weight": Alias(f"{ours}.weight", (512, 512, 1, 1)),
        f"{name}.bias": Alias(f"{ours}.bias", (512,)),
    }
    assert to_diffusers(SD1, {f"{ours}.weight": (512, 512, 1, 1)})[f"{ours}.weight"] == (
        "vae.encoder.mid_block.attentions.0.to_q.weight",
        (512, 512),
    )


def test_a_name_may_be_right_and_the_shape_not():
    name = f"{VAE}decoder.mid.attn_1.proj_out.weight"
    assert canonical(SD1, {name: (512, 512)}) == {name: (name, (512, 512, 1, 1))}
    assert canonical(SD1, {name: (512, 512, 1, 1)}) == {}


@pytest.mark.parametrize("model", ["text_model.", ""], ids=["transformers 4", "transformers 5"])
@pytest.mark.parametrize(
    ("name", "prefix", "ours"),
    [
        ("sd1", "", "cond_stage_model.transformer."),
        ("sd1", "text_encoder.", "cond_stage_model.transformer."),
        ("sdxl", "text_encoder.", "conditioner.embedders.0.transformer."),
        ("flux", "", "text_encoders.clip_l.transformer."),
        ("sd3", "text_encoder.", "text_encoders.clip_l.transformer."),
        ("sd3", "text_encoder_2.", "text_encoders.clip_g.transformer."),
    ],
)
def test_clip_as_transformers_saves_it(model, name, prefix, ours):
    theirs = layouts.shapes(layouts.under(prefix, layouts.clip(768, 12, ids=False, model=model), None))
    expected = layouts.shapes(layouts.under(ours, layouts.clip(768, 12, ids=False), None))
    assert renamed(arch.get(name), theirs) == expected


def test_what_has_no_counterpart_of_its_own_keeps_its_name():
    split = {f"text_encoder_2.text_model.encoder.layers.0.self_attn.{x}_proj.weight": (8, 8) for x in "qkv"}
    assert canonical(SDXL, split) == {}
    assert to_diffusers(SDXL, part(layouts.SDXL, "clip_g")) == {}
    assert to_diffusers(FLUX, part(layouts.FLUX, "diffuser")) == {}


# --- no two under one name ----------------------------------------------------------------------------------------


def test_a_tensor_that_is_there_under_its_name_already_is_not_replaced():
    shapes = {"encoder.conv_in.weight": (1,), f"{VAE}encoder.conv_in.weight": (1,), "decoder.conv_in.weight": (1,)}
    assert list(canonical(SD1, shapes)) == ["decoder.conv_in.weight"]


def test_of_two_other_names_for_one_tensor_the_first_has_it():
    shapes = {"vae.encoder.conv_in.weight": (1,), "encoder.conv_in.weight": (1,)}
    assert list(canonical(SD1, shapes)) == ["vae.encoder.conv_in.weight"]


def test_fifty_thousand_tensors():
    shapes = {f"vae.decoder.up_blocks.{i}.resnets.{i}.norm1.weight": (1,) for i in range(50_000)}
    assert len(canonical(SD1, shapes)) == 50_000


# --- recognising --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WHOLE)
def test_an_unet_of_diffusers_is_recognised(name):
    shapes = part(WHOLE[name], "unet")
    theirs = {a.name.removeprefix("unet."): a.shape for a in to_diffusers(arch.get(name), shapes).values()}
    assert arch.detect(theirs)[0] is arch.UNKNOWN
    architecture, reason, aliases = arch.recognise(theirs)
    assert architecture is arch.get(name)
    assert reason.startswith("under names of other tools, the UNet attends")
    assert {a.name for a in aliases.values()} == set(shapes)


def test_a_bare_network_is_recognised():
    assert arch.recognise({t.removeprefix(UNET): s for t, s in part(layouts.SD1, "unet").items()})[0] is SD1


@pytest.mark.parametrize("before", ["", VAE, "vae."])
@pytest.mark.parametrize("whole", [layouts.SD1, layouts.SD3, layouts.FLUX])
def test_a_vae_that_many_architectures_share_is_told_by_itself(before, whole):
    own = part(whole, "vae")
    bare = {t.removeprefix(VAE).removeprefix("vae."): s for t, s in own.items()}
    junk = {"loss.discriminator.main.0.weight": (1,), "model_ema.decay": (), "model_ema.encoderconv_inweight": (1,)}
    architecture, reason, aliases = arch.recognise({before + t: s for t, s in bare.items()} | junk)
    assert architecture is arch.get("vae")
    assert "both halves of an autoencoder" in reason
    assert aliases == ({before + t: (t, s) for t, s in bare.items()} if before else {})


def test_a_vae_of_diffusers_is_told_by_itself():
    own = {t.removeprefix(VAE): s for t, s in part(layouts.SD1, "vae").items()}
    theirs = {a.name.removeprefix("vae."): a.shape for a in to_diffusers(arch.get("vae"), own).values()}
    architecture, _, aliases = arch.recognise(theirs)
    assert architecture is arch.get("vae")
    assert {aliases[t].name if t in aliases else t for t in theirs} == set(own)


def test_a_vae_beside_something_unknown_is_not_guessed_at():
    shapes = layouts.shapes(layouts.VAE) | {"network.weight": (1,)}
    assert arch.recognise(shapes) == (arch.UNKNOWN, "its VAE fits sd1, sd2, sdxl and sdxl-refiner alike", {})


def test_what_detection_knows_is_recognised_alike():
    whole = layouts.shapes(layouts.SD1)
    assert arch.recognise(whole) == (*arch.detect(whole), {})
    assert arch.recognise({"a.b": (1,)}) == (*arch.detect({"a.b": (1,)}), {})
    assert arch.recognise({}) == (*arch.detect({}), {})


# --- data files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"aliases": {"a.": 1}}, 'aliases."a.": expected a text'),
        ({"aliases": ["a."]}, "aliases: expected a table"),
        ({"diffusers": {"unet": "model."}}, "diffusers.attention: it is missing"),
        ({"diffusers": {"unet": "model.", "attention": [1]}}, "diffusers.attention: expected true or false"),
        ({"diffusers": {"folders": {"a": 1}}}, 'diffusers.folders."a": expected a text'),
        ({"diffusers": {"clip": "a."}}, "diffusers.clip means nothing"),
    ],
)
def test_aliases_that_break_the_format_are_refused_by_field(data, field):
    with pytest.raises(ValueError) as caught:
        parse("x", {"title": "t", "components": {}} | data)
    assert field in str(caught.value)
