"""Every tensor of every layout is in exactly one block, and selectors find their tensors."""

import pickle  # noqa: TID251 (an architecture travels to worker processes)
from collections import Counter

import arch_layouts as layouts
import pytest

from mergeflow import arch
from mergeflow.arch import Rank, select
from mergeflow.arch.registry import parse
from mergeflow.errors import Place, RecipeError, UnknownName

UNET = "model.diffusion_model."
FULL_SD1 = layouts.SD1 | layouts.ema(layouts.SD1) | layouts.SCHEDULE
NETWORKS = {
    "sd1": FULL_SD1,
    "sd2": layouts.SD2,
    "sdxl": layouts.SDXL,
    "sdxl-refiner": layouts.REFINER,
    "sd3": layouts.SD3,
    "flux": layouts.FLUX,
}
SD1, SDXL, FLUX, LLAMA = map(arch.get, ("sd1", "sdxl", "flux", "llama"))
NAMES = list(layouts.SD1)


def chosen(architecture, selector, layout):
    names = list(layout)
    rank, found = select(architecture, selector, names)
    assert found == sorted(set(found))
    return rank, [names[i] for i in found]


# --- blocks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_every_tensor_is_in_one_block_and_every_block_has_tensors(name):
    architecture, layout = arch.get(name), NETWORKS[name]
    assert {architecture.block(t) for t in layout} == set(architecture.blocks)
    assert arch.blocks_of(architecture, list(layout)) == architecture.blocks


@pytest.mark.parametrize("name", NETWORKS)
def test_blocks_one_by_one_and_base_choose_every_tensor_once(name):
    architecture, names = arch.get(name), list(NETWORKS[name])
    inside = [b for b in arch.blocks_of(architecture, names) if not architecture.layout.is_outside(b)]
    chosen = [i for block in ("BASE", *inside) for i in select(architecture, block, names)[1]]
    assert sorted(chosen) == list(range(len(names)))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_and_nothing_else_is_in_its_blocks(name):
    architecture = arch.get(name)
    for tensor, (component, _) in NETWORKS[name].items():
        network = component in ("unet", "diffuser") and tensor != "model.model_sampling.sigmas"
        assert (not architecture.layout.is_outside(architecture.block(tensor))) == network, tensor


@pytest.mark.parametrize(
    ("name", "count", "groups"),
    [
        ("sd1", 26, ("IN", "M", "OUT")),
        ("sd2", 26, ("IN", "M", "OUT")),
        ("sdxl", 21, ("IN", "M", "OUT")),
        ("sdxl-refiner", 26, ("IN", "M", "OUT")),
        ("flux", 62, ("D", "S")),
        ("sd3", 27, ("J",)),
        ("llama", 1, ("layers",)),
    ],
)
def test_the_names_of_the_blocks(name, count, groups):
    architecture = arch.get(name)
    assert len(architecture.blocks) == count
    assert architecture.layout.groups == groups
    assert architecture.blocks[0] == "BASE"


@pytest.mark.parametrize(
    ("name", "tensor", "block"),
    [
        ("sd1", UNET + "time_embed.0.weight", "IN00"),
        ("sd1", UNET + "input_blocks.11.0.in_layers.0.weight", "IN11"),
        ("sd1", UNET + "middle_block.1.transformer_blocks.0.attn1.to_out.0.weight", "M00"),
        ("sd1", UNET + "out.2.bias", "OUT11"),
        ("sd1", "first_stage_model.decoder.conv_out.weight", "BASE"),
        ("sd1", "model_ema.diffusion_modelinput_blocks00bias", "BASE"),
        ("sd1", "cond_stage_model.transformer.text_model.encoder.layers.3.mlp.fc1.bias", "BASE"),
        ("sdxl", UNET + "label_emb.0.0.weight", "IN00"),
        ("sdxl", UNET + "out.0.weight", "OUT08"),
        ("sdxl", "first_stage_model.decoder.conv_out.weight", "VAE"),
        ("sdxl", "v_pred", "BASE"),
        ("flux", "guidance_in.in_layer.weight", "IN"),
        ("flux", "double_blocks.18.txt_mlp.0.bias", "D18"),
        ("flux", UNET + "single_blocks.7.norm.key_norm.scale", "S07"),
        ("flux", UNET + "final_layer.linear.bias", "OUT"),
        ("flux", "text_encoders.t5xxl.transformer.shared.weight", "T5"),
        ("flux", "vae.decoder.conv_out.weight", "BASE"),
        ("sd3", UNET + "pos_embed", "IN"),
        ("sd3", UNET + "joint_blocks.37.x_block.attn.qkv.weight", "J37"),
        ("llama", "model.layers.15.mlp.up_proj.weight", "layers.15"),
        ("llama", "lm_head.weight", "BASE"),
        ("sd1", UNET + "out", "BASE"),
        ("sd1", "", "BASE"),
    ],
)
def test_where_the_reference_puts_a_tensor(name, tensor, block):
    assert arch.get(name).block(tensor) == block


def test_published_sizes_of_blocks():
    blocks = Counter(SDXL.block(t) for t in layouts.SDXL_UNET)
    assert (blocks["IN07"], blocks["M00"], blocks["OUT02"], blocks["IN03"]) == (218, 226, 220, 2)


def test_without_knowledge_there_are_no_blocks():
    assert arch.UNKNOWN.blocks == arch.UNKNOWN.layout.groups == ()
    assert arch.UNKNOWN.block("model.layers.0.weight") is None


def test_the_layers_of_a_language_model_are_in_order_of_their_numbers():
    assert arch.blocks_of(LLAMA, list(layouts.LLAMA)) == ("BASE", *(f"layers.{i}" for i in range(32)))


def test_blocks_survive_pickling():
    copy = pickle.loads(pickle.dumps(SDXL))
    assert copy == SDXL
    assert copy.block(UNET + "out.0.weight") == "OUT08"


# --- selectors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selector", "rank", "fits"),
    [
        ("BASE", Rank.BASE, lambda t: not t.startswith(UNET)),
        ("text_encoder", Rank.COMPONENT_GROUP, lambda t: t.startswith("cond_stage_model.")),
        ("unet", Rank.COMPONENT, lambda t: t.startswith(UNET)),
        ("vae", Rank.COMPONENT, lambda t: t.startswith("first_stage_model.")),
        ("OUT", Rank.GROUP, lambda t: t.startswith((UNET + "output_blocks.", UNET + "out."))),
        ("M", Rank.GROUP, lambda t: t.startswith(UNET + "middle_block.")),
        ("M00", Rank.BLOCK, lambda t: t.startswith(UNET + "middle_block.")),
        ("IN05", Rank.BLOCK, lambda t: t.startswith(UNET + "input_blocks.5.")),
        ("IN05-IN06", Rank.RANGE, lambda t: t.startswith((UNET + "input_blocks.5.", UNET + "input_blocks.6."))),
        ("IN05-06", Rank.RANGE, lambda t: t.startswith((UNET + "input_blocks.5.", UNET + "input_blocks.6."))),
        (
            "IN11-OUT00",
            Rank.RANGE,
            lambda t: t.startswith(tuple(UNET + p for p in ("input_blocks.11.", "middle", "output_blocks.0."))),
        ),
        ("*.attn1.*", Rank.GLOB, lambda t: ".attn1." in t),
        ("/attn[12].to_k/", Rank.GLOB, lambda t: ".attn1.to_k" in t or ".attn2.to_k" in t),
        (UNET + "out.2.bias", Rank.EXACT, lambda t: t == UNET + "out.2.bias"),
        ("OUT *.attn1.*", Rank.WITHIN + Rank.GROUP, lambda t: ".output_blocks." in t and ".attn1." in t),
        (
            "OUT03-OUT04 /attn1/",
            Rank.WITHIN + Rank.RANGE,
            lambda t: t.startswith((UNET + "output_blocks.3.", UNET + "output_blocks.4.")) and "attn1" in t,
        ),
        ("text_encoder  *.mlp.*", Rank.WITHIN + Rank.COMPONENT_GROUP, lambda t: t.startswith("cond") and ".mlp." in t),
        (f"OUT11 {UNET}out.2.bias", Rank.WITHIN + Rank.BLOCK, lambda t: t == UNET + "out.2.bias"),
        (" vae ", Rank.COMPONENT, lambda t: t.startswith("first_stage_model.")),
        ("*nothing*", Rank.GLOB, lambda t: False),
        ("ema", Rank.COMPONENT, lambda t: False),
    ],
)
def test_what_a_selector_selects(selector, rank, fits):
    assert chosen(SD1, selector, layouts.SD1) == (rank, [t for t in NAMES if fits(t)])


def test_ranks_are_from_wide_to_narrow():
    wide_to_narrow = [
        "BASE", "text_encoder", "vae", "IN", "IN00-IN05", "IN05", "*.bias", "vae *.bias", "IN *.bias",
        "IN00-IN05 *.bias", "IN05 *.bias", UNET + "out.2.bias",
    ]  # fmt: skip
    ranks = [select(SD1, selector, NAMES)[0] for selector in wide_to_narrow]
    assert ranks == sorted(set(ranks))
    assert Rank.DEFAULT < Rank.BASE < Rank.LISTED < Rank.COMPONENT_GROUP


def test_groups_and_blocks_of_flux_and_language_models():
    assert len(chosen(FLUX, "D00-D18", layouts.FLUX)[1]) == len(chosen(FLUX, "D", layouts.FLUX)[1]) == 19 * 24
    assert chosen(FLUX, "IN", layouts.FLUX)[0] == Rank.BLOCK
    assert chosen(FLUX, "T5", layouts.FLUX) == (Rank.COMPONENT, chosen(FLUX, "t5", layouts.FLUX)[1])
    assert len(chosen(LLAMA, "layers.0-15", layouts.LLAMA)[1]) == 16 * 9
    assert len(chosen(LLAMA, "layers.7-layers.8", layouts.LLAMA)[1]) == 2 * 9
    assert chosen(LLAMA, "layers", layouts.LLAMA)[0] == Rank.GROUP
    assert len(chosen(LLAMA, "layers.31", layouts.LLAMA)[1]) == 9


def test_base_is_all_that_lies_outside_the_network_whatever_lists_call_it():
    for architecture, layout in ((SDXL, layouts.SDXL), (FLUX, layouts.FLUX)):
        rank, found = chosen(architecture, "BASE", layout)
        assert found == [t for t, (component, _) in layout.items() if component not in ("unet", "diffuser")]
        assert rank < select(architecture, "vae", list(layout))[0]
    assert chosen(SDXL, "VAE", layouts.SDXL) == chosen(SDXL, "vae", layouts.SDXL)


@pytest.mark.parametrize(
    ("architecture", "layout", "selector", "nearest"),
    [
        (SD1, layouts.SD1, "IN5", "IN05"),
        (SD1, layouts.SD1, "in05", "IN05"),
        (SD1, layouts.SD1, "IN12", "IN11"),
        (SD1, layouts.SD1, "clip", "clip_l"),
        (SD1, layouts.SD1, "IN00-IN12", "IN11"),
        (SD1, layouts.SD1, "OUTS *.attn1.*", "OUT"),
        (SD1, layouts.SD1, UNET + "out.3.bias", UNET + "out.2.bias"),
        (SDXL, layouts.SDXL, "IN09", "IN0"),
        (LLAMA, layouts.LLAMA, "layers.32", "layers.3"),
        (LLAMA, layouts.LLAMA, "layers.0-40", "layers.0"),
        (arch.UNKNOWN, {"hidden.weight": None}, "hidden.weights", "hidden.weight"),
    ],
)
def test_an_unknown_selector_is_answered_with_the_nearest(architecture, layout, selector, nearest):
    place = Place("mix.yaml", 3, 7)
    with pytest.raises(UnknownName) as caught:
        select(architecture, selector, list(layout), place=place)
    assert nearest in caught.value.hint
    assert caught.value.place == place


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        ("/attn[/", "not a regular expression"),
        ("IN05-IN03", "runs backwards"),
        ("OUT00-IN03", "runs backwards"),
        ("BASE-IN03", "no block or component"),
        ("IN00-", "no block or component"),
        ("", "no block or component"),
    ],
)
def test_selectors_that_cannot_be_read(selector, message):
    with pytest.raises(RecipeError, match=message):
        select(SD1, selector, NAMES)


def test_models_of_unknown_architecture_have_patterns_and_names():
    assert chosen(arch.UNKNOWN, "*.bias", layouts.SD1)[0] == Rank.GLOB
    assert chosen(arch.UNKNOWN, "BASE", {"BASE": None}) == (Rank.EXACT, ["BASE"])


def test_fifty_thousand_tensors_and_a_full_profile():
    names = [f"model.layers.{i}.mlp.experts.{j}.weight" for i in range(50) for j in range(1000)]
    for i in range(50):
        assert len(select(LLAMA, f"layers.{i}", names)[1]) == 1000


# --- data files ---------------------------------------------------------------------------------------------------

GOOD = {"order": ["BASE", "IN00-IN02", "L#"], "tensors": {"a.#.*": "IN#", "b.#.*": "L#", "c": "IN00"}}


def blocks(**changes):
    return parse("x", {"title": "t", "components": {}, "blocks": GOOD | changes})[0]


def test_a_number_in_a_name_need_not_be_the_blocks():
    found = blocks(tensors={"middle.#.x": "IN02", "a.#.*": "IN#"})
    assert [found.block(t) for t in ("middle.7.x", "middle.x", "a.1.b")] == ["IN02", "BASE", "IN01"]


def test_numbers_beyond_the_usual_ones_are_blocks_of_their_own():
    found = blocks()
    assert found.blocks == ("BASE", "IN00", "IN01", "IN02")
    assert [found.block(t) for t in ("a.1.x", "a.12.x", "b.3.x", "a.01.x", "c", "c.d", "a.1")] == [
        "IN01", "IN12", "L3", "BASE", "IN00", "BASE", "BASE",
    ]  # fmt: skip
    assert arch.blocks_of(found, ["b.10.x", "a.12.x", "b.9.x", "a.2.x", "z"]) == ("BASE", "IN02", "IN12", "L9", "L10")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"order": ["IN00-IN02"]}, "blocks.order: BASE comes first"),
        ({"order": ["BASE", "IN02-IN00"]}, "blocks.order: IN02-IN00 is no span"),
        ({"order": ["BASE", "IN00-OUT02"]}, "blocks.order: IN00-OUT02 is no span"),
        ({"order": ["BASE", "IN00-IN02", "IN01"]}, "blocks.order: a block is named twice"),
        ({"order": "BASE"}, "blocks.order: expected a list"),
        ({"outside": ["VAE"]}, "blocks.outside: VAE is not"),
        ({"tensors": {"a.#.*": "OUT#"}}, 'blocks.tensors."a.#.*": OUT# is not'),
        ({"tensors": {"a.*": "IN#"}}, 'blocks.tensors."a.*": one #'),
        ({"tensors": {"a.#.#.*": "IN#"}}, 'blocks.tensors."a.#.#.*": one #'),
        ({"tensors": {"a.*": 3}}, 'blocks.tensors."a.*": expected a text'),
        ({"lists": [{"names": ["IN00", "IN07"]}]}, "blocks.lists 1.names: IN07 is not"),
        ({"lists": [{"names": ["IN00"], "rest": "x"}]}, "blocks.lists 1.rest: expected a number"),
        ({"lists": {"names": []}}, "blocks.lists: expected tables"),
        ({"other": 1}, "blocks.other means nothing"),
    ],
)
def test_blocks_that_break_the_format_are_refused_by_field(changes, field):
    with pytest.raises(ValueError) as caught:
        blocks(**changes)
    assert field in str(caught.value)
