"""Presets are their formulas and the published numbers; pasted lists are read, or refused with the counts there are."""

import hashlib
import math
from fractions import Fraction
from pathlib import Path

import pytest

from mergeflow import arch
from mergeflow.arch import mbw, preset, presets, tables
from mergeflow.errors import RecipeError, UnknownName

SD1, SD2, SDXL, REFINER, FLUX, SD3, LLAMA = map(
    arch.get, ("sd1", "sd2", "sdxl", "sdxl-refiner", "flux", "sd3", "llama")
)
# As the reference prints them: BASE first, six decimals.
PRINTED = {
    name: [float(n) for n in numbers]
    for name, *numbers in map(str.split, Path(__file__).with_name("preset_vectors.txt").read_text().splitlines())
}
COMMUNITY = [name for name in PRINTED if not name.startswith("SDXL_")]


def ss(x):
    return x * x * (3 - 2 * x)


def tri(x):
    return x % 2 if x % 2 <= 1 else 2 - x % 2


PLAIN = {
    "GRAD_V": lambda t: abs(1 - 2 * t),
    "SMOOTHSTEP": ss,
    **{f"SMOOTHSTEP*{k}": lambda t, k=k: tri(k * ss(t)) for k in (2, 3, 4)},
    **{f"SMOOTHSTEP/{k}": lambda t, k=k: ss(tri(k * t)) for k in (2, 3, 4)},
    "COSINE": lambda t: (1 + math.cos(math.pi * t)) / 2,
    "FAKE_CUBIC_HERMITE": lambda t: 19 / 3 * t**3 - 19 / 2 * t**2 + 25 / 6 * t,
    "TRUE_CUBIC_HERMITE": lambda t: 77 / 12 * t**3 - 77 / 8 * t**2 + 25 / 6 * t + 1 / 24 if t else 0,
}
REVERSED = {
    "GRAD_A": "GRAD_V",
    "REVERSE-SMOOTHSTEP": "SMOOTHSTEP",
    **{f"R_SMOOTHSTEP{o}{k}": f"SMOOTHSTEP{o}{k}" for o in "*/" for k in (2, 3, 4)},
    "REVERSE_COSINE": "COSINE",
    "TRUE_REVERSE_CUBIC_HERMITE": "TRUE_CUBIC_HERMITE",
    "FAKE_REVERSE_CUBIC_HERMITE": "FAKE_CUBIC_HERMITE",
}


def test_all_thirty_eight_and_those_of_single_tools():
    assert list(presets()[:38]) == COMMUNITY
    assert set(presets()[38:]) == {n for n in PRINTED if n.startswith("SDXL_")} | {"LOW_OFFSET_CUBIC_HERMITE"}
    assert len(COMMUNITY) == 38


@pytest.mark.parametrize("name", PRINTED)
def test_the_printed_numbers(name):
    table = preset(name, SDXL if name.startswith("SDXL_") else SD1)
    numbers = [float(n) for block, n in table.items() if block != "VAE"]
    assert numbers == pytest.approx(PRINTED[name], abs=5.1e-7)


@pytest.mark.parametrize("name", [*PLAIN, *REVERSED])
def test_the_formulas_to_nine_digits(name):
    numbers = [n for block, n in preset(name, SD1).items() if block != "BASE"]
    plain = PLAIN[REVERSED.get(name, name)]
    expected = [1 - plain(i / 24) if name in REVERSED else plain(i / 24) for i in range(25)]
    assert [float(n) for n in numbers] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", [n for n in COMMUNITY if n not in PLAIN and n not in REVERSED])
def test_tables_without_a_formula_are_what_is_printed(name):
    assert [Fraction(n) for n in PRINTED[name]] == list(preset(name, SD1).values())


def test_tables_are_decimals_of_a_stated_number_of_digits():
    for name in presets():
        assert all(10**10 % n.denominator == 0 for n in preset(name, SDXL).values())
    assert preset("GRAD_V", SD1)["IN01"] == Fraction("0.9166666667")
    assert preset("COSINE", SD1)["IN01"] == Fraction("0.9957224307")
    assert preset("LOW_OFFSET_CUBIC_HERMITE", SD1)["OUT11"] == Fraction("0.5")


def test_a_changed_number_needs_a_new_version():
    lines = (f"{name} {block} {n}" for name in presets() for block, n in preset(name, SDXL).items())
    lines = [*lines, *(f"{name} {block} {n}" for name in presets()[:39] for block, n in preset(name, SD1).items())]
    assert (tables.VERSION, hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]) == (1, "644ac71a4224c6e1")


def test_reversed_presets_are_exact_complements():
    for name, other in REVERSED.items():
        a, b = preset(name, SD1), preset(other, SD1)
        assert all(a[block] + b[block] == 1 for block in a if block != "BASE")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("true cubic", "TRUE_CUBIC_HERMITE"),
        ("True Reverse Cubic", "TRUE_REVERSE_CUBIC_HERMITE"),
        ("true-cubic-hermite", "TRUE_CUBIC_HERMITE"),
        ("fake cubic", "FAKE_CUBIC_HERMITE"),
        ("reverse_smoothstep", "REVERSE-SMOOTHSTEP"),
        ("smoothstep × 2", "SMOOTHSTEP*2"),
        ("r-smoothstep/3", "R_SMOOTHSTEP/3"),
        ("3R_SMOOTHSTEP", "R_SMOOTHSTEP*3"),
        ("HALF_R_SMOOTHSTEP", "R_SMOOTHSTEP/2"),
        ("ONE_FOURTH_SMOOTHSTEP", "SMOOTHSTEP/4"),
        ("ring08 soft", "RING08_SOFT"),
    ],
)
def test_other_spellings(name, meant):
    assert preset(name, SD1) == preset(meant, SD1)


@pytest.mark.parametrize("name", ["CUBIC_HERMITE", "cubic hermite", "smootstep", "GRAD", "SMOOTHSTEP2"])
def test_unknown_presets_are_answered_with_the_nearest(name):
    with pytest.raises(UnknownName, match="no preset is called") as caught:
        preset(name, SD1)
    assert "did you mean" in caught.value.hint


def test_other_unets_take_the_tables_by_name_of_block():
    sd1 = preset("TRUE_CUBIC_HERMITE", SD1)
    assert preset("true cubic", SD2) == preset("true cubic", REFINER) == sd1
    sdxl = preset("TRUE_CUBIC_HERMITE", SDXL)
    assert tuple(sdxl) == SDXL.blocks
    numbers = [n for block, n in sd1.items() if block != "BASE"]
    assert [n for block, n in sdxl.items() if block not in ("BASE", "VAE")] == numbers[0:9] + numbers[12:22]
    assert sdxl["VAE"] == sdxl["BASE"] == 0


def test_base_given_apart_is_left_out():
    assert "BASE" not in preset("COSINE", SD1, base=True)
    assert preset("COSINE", SDXL, base=True)["VAE"] == 0  # as supermerger
    assert preset("SDXL_ALL_B", SDXL)["VAE"] == 1
    assert set(SDXL.blocks) - set(preset("SDXL_COSINE", SDXL, base=True)) == {"BASE", "VAE"}


@pytest.mark.parametrize(
    ("name", "architecture"), [("COSINE", FLUX), ("COSINE", LLAMA), ("COSINE", arch.UNKNOWN), ("SDXL_COSINE", SD1)]
)
def test_presets_fit_unets_alone(name, architecture):
    with pytest.raises(RecipeError, match="do not fit"):
        preset(name, architecture)


def test_pasted_numbers_that_are_a_preset_are_named():
    assert arch.preset_like(preset("RING08_5", SD1), SD1) == "RING08_5"
    assert arch.preset_like(preset("SDXL_COSINE", SDXL), SDXL) == "SDXL_COSINE"
    assert arch.preset_like({**preset("RING08_5", SD1), "IN03": Fraction(1, 3)}, SD1) is None
    assert arch.preset_like({}, SD1) is arch.preset_like({}, LLAMA) is None


# --- lists --------------------------------------------------------------------------------------------------------


def numbers(count, separator=","):
    return separator.join(str(i / 100) for i in range(count))


def test_lists_for_sd1_with_base_in_front_or_given_apart():
    table = mbw(numbers(26), SD1)
    assert tuple(table) == SD1.blocks
    assert (table["BASE"], table["IN00"], table["OUT11"]) == (0, Fraction("0.01"), Fraction("0.25"))
    apart = mbw(numbers(25), SD1, base=True)
    assert tuple(apart) == SD1.blocks[1:]
    assert (apart["IN00"], apart["OUT11"]) == (0, Fraction("0.24"))
    assert "BASE" not in mbw(numbers(26), SD1, base=True)


@pytest.mark.parametrize("separator", [", ", " ", "\n", ",\n", "\t", ";", "，", " , "])
def test_separators(separator):
    assert mbw(numbers(26, separator), SD2) == mbw(numbers(26), SD2)


@pytest.mark.parametrize("text", [numbers(26) + ",", f"[{numbers(26)}]", f"\n {numbers(26)}\n", numbers(26) + ", "])
def test_what_surrounds_a_pasted_list(text):
    assert mbw(text, SD1) == mbw(numbers(26), SD1)


def test_numbers_are_read_exactly():
    text = "0.1 .5 1. 1e-3 -0.25 +1" + " 0" * 20
    assert list(mbw(text, SD1).values())[:6] == list(map(Fraction, ("0.1", "0.5", "1", "0.001", "-0.25", "1")))


def test_lists_for_sdxl():
    assert tuple(mbw(numbers(19), SDXL, base=True)) == SDXL.blocks[1:-1]
    twenty = mbw(numbers(20), SDXL)
    assert tuple(twenty) == SDXL.blocks
    assert (twenty["VAE"], twenty["IN00"]) == (twenty["BASE"], Fraction("0.01"))
    whole = mbw(numbers(21), SDXL)
    assert (whole["BASE"], whole["VAE"]) == (0, Fraction("0.2"))
    assert set(SDXL.blocks) - set(mbw(numbers(20), SDXL, base=True)) == {"BASE", "VAE"}
    assert set(SDXL.blocks) - set(mbw(numbers(21), SDXL, base=True)) == {"BASE"}


def test_lists_for_flux():
    whole = mbw(numbers(61), FLUX)
    assert tuple(whole) == FLUX.blocks
    assert (whole["BASE"], whole["CLIP"], whole["T5"], whole["OUT"]) == (0, 0, Fraction("0.01"), Fraction("0.6"))
    assert len(mbw(numbers(59), FLUX, base=True)) == 59


def test_a_list_for_sd1_on_sdxl_by_name():
    table = mbw(numbers(25), SDXL, base=True, layout=SD1)
    assert [float(n * 100) for n in table.values()] == [*range(9), *range(12, 22), 0]
    assert mbw(numbers(26), SDXL, layout=SD1)["VAE"] == 0
    with pytest.raises(RecipeError, match="do not fit"):
        mbw(numbers(20), SD1, layout=SDXL)


@pytest.mark.parametrize(
    ("count", "architecture", "base", "said"),
    [
        (24, SD1, True, "24 numbers; sd1 takes 25 (IN00…OUT11, with BASE given apart) or 26 (BASE first)"),
        (24, SD1, False, "one is missing"),
        (27, SD1, False, "one too many"),
        (20, SD1, False, "5 are missing"),
        (18, SDXL, False, "with BASE given apart), 20 (BASE first) or 21 (BASE first, VAE last)"),
        (25, SDXL, False, "`blocks: sd1`"),
        (26, SDXL, False, "`blocks: sd1`"),
        (24, SDXL, False, "3 too many"),
        (60, FLUX, False, "flux takes 59 (IN…OUT, with BASE given apart) or 61 (CLIP…OUT)"),
        (25, SD1, False, "BASE is not among them"),
        (25, SD1, False, "BASE: 0"),
        (19, SDXL, False, "20 numbers"),
        (24, SD3, False, "no customary list"),
        (32, LLAMA, False, "no customary list"),
        (3, arch.UNKNOWN, False, "no customary list"),
    ],
)
def test_a_wrong_count_says_which_there_are(count, architecture, base, said):
    with pytest.raises(RecipeError) as caught:
        mbw(numbers(count), architecture, base=base)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "without numbers"),
        ("[]", "without numbers"),
        ("0.5,,0.5", "number 2 of 3 is missing"),
        (",0.5", "number 1 of 2 is missing"),
        ("0.5,0.60.7", "a comma was lost"),
        ("0.5,0.60.7", "0.60.7 (number 2 of 2 after 0.5) is not a number"),
        ("R,0.5", "R (number 1 of 2) is not a number"),
        ("1e400", "is not a number"),
        ("0." + "1" * 50, "is not a number"),
        ("nan", "is not a number"),
    ],
)
def test_what_is_no_number(text, said):
    with pytest.raises(RecipeError) as caught:
        mbw(text, SD1)
    assert said in str(caught.value)
