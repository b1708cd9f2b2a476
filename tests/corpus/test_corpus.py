"""Published merges: those that this version can express are planned, all others are refused with a clear sentence."""

from __future__ import annotations

import re
import shutil
import struct
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import pytest
from support.tiny_models import SD1_BLOCKS, SDXL_BLOCKS, settings, write_model, write_sources

from mergeflow import Project
from mergeflow.errors import MergeflowError
from mergeflow.plan.plans import Plan
from mergeflow.recipe import load

HERE = Path(__file__).parent
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (HERE / "README.md").read_text(encoding="utf-8").splitlines()
    if re.match(r"\| \d\d \|", line)
]
LISTED = {column: [name for row in ROWS for name in row[column].split()] for column in (2, 3)}


def raised(s: str) -> str:
    """anything + (nai − sfw)·s"""
    return f"1·anything + {s}·nai − {s}·sfw" if s != "0" else "1·anything"


def lewd(base: str, m: str, g: str) -> str:
    """base + (nai − sfw)·m + (gape − nai)·g, the largest share first, then by name."""
    shares = {base: Fraction(1), "nai": Fraction(m) - Fraction(g), "sfw": -Fraction(m), "gape": Fraction(g)}
    terms = sorted(((share, name) for name, share in shares.items() if share), key=lambda t: (-t[0], t[1]))
    text = " ".join(f"{'−' if share < 0 else '+'} {float(abs(share)):g}·{name}" for share, name in terms)
    return text.removeprefix("+ ")


DIFFERENCE = {"build/anything-gape.safetensors": "1·anything + 1·gape − 1·nai"}
ORDER = "1·a + 1·d − 1·c"
ABYSS = {  # where k is 0, which is where most tensors are
    "build/AbyssOrangeMix_base.safetensors": "1·anything",
    "build/AbyssOrangeMix_Night.safetensors": "1·anything + 0.3·nai − 0.3·sfw",
    "build/AbyssOrangeMix_half.safetensors": "1·anything + 0.5·gape − 0.2·nai − 0.3·sfw",
    "build/AbyssOrangeMix.safetensors": "1·anything + 1·gape − 0.3·sfw − 0.7·nai",
}
PLANS: Mapping[str, Mapping[str, str]] = {
    "00a": {"mix.safetensors": "1·a + 0.3·b − 0.3·c"},
    "01a": DIFFERENCE,
    "01c": DIFFERENCE,
    "02a": {"build/anything-lewd-gape.safetensors": "1·anything + 1·gape − 0.3·sfw − 0.7·nai"},
    "03a": {"build/one.safetensors": ORDER, "build/two.safetensors": ORDER},
    "03b": {"build/one.safetensors": ORDER},
    "04a": {f"build/any-nai-{s}.safetensors": raised(s) for s in ("0", "0.25", "0.5", "0.75", "1")},
    "04c": {f"build/any-nai-{float(s):.2f}.safetensors": raised(s) for s in ("0", "0.25", "0.5", "0.75", "1")},
    "05a": {"build/jnva109.safetensors": "0.5·insta + 0.5·wd13"},
    "06b": {f"build/柚子バジル-true-{way}cubic.safetensors": "1·柚子" for way in ("", "reverse-")},
    "06c": {f"build/柚子バジル-true-{way}cubic.safetensors": "1·柚子" for way in ("", "reverse-")},
    "07a": {"build/gape-any03.safetensors": "0.7·gape + 0.3·anything + 0.075·nai − 0.075·sfw"},
    "08a": {"build/anything-v4.5-inpainting.safetensors": "1·any + 1·inpaint − 1·sd15"},
    "09a": {
        f"build/any-m{m}-g{g}.safetensors": lewd("any", m, g)
        for m in ("0.1", "0.2", "0.3")
        for g in ("0.1", "0.3", "1")
    },
    "11a": {"build/Elysium_Anime_V3-fixed.safetensors": "1·elysium"},
    "13a": ABYSS,
    "13d": ABYSS,
    "15a": {
        f"build/{name}OrangeMix-{g}.safetensors": lewd(base, "0.3", g)
        for name, base in (("Blood", "anything"), ("Ely", "elysium"), ("Elder", "everything"))
        for g in ("0.5", "1")
    },
    "19b": {"Voidlike.safetensors": "0.5·voidbrush + 0.25·ametrine + 0.25·toonyou"},
    "25a": {"osukini.safetensors": "0.5·7th_xl + 0.5·turquoise"},
    "26a": {
        "build/fluffymix.safetensors": (
            "1.8·train_difference(1·fluffyrock − 1·sd15, 1·fluffyrock − 1·mix526) + 1·mix526"
        )
    },
    "27c": {"build/schnell-dev.safetensors": "1·schnell"},  # of most tensors; see below
    "29a": {
        "build/sdxl-turbo-mario.safetensors": "100/29·dare_drop(1·turbo − 1·base, density=0.13, stream=0, seed=0) "
        "+ 1·base"
    },
    "30a": {
        f"AOM2_{label}_{w}0.safetensors": f"0.{10 - int(w)}·aom2 + 0.{w}·{model}"
        for label, model in (
            ("7th", "anime7"),
            ("elysium", "elysium"),
            ("pastel", "pastel"),
            ("cf2", "counterfeit"),
            ("silicon", "silicon"),
        )
        for w in "34"
    },
    "34a": {"build/coder-7b.safetensors": "0.4·magicoder + 0.2·glaive + 0.2·openmath + 0.2·xwin"},
    "39a": {"build/soup.safetensors": " + ".join(f"0.125·e{i}" for i in range(1, 9))},
    "39b": {"build/soup.safetensors": " + ".join(f"0.125·runs[{i}]" for i in range(8))},
    "40c": {"build/real-nai-te.safetensors": "1·real", "build/real-half-te.safetensors": "1·real"},
    "42a": {
        f"build/ab-{label}.safetensors": form
        for label, form in {
            "flat30": "0.7·a + 0.3·b",
            "no-te": "0.7·a + 0.3·b",
            "only-out": "1·a",
            "out04": "1·a",
            "out05": "1·a",
            "out06": "1·a",
            "attn": "0.7·a + 0.3·b",
            "soft": "1·a",
        }.items()
    },
    "46a": {"build/ad3-1-01.safetensors": "0.5·a + 0.5·b"},
    "47b": {"build/each.safetensors": "0.8·a + 0.3·b"},
}
WHOLE = dict.fromkeys(("06b", "06c", "13a", "13d", "19b", "42a"), SD1_BLOCKS) | dict.fromkeys(("25a",), SDXL_BLOCKS)
PRIMARIES = {
    "07a": "gape",
    "08a": "inpaint",
    "13a": "anything",
    "13d": "anything",
    "15a": "anything elysium everything",
    "19b": "ametrine",
    "27c": "schnell",
    "34a": "lwm",
    "39b": "runs[0]",
}

LATER = "is not in this version of mergeflow"
LORA = f"kind: lora {LATER}"
HASH = "is not here, and no file in the model folders has the sha256"  # as the files are not part of the tests
HUB = f"a whole repository of Hugging Face (hf:) {LATER}"
REFUSED: Mapping[str, tuple[str, str, str]] = {  # line:column, what is said, what is proposed
    "01b": ("7:44", 'Anything-V3.0 reads as "Anything" minus "V3.0"', "quote it: 'Anything-V3.0'"),
    "04b": ("9:3", "a key is one word or text", "quote a key that begins with {"),
    "06a": ("6:6", "no source, param or step is called TRUE_CUBIC_HERMITE", "{ preset: TRUE_CUBIC_HERMITE }"),
    "08b": (
        "7:46",
        "inpaint has 9 input channels, the first model (any) has 4: the result could not inpaint",
        "inpaint + (any - sd15)",
    ),
    "10a": ("6:26", "vae is not an option of a step", "replace: { vae: a_model }"),
    "10b": ("7:61", "vae is not an option of an output", "replace: { vae: a_model }"),
    "12a": ("4:64", LORA, ""),
    "12b": ("5:64", LORA, ""),
    "13b": ("4:6", "a list of numbers by block is an mbw: of a profile", 'write { mbw: "1,0.9,…", BASE: 0 }'),
    "13c": ("4:3", HASH, "list the file's folder in MERGEFLOW_MODELS"),
    "14a": ("5:3", HASH, "list the file's folder in MERGEFLOW_MODELS"),
    "15b": ("9:1", f"functions: {LATER}", "in a step"),
    "16a": ("7:43", LORA, ""),
    "17a": ("6:57", LORA, ""),
    "18a": ("17:35", "vae is not an option of a step", "replace: { vae: a_model }"),
    "19a": ("4:39", "a weight (@) stands in a list or an argument only", "linear([a @ 0.7, b @ 0.3])"),
    "20a": ("7:54", LORA, ""),
    "21a": ("7:57", LORA, ""),
    "22a": ("9:57", LORA, ""),
    "23a": ("11:7", "no method is called clamped_add_opposite", ""),
    "24a": ("10:49", LORA, ""),
    "27a": ("6:16", "'*' and '*double_blocks.*' both say what model.diffusion_model.double_blocks.0.img_attn", ""),
    "27b": ("17:5", "clip_l is not an option of an output", "replace: { clip_l: a_model }"),
    "28a": ("10:13", "no method is called extract_lora", ""),
    "31a": ("4:18", "YAML reads * and & at the beginning of a text as its own", "quote it"),
    "31b": ("4:7", HUB, "name a file of it, hf:OpenPipe/mistral-ft-optimized-1218/FILE"),
    "32a": ("4:10", HUB, ""),
    "33a": ("4:8", HUB, ""),
    "34b": ("10:3", f"an output that is a folder {LATER}", "with shard_size: it becomes several"),
    "35a": ("2:18", HUB, ""),
    "35b": ("4:9", HUB, ""),
    "36a": ("4:6", HUB, ""),
    "37a": ("9:30", "layer slices like [0:16] are not in this version of mergeflow", ""),
    "38a": ("17:15", f"density: for one model {LATER}", ""),
    "40a": ("4:26", "text_encoder is not an option of a step", "replace: { text_encoder: a_model }"),
    "40b": ("4:48", "text_encoder is not an option of an output", "replace: { text_encoder: a_model }"),
    "41a": ("10:23", "vae is not an option of a step", "replace: { vae: a_model }"),
    "41b": ("13:3", "vae is not an option of an output", "replace: { vae: a_model }"),
    "43a": ("16:85", "vae is not an option of an output", "replace: { vae: a_model }"),
    "44a": ("2:11", "there is no recipe", ""),
    "44b": ("3:3", "there is no recipe", ""),
    "45a": ("10:57", f"an expected sha256 of an output {LATER}", "the lock file records"),
    "47a": ("5:35", "add up to 1.1; a model needs 1, a difference 0", "normalize=false"),
}


def plan(name: str, folder: Path) -> Plan:
    """The plan of a recipe, copied into `folder`, over tiny models at the places that it names."""
    recipe = folder / f"{name}.yaml"
    shutil.copy(HERE / "recipes" / recipe.name, recipe)
    with Project(load(recipe), settings(folder)) as project:
        write_sources(project.bound, WHOLE.get(name))
        return project.plan()


def test_the_table_lists_every_merge_and_every_file_once() -> None:
    assert [row[0] for row in ROWS] == [f"{n:02}" for n in range(48)]
    assert sorted(LISTED[2] + LISTED[3]) == sorted(path.stem for path in (HERE / "recipes").glob("*.yaml"))
    assert LISTED[2] == list(PLANS)
    assert LISTED[3] == list(REFUSED)
    for row in ROWS:
        assert all(name.startswith(row[0]) for name in (row[2] + " " + row[3]).split())
        assert bool(row[3]) == bool(row[4]), f"{row[0]}: what is refused has a reason"


@pytest.mark.parametrize("name", PLANS)
def test_the_normal_forms_are_those_of_the_merge(name: str, tmp_path: Path) -> None:
    planned = plan(name, tmp_path)
    assert {o.path: o.snapshot.form for o in planned.outputs} == PLANS[name]
    for output in planned.outputs:
        first = PRIMARIES.get(name, next(iter(planned.facts.values())).name)
        assert planned.facts[output.resolved.primary].name in first.split()
        assert output.build
        assert output.warnings == ()


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_built_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    where, message, hint = REFUSED[name]
    with pytest.raises(MergeflowError) as caught:
        plan(name, tmp_path)
    error = caught.value
    assert message in error.message
    assert hint in error.hint
    assert str(error.place) == f"{tmp_path / name}.yaml:{where}"
    assert error.place is not None
    assert error.place.text
    assert error.exit_code in (2, 4)
    assert len(str(error).splitlines()) <= 3


def test_two_orders_of_steps_are_one_file(tmp_path: Path) -> None:
    """03: both outputs have one key, and so has every tensor in them."""
    one, two = plan("03a", tmp_path).outputs
    assert one.key == two.key
    assert [w.key for w in one.works] == [w.key for w in two.works]


def test_tensors_that_all_models_share_are_copied(tmp_path: Path) -> None:
    """02: the VAE is the same in the four models, and their shares add up to 1."""
    (output,) = plan("02a", tmp_path).outputs
    copied = {w.name for w in output.works if w.program < 0}
    assert copied == {
        "cond_stage_model.transformer.text_model.embeddings.position_ids",
        "first_stage_model.decoder.conv_in.weight",
        "alphas_cumprod",
    }


def test_the_inpainting_convolution_keeps_its_nine_channels(tmp_path: Path) -> None:
    (output,) = plan("08a", tmp_path).outputs
    (wide,) = [w for w in output.works if w.wide is not None]
    assert wide.name == "model.diffusion_model.input_blocks.0.0.weight"
    assert wide.shape == (8, 9, 3, 3)


def test_a_profile_over_patterns_decides_tensor_by_tensor(tmp_path: Path) -> None:
    """27: the double blocks are dev's, everything else schnell's."""
    planned = plan("27c", tmp_path)
    (output,) = planned.outputs
    taken = {w.name: planned.facts[w.reads[0][0]].name for w in output.works}
    assert {name for name, source in taken.items() if source == "dev"} == {
        "model.diffusion_model.double_blocks.0.img_attn.qkv.weight"
    }
    assert all(len(w.reads) == 1 for w in output.works)


PRINTED = {  # the presets as the tools print them: BASE, IN00 … OUT11
    name: [float(number) for number in numbers]
    for name, *numbers in map(str.split, (HERE.parent / "arch/preset_vectors.txt").read_text().splitlines())
}
ABYSS_BLOCKS = [0, 1, 0.9, 0.7, 0.5, 0.3, 0.1, *[0] * 13, 0.1, 0.3, 0.5, 0.7, 0.9, 1]


def on_sdxl(name: str, base: float) -> list[float]:
    """IN00–08, M00, OUT00–08 of SD 1's table; the VAE, which it has no number for, gets 0."""
    numbers = PRINTED[name]
    return [base, *numbers[1:10], *numbers[13:23], 0]


BLOCKS: Mapping[str, Mapping[str, list[float]]] = {
    "06c": {"k": PRINTED["TRUE_CUBIC_HERMITE"], "r": PRINTED["TRUE_REVERSE_CUBIC_HERMITE"]},
    "13a": {"k": ABYSS_BLOCKS},
    "13d": {"k": ABYSS_BLOCKS},
    "19b": {"k": PRINTED["SMOOTHSTEP"]},
    "25a": {"k1": on_sdxl("FAKE_CUBIC_HERMITE", 0.5), "k2": on_sdxl("COSINE", 0)},
}


@pytest.mark.parametrize("name", BLOCKS)
def test_block_weights_are_those_of_the_card(name: str, tmp_path: Path) -> None:
    planned = plan(name, tmp_path)
    tables = {k: table for output in planned.outputs for k, table in output.resolved.tables.items()}
    assert tables.keys() == BLOCKS[name].keys()
    for k, table in tables.items():
        assert all(block.low == block.high for block in table.blocks)
        assert [float(block.low) for block in table.blocks] == pytest.approx(BLOCKS[name][k], abs=5.1e-7)


def test_a_list_and_the_same_numbers_by_block_are_one_file(tmp_path: Path) -> None:
    """13: the numbers pasted or written by block."""
    keys = []
    for name in ("13a", "13d"):
        (tmp_path / name).mkdir()
        keys.append([output.key for output in plan(name, tmp_path / name).outputs])
    assert keys[0] == keys[1]


def test_a_broken_text_encoder_gets_its_position_ids(tmp_path: Path) -> None:
    """11: 0 … 76 as integers, whatever the file has."""
    (output,) = plan("11a", tmp_path).outputs
    (ids,) = [work for work in output.works if work.name.endswith("position_ids")]
    assert ids.data == struct.pack("<77q", *range(77))


def test_a_replaced_component_is_the_donors(tmp_path: Path) -> None:
    """40: the text encoder is nai's as it is, then half of each."""
    planned = plan("40c", tmp_path)
    name = "cond_stage_model.transformer.text_model.final_layer_norm.weight"
    whole, half = ({w.name: w for w in output.works} for output in planned.outputs)
    assert [planned.facts[source].name for source, _ in whole[name].reads] == ["nai"]
    assert {planned.facts[source].name for source, _ in half[name].reads} == {"real", "nai"}
    assert {planned.facts[source].name for n, w in half.items() for source, _ in w.reads if n != name} == {"real"}


def test_the_base_of_task_arithmetic_may_cancel_and_still_lend_its_names(tmp_path: Path) -> None:
    """34: the weights over 2.5 add up to 1, so the base model is in the result by its tensor names alone."""
    planned = plan("34a", tmp_path)
    (output,) = planned.outputs
    assert "lwm" not in {planned.facts[source].name for w in output.works for source, _ in w.reads}


def test_a_folder_without_a_model_is_not_there(tmp_path: Path) -> None:
    """34: the models of that card are folders."""
    (tmp_path / "models/LargeWorldModel_LWM-Text-Chat-1M").mkdir(parents=True)
    with pytest.raises(MergeflowError) as caught:
        plan("34a", tmp_path)
    assert "a folder without a model" in caught.value.message
    assert caught.value.exit_code == 4


def test_including_a_recipe_does_not_bring_its_steps(tmp_path: Path) -> None:
    """44: with the included recipe in place, the step is still unknown."""
    (tmp_path / "abyss-orange-mix-2.yaml").write_text(
        "mergeflow: 1\nsources: { a: a.safetensors, b: b.safetensors }\nsteps: { hard: a*0.5 + b*0.5 }\n"
    )
    with pytest.raises(MergeflowError) as caught:
        plan("44a", tmp_path)
    assert "no source, param or step is called hard" in caught.value.message


def test_a_step_of_another_recipe_fuses_with_this_one(tmp_path: Path) -> None:
    """44: as a source, `RECIPE.yaml#STEP` is what the author meant."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other/aom2.yaml").write_text(
        "mergeflow: 1\nsources: { a: a.safetensors, b: b.safetensors }\nparams: { m: 0.5 }\n"
        "steps: { hard: a*(1-m) + b*m }\n"
    )
    (tmp_path / "mine.yaml").write_text(
        "mergeflow: 1\nsources:\n  aom2: other/aom2.yaml#hard\n"
        "  mild: { recipe: other/aom2.yaml, step: hard, set: { m: 0.1 } }\n  c: c.safetensors\n"
        "outputs:\n  one.safetensors: aom2*0.5 + c*0.5\n  two.safetensors: mild*0.5 + c*0.5\n"
    )
    with Project(load(tmp_path / "mine.yaml"), settings(tmp_path)) as project:
        write_sources(project.bound)
        one, two = project.plan().outputs
    assert one.snapshot.form == "0.5·c + 0.25·aom2/a + 0.25·aom2/b"
    assert two.snapshot.form == "0.5·c + 0.45·mild/a + 0.05·mild/b"


def test_one_file_under_two_names_is_one_model(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        "mergeflow: 1\nsources: { a: x.safetensors, b: y.safetensors }\noutputs: { z.safetensors: a*0.7 + b*0.3 }\n"
    )
    write_model(tmp_path / "x.safetensors", {"w": (4,)}, seed="same")
    write_model(tmp_path / "y.safetensors", {"w": (4,)}, seed="same")
    with Project(load(tmp_path / "r.yaml"), settings(tmp_path)) as project:
        (output,) = project.plan().outputs
    assert [w.program for w in output.works] == [-1], "0.7·x + 0.3·x is a copy of x"
