"""Profiles over real tensor names: which line holds where; presets and lists beneath; gradients; what is refused."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import builds
from support.tiny_models import SD1 as FEW
from support.tiny_models import SD1_BLOCKS, write_model

from mergeflow.arch import UNKNOWN, Architecture, Rank, get, preset, select
from mergeflow.errors import Place, RecipeError, UnknownName
from mergeflow.plan.bound import Entry, Profile
from mergeflow.plan.explain import differences
from mergeflow.plan.profiles import Table, interpolated, resolve, spans
from mergeflow.recipe import BlockList

sys.path.append(str(Path(__file__).parents[1] / "arch"))
import arch_layouts

SD1, SDXL, FLUX, LLAMA = map(get, ("sd1", "sdxl", "flux", "llama"))
NAMES: Mapping[str, Sequence[str]] = {
    "sd1": (*arch_layouts.SD1, *arch_layouts.SCHEDULE),
    "sdxl": tuple(arch_layouts.SDXL),
    "flux": tuple(arch_layouts.FLUX),
    "llama": tuple(arch_layouts.LLAMA),
}
Value = str | int | Sequence[str | int]


def profile(
    lines: Mapping[str, Value], *, default: str | None = None, order: Sequence[int] = (), **listed: str
) -> Profile:
    entries = [
        Entry(selector, tuple(map(Fraction, [n] if isinstance(n, str | int) else n)), Place("mix.yaml", 5, 8, selector))
        for selector, n in lines.items()
    ]
    entries = [entries[i] for i in order] if order else entries
    beneath = BlockList(**listed, place=Place("mix.yaml", 5, 3, "k")) if listed else None
    return Profile("k", tuple(entries), beneath, None if default is None else Fraction(default), Place("mix.yaml", 5))


def table(
    lines: Mapping[str, Value], architecture: Architecture = SD1, *, default: str | None = None, **listed: str
) -> Table:
    return resolve(profile(lines, default=default, **listed), NAMES[architecture.name], architecture)


def blocks(found: Table) -> dict[str, str]:
    return {block.name: block.value for block in found.blocks}


def refused(lines: Mapping[str, Value], architecture: Architecture = SD1, **more: str) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        table(lines, architecture, **more)
    assert caught.value.place is not None
    assert caught.value.place.line == 5
    return caught.value


# -- precedence ----------------------------------------------------------------------------------------------------

# Lines from wide to narrow: each holds for some tensors that no narrower one holds for.
LADDER: Mapping[str, str] = {
    "BASE": "0.01",
    "text_encoder": "0.02",
    "vae": "0.03",
    "OUT": "0.04",
    "OUT03-OUT08": "0.05",
    "OUT05": "0.06",
    "*.attn1.*": "0.07",
    "/attn2.*to_k/": "0.08",
    "vae *mid*": "0.11",
    "OUT *.attn1.to_v.*": "0.12",
    "OUT05 *.attn1.*": "0.13",
    "model.diffusion_model.output_blocks.5.1.transformer_blocks.0.attn1.to_q.weight": "0.09",
}


def test_every_line_of_the_ladder_is_the_narrowest_somewhere() -> None:
    found = table(LADDER, default="0")
    rows = {row.selector: row for row in found.rows}
    assert list(rows) == [*LADDER, "default"]
    assert all(row.tensors for row in found.rows)
    assert sum(row.tensors for row in found.rows) == len(NAMES["sd1"])
    at = dict(zip(NAMES["sd1"], found.values, strict=True))
    out5 = "model.diffusion_model.output_blocks.5.1.transformer_blocks.0."
    assert at["model.diffusion_model.output_blocks.0.0.in_layers.0.bias"] == Fraction("0.04")
    assert at["model.diffusion_model.output_blocks.4.0.in_layers.0.bias"] == Fraction("0.05")
    assert at[out5 + "norm1.bias"] == Fraction("0.06")
    assert at[out5.replace("s.5", "s.6") + "attn1.to_q.weight"] == Fraction("0.07")
    assert at[out5 + "attn2.to_k.weight"] == Fraction("0.08")
    assert at[out5 + "attn1.to_q.weight"] == Fraction("0.09")
    assert at[out5.replace("s.5", "s.6") + "attn1.to_v.weight"] == Fraction("0.12")
    assert at[out5 + "attn1.to_v.weight"] == Fraction("0.13")
    assert at["first_stage_model.encoder.mid.attn_1.q.bias"] == Fraction("0.11")
    assert at["alphas_cumprod"] == Fraction("0.01")
    assert at["model.diffusion_model.middle_block.0.in_layers.0.bias"] == 0


@given(st.permutations(range(len(LADDER))), st.sets(st.sampled_from([*LADDER]), min_size=1))
@settings(max_examples=40, deadline=None)
def test_the_order_of_lines_never_matters(order: list[int], kept: set[str]) -> None:
    lines = {selector: value for selector, value in LADDER.items() if selector in kept}
    expected = table(lines, default="0.5", preset="GRAD_V")
    shuffled = [i for i in order if i < len(lines)]
    found = resolve(profile(lines, default="0.5", preset="GRAD_V", order=shuffled), NAMES["sd1"], SD1)
    assert found.values == expected.values
    assert found.blocks == expected.blocks


SELECTORS = st.sampled_from(
    [*LADDER, "IN", "IN00-IN05", "IN04-IN08", "unet", "clip_l", "diffuser", "M00", "*to_k*", "*bias", "IN *bias"]
)


@given(st.dictionaries(SELECTORS, st.integers(0, 2), max_size=6), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_against_the_rule_itself(lines: dict[str, int], rng: random.Random) -> None:
    """The highest rank that holds for a tensor decides; two of that rank that disagree are refused, in any order."""
    names = NAMES["sd1"]
    claims = [(*select(SD1, selector, names), value) for selector, value in lines.items()]
    expected: list[int] = []
    for i in range(len(names)):
        rank, values = -1, {9}
        for its, positions, value in ((r, set(p), v) for r, p, v in claims):
            if i in positions and its >= rank:
                values = {value} if its > rank else values | {value}
                rank = its
        expected.append(values.pop() if len(values) == 1 else -1)
    order = list(range(len(lines)))
    rng.shuffle(order)
    asked = profile(lines, default="9", order=order)
    if -1 in expected:
        with pytest.raises(RecipeError, match="disagree"):
            resolve(asked, names, SD1)
    else:
        assert list(resolve(asked, names, SD1).values) == expected


def test_a_tie_below_a_narrower_line_is_no_tie() -> None:
    """Two patterns disagree on a tensor that a name decides, wherever the name is written."""
    name = "alphas_cumprod"
    for lines in ({"alphas*": 1, "*cumprod": 2, name: 3}, {name: 3, "alphas*": 1, "*cumprod": 2}):
        found = resolve(profile(lines, default="0"), [name, "alphas", "cumprod"], UNKNOWN)
        assert found.values == (3, 1, 2)


def test_ties_that_disagree_show_the_tensor() -> None:
    error = refused({"IN00-IN05": 1, "IN04-IN08": 2}, default="0")
    assert "'IN00-IN05' and 'IN04-IN08' both say what model.diffusion_model.input_blocks.4." in error.message
    assert "narrower" in error.hint
    assert table({"IN00-IN05": 1, "IN04-IN08": 1}, default="0").values.count(Fraction(1)) > 0


def test_holes_are_told_by_block() -> None:
    error = refused({"OUT": "0.6"})
    left = len(NAMES["sd1"]) - len(select(SD1, "OUT", NAMES["sd1"])[1])
    assert error.message == f"k says nothing about BASE, IN00-IN11, M00 ({left} of {len(NAMES['sd1']):,} tensors)"
    assert "default: 0" in error.hint
    assert "such as" in refused({"*.attn1.*": 1}).message
    assert "such as" in refused({"OUT": 1, "vae": 1, "IN": 1, "M00": 1}).message  # the rest of BASE is open


def test_what_matches_nothing_is_refused() -> None:
    few = ["model.diffusion_model.out.2.bias"]
    for selector in ("IN05", "*.attn9.*", "vae", "OUT *nothing*"):
        with pytest.raises(RecipeError, match="matches no tensor of the model"):
            resolve(profile({selector: 1}, default="0"), few, SD1)
    error = refused({"OUT12": 1}, default="0")
    assert isinstance(error, UnknownName)
    assert "did you mean OUT1" in error.hint
    assert "backwards" in refused({"IN05-IN02": 1}, default="0").message


def test_without_an_architecture_blocks_ask_for_one() -> None:
    names = ["layer.0.weight", "layer.1.weight"]
    for lines in ({"IN05": 1}, {"layer": 1}, {"vae": 1}, {"IN00-IN03": 1}):
        with pytest.raises(UnknownName) as caught:
            resolve(profile(lines, default="0"), names, UNKNOWN)
        assert "`arch:`" in caught.value.hint
    for asked in (
        profile({"*": [0, 1]}, default="0"),
        profile({"BASE": 0}, preset="COSINE"),
        profile({"BASE": 0}, mbw="1,2,3"),
    ):
        with pytest.raises(RecipeError) as error:
            resolve(asked, names, UNKNOWN)
        assert "`arch:`" in error.value.hint
        assert "not known" in str(error.value)


# -- presets and lists ---------------------------------------------------------------------------------------------

ABYSS = "1,0.9,0.7,0.5,0.3,0.1,0,0,0,0,0,0,0,0,0,0,0,0,0,0.1,0.3,0.5,0.7,0.9,1"  # of the OrangeMixs card


def test_the_numbers_of_abyss_orange_mix() -> None:
    found = table({"BASE": 0}, mbw=ABYSS)
    assert list(blocks(found)) == list(SD1.blocks)
    assert list(blocks(found).values()) == ["0", *ABYSS.split(",")]
    written = table(
        {"BASE": 0, "IN00": 1, "IN01": "0.9", "IN02": "0.7", "IN03": "0.5", "IN04": "0.3", "IN05": "0.1", "M00": 0,
         "IN06-IN11": 0, "OUT00-OUT05": 0, "OUT06": "0.1", "OUT07": "0.3", "OUT08": "0.5", "OUT09": "0.7",
         "OUT10": "0.9", "OUT11": 1}
    )  # fmt: skip
    assert written.values == found.values
    assert [(row.selector, row.value) for row in found.rows] == [("mbw", "25 numbers"), ("BASE", "0")]
    assert found.like == ""


def test_lists_of_other_cards() -> None:
    leylines = table({}, mbw="0,1,1,1,1,1,1,0,0,0,0,0,0,1,0,0,0,0,0,0,1,1,1,1,1,1")
    assert list(spans(blocks(leylines).items())) == [
        ("BASE", "0"), ("IN00-IN05", "1"), ("IN06-IN11", "0"), ("M00", "1"), ("OUT00-OUT05", "0"), ("OUT06-OUT11", "1"),
    ]  # fmt: skip
    k8 = blocks(table({"BASE": 1}, SDXL, mbw="0,0,0,0,0,0,0,0,0,0,1,0,1,0,1,0,0,1,0,0"))
    assert {block for block, value in k8.items() if value == "1"} == {"BASE", "VAE", "M00", "OUT01", "OUT03", "OUT06"}
    ka = blocks(table({}, SDXL, mbw="1.0,0.0,0.0,1.0,1.0,1.0,1.0,1.0,0,0,1.0,0,1.0,0,0,0,0,0,0,0,0.5"))
    assert [ka[block] for block in ("BASE", "IN00", "IN02", "M00", "OUT01", "VAE")] == ["1", "0", "1", "1", "1", "0.5"]
    flux = blocks(table({}, FLUX, mbw=" ".join(["0.5"] * 61)))
    assert flux.pop("BASE") == "0"
    assert set(flux.values()) == {"0.5"}


def test_a_preset_lies_beneath_all_selectors_but_base() -> None:
    found = table({"BASE": "0.3", "vae": "0.2", "OUT": "0.7", "OUT05": "0.1"}, default="9", preset="TRUE_CUBIC_HERMITE")
    expected = preset("TRUE_CUBIC_HERMITE", SD1)
    shown = {block.name: (block.low, block.high) for block in found.blocks}
    assert shown["IN03"] == (expected["IN03"],) * 2
    assert shown["BASE"] == (Fraction("0.2"), Fraction("0.3"))
    assert (shown["OUT04"], shown["OUT05"]) == ((Fraction("0.7"),) * 2, (Fraction("0.1"),) * 2)
    assert {row.selector: row.tensors for row in found.rows}["default"] == 0
    whole = table({"unet": 1}, preset="COSINE")  # a component covers what the preset says of it
    assert set(blocks(whole).values()) == {"0", "1"}


@pytest.mark.parametrize(("name", "base"), [("COSINE", "0"), ("ALL_B", "1")])
def test_base_comes_from_the_preset_unless_given(name: str, base: str) -> None:
    assert blocks(table({}, preset=name))["BASE"] == base
    assert blocks(table({"BASE": "0.53"}, preset=name))["BASE"] == "0.53"


def test_a_pasted_preset_is_named() -> None:
    """Easter Fusion's card prints FAKE_CUBIC_HERMITE with 15 digits."""
    exact = [19 / 3 * t**3 - 19 / 2 * t**2 + 25 / 6 * t for t in (i / 24 for i in range(25))]
    found = table({"BASE": "0.53"}, mbw=",".join(f"{n:.15f}" for n in exact))
    assert found.like == "FAKE_CUBIC_HERMITE"
    assert table({"BASE": 0}, preset="FAKE_CUBIC_HERMITE").like == ""  # it is called so already
    cosine = [(1 + math.cos(math.pi * i / 18)) / 2 for i in range(19)]
    assert table({"BASE": 0}, SDXL, mbw=",".join(f"{n:.12f}" for n in cosine)).like == "SDXL_COSINE"


def test_a_list_for_sd1_on_sdxl_goes_by_name() -> None:
    """OsukiniMix XL: 25 numbers for a model of 19 blocks."""
    found = {b.name: b.low for b in table({"BASE": "0.5"}, SDXL, preset="FAKE_CUBIC_HERMITE", blocks="sd1").blocks}
    of_sd1 = preset("FAKE_CUBIC_HERMITE", SD1)
    network = [block for block in SDXL.blocks if block not in ("BASE", "VAE")]
    assert [found[block] for block in network] == [of_sd1[block] for block in network]
    assert (found["BASE"], found["VAE"]) == (Fraction("0.5"), 0)
    pasted = table({"BASE": "0.5"}, SDXL, mbw=",".join(map(str, range(25))), blocks="sd1")
    assert [block.value for block in pasted.blocks][1:11] == [*map(str, range(9)), "12"]
    error = refused({"BASE": 0}, SDXL, mbw=",".join(map(str, range(25))))
    assert "19" in error.message
    assert "`blocks: sd1`" in error.hint


@pytest.mark.parametrize(
    ("lines", "listed", "architecture", "message", "hint"),
    [
        ({}, {"mbw": ABYSS}, SD1, "25 numbers are for IN00…OUT11, and BASE is not among them", "BASE: 0"),
        ({"BASE": 0}, {"mbw": "1,0.9"}, SD1, "2 numbers; sd1 takes 25", ""),
        ({"BASE": 0}, {"mbw": "1,,2"}, SD1, "number 2 of 3 is missing", ""),
        ({"BASE": 0}, {"mbw": ""}, SD1, "without numbers", ""),
        ({"BASE": 0}, {"mbw": ABYSS}, LLAMA, "llama has no customary list", ""),
        ({}, {"preset": "COZINE"}, SD1, "no preset is called COZINE", "COSINE"),
        ({}, {"preset": "COSINE"}, FLUX, "do not fit", ""),
        ({}, {"preset": "COSINE", "blocks": "sdx"}, SD1, "no architecture is called sdx", "sd"),
        ({}, {"preset": "COSINE", "blocks": "sdxl"}, SDXL, "COSINE is a table for sd1, not for sdxl", "SDXL_COSINE"),
        ({}, {"preset": "SDXL_COSINE", "blocks": "sd1"}, SDXL, "is a table for sdxl, not for sd1", ""),
    ],
)
def test_lists_that_do_not_fit(
    lines: Mapping[str, Value], listed: dict[str, str], architecture: Architecture, message: str, hint: str
) -> None:
    error = refused(lines, architecture, **listed)
    assert message in error.message
    assert hint in error.hint


# -- gradients -----------------------------------------------------------------------------------------------------


def test_a_gradient_runs_over_the_layers_it_covers() -> None:
    """OpenPipe × NeuralHermes: five numbers over 32 layers, 0.5 elsewhere."""
    found = table(
        {"*self_attn*": [0, "0.5", "0.3", "0.7", 1], "*mlp*": [1, "0.5", "0.7", "0.3", 0]}, LLAMA, default="0.5"
    )
    at = dict(zip(NAMES["llama"], found.values, strict=True))
    attention = [at[f"model.layers.{i}.self_attn.q_proj.weight"] for i in range(32)]
    assert (attention[0], attention[31]) == (0, 1)
    assert attention[8] == Fraction(1, 2) + (Fraction(8 * 4, 31) - 1) * Fraction("-0.2")
    assert [1 - n for n in attention] == [at[f"model.layers.{i}.mlp.up_proj.weight"] for i in range(32)]
    assert {at[n] for n in NAMES["llama"] if "self_attn" not in n and "mlp" not in n} == {Fraction(1, 2)}
    assert (found.rows[0].selector, found.rows[0].value) == ("*self_attn*", "0, 0.5, 0.3, 0.7, 1")


def test_a_gradient_leaves_what_is_outside_to_wider_lines() -> None:
    found = table({"*": [1, 0], "vae": "0.25", "BASE": "0.75"}, default="9")
    shown = blocks(found)
    assert shown["BASE"] == "0.25…0.75"
    assert [shown[b] for b in ("IN00", "IN06", "M00", "OUT11")] == ["1", "0.75", "0.5", "0"]
    part = blocks(table({"OUT04-OUT06": [0, 1], "OUT05 *.attn1.*": "0.1"}, default="0.5"))
    assert [part[b] for b in ("OUT03", "OUT04", "OUT05", "OUT06")] == ["0.5", "0", "0.1…0.5", "1"]


@pytest.mark.parametrize(
    ("selector", "said"), [("IN05", "holds for IN05 alone"), ("vae", "holds for no block"), ("BASE", "no block")]
)
def test_a_gradient_over_less_than_two_blocks(selector: str, said: str) -> None:
    assert said in refused({selector: [0, 1]}, default="0").message


@given(st.lists(st.fractions(-2, 2, max_denominator=9), min_size=2, max_size=9), st.fractions(0, 1, max_denominator=64))
def test_interpolation_is_linear_and_exact(numbers: list[Fraction], t: Fraction) -> None:
    last = len(numbers) - 1
    assert [interpolated(numbers, Fraction(i, last)) for i in range(last + 1)] == numbers
    assert min(numbers) <= interpolated(numbers, t) <= max(numbers)
    assert interpolated(numbers[::-1], 1 - t) == interpolated(numbers, t)
    assert interpolated([numbers[0], numbers[-1]], t) == numbers[0] * (1 - t) + numbers[-1] * t


# -- in a plan -----------------------------------------------------------------------------------------------------

RECIPE = """\
mergeflow: 1
sources: { a: a.safetensors, b: b.safetensors }
params:
  k: %s
outputs:
  mix.safetensors: weighted_sum(a, b, k)
"""


def planned(folder: Path, k: str, **params: str) -> builds.Plan:
    from mergeflow import Project
    from mergeflow.recipe import loads

    for name in "ab":
        if not (folder / f"{name}.safetensors").exists():
            write_model(folder / f"{name}.safetensors", SD1_BLOCKS, seed=name)
    recipe = loads(RECIPE % k, "mix.yaml", folder, {key.replace("__", "."): value for key, value in params.items()})
    with Project(recipe, builds.settings(folder)) as project:
        return project.plan()


def changes(folder: Path, before: str, after: str = "", **params: str) -> list[str]:
    first, second = planned(folder, before).outputs[0], planned(folder, after or before, **params).outputs[0]
    assert first.key != second.key
    return differences(first.snapshot.to_json(), second.snapshot.to_json())


def test_a_changed_block_is_named(tmp_path: Path) -> None:
    listed = f"{{ mbw: '{ABYSS}', BASE: 0 }}"
    assert changes(tmp_path, "{ default: 0, OUT: 0.3 }", k__OUT05="0.5") == ["k.OUT05 changed: 0.3 → 0.5"]
    assert changes(tmp_path, "{ default: 0, OUT05: 0.3 }", k__OUT05="0.5") == ["k.OUT05 changed: 0.3 → 0.5"]
    assert changes(tmp_path, listed, listed.replace("0.7", "0.6", 1)) == ["k.IN02 changed: 0.7 → 0.6"]
    assert changes(tmp_path, listed, k__BASE="0.2") == ["k.BASE changed: 0 → 0.2"]
    assert changes(tmp_path, "0.3", k__M00="0.5") == ["k.M00 changed: 0.3 → 0.5"]
    assert changes(tmp_path, "{ default: 0, vae: 0.1 }", k__vae="0.5") == ["k.vae changed: 0.1 → 0.5"]
    assert changes(tmp_path, "{ default: 0, vae: 0.1 }", k__clip_l="0.5") == ["k.clip_l changed: not there → 0.5"]
    assert changes(tmp_path, "{ preset: COSINE }", k__preset="GRAD_V") == [
        "k.preset changed: COSINE → GRAD_V", "k changed in 24 blocks, such as IN01: 0.9957224307 → 0.9166666667",
    ]  # fmt: skip
    assert changes(tmp_path, "{ default: 0, IN00-IN01: { gradient: [0, 1] } }", "{ default: 0, IN00-IN01: 1 }") == [
        "k.IN00-IN01 changed: 0, 1 → 1"
    ]


def test_a_source_may_be_recognised_by_the_recipes_arch(tmp_path: Path) -> None:
    """A file with too few tensors to be recognised has blocks once `arch:` says of what."""
    shapes = {name: shape for name, shape in FEW.items() if "to_k" not in name and "first_stage" not in name}
    shapes = {name: shape for name, shape in shapes.items() if "input_blocks.0" not in name and "cond" not in name}
    for name in "ab":
        write_model(tmp_path / f"{name}.safetensors", shapes, seed=name)
    with pytest.raises(UnknownName, match="OUT11") as caught:
        planned(tmp_path, "{ default: 0, OUT11: 0.5 }")
    assert "arch: sd1" in caught.value.hint
    (tmp_path / "named.yaml").write_text("arch: sd1\n" + RECIPE % "{ default: 0, OUT11: 0.5 }")
    from mergeflow import Project
    from mergeflow.recipe import load

    with Project(load(tmp_path / "named.yaml"), builds.settings(tmp_path)) as project:
        (output,) = project.plan().outputs
    assert [block.value for block in output.resolved.tables["k"].blocks] == ["0", "0.5"]


@pytest.mark.slow
def test_fifty_thousand_names() -> None:
    names = [f"model.layers.{i}.mlp.experts.{j}.{p}.weight" for i in range(64) for j in range(261) for p in "udg"]
    lines: dict[str, Value] = {f"layers.{i}": i for i in range(64)} | {f"layers.{i} *u*": i for i in range(64)}
    found = resolve(profile({**lines, "layers.0-31": 3, "*d*": [0, 1]}, default="0"), names, LLAMA)
    assert len(found.values) == len(names)


def test_ranks_are_in_the_order_that_is_documented() -> None:
    order = [Rank.DEFAULT, Rank.BASE, Rank.LISTED, Rank.COMPONENT_GROUP, Rank.COMPONENT, Rank.GROUP, Rank.RANGE]
    assert sorted(Rank) == [*order, Rank.BLOCK, Rank.GLOB, Rank.WITHIN, Rank.EXACT]
