"""What expressions mean: degrees, primaries, missing tensors, integers, wide models, copies, rounding points."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from support import exact
from support.builds import HEAD, Heard, build, merged, plan, recipe, write_models
from support.checkpoints import Model, Tensor, any_bits, metadata, numbers, read, weights, write
from support.exact import BF16, F16, F32, doubles

from mergeflow.errors import MergeflowError, RecipeError
from mergeflow.plan.program import COPY, ZERO

FIRST = "model.diffusion_model.input_blocks.0.0.weight"
CONTEXT = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
VAE = "first_stage_model.decoder.conv_in.weight"
TEXT = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
POSITIONS = "cond_stage_model.transformer.text_model.embeddings.position_ids"


def rng(seed: int = 31) -> np.random.Generator:
    return np.random.default_rng(seed)


def of(*models: dict[str, list[float]]) -> dict[str, Model]:
    return {
        name: {key: numbers("F32", x) for key, x in model.items()} for name, model in zip("abcd", models, strict=False)
    }


def floats(t: Tensor) -> list[float]:
    return doubles(exact.FORMATS[t.code], t.data).tolist()


def sd1(seed: int, channels: int = 4, code: str = "F16") -> Model:
    """A model that is recognised as Stable Diffusion 1, with a tensor or two of each component."""
    r = rng(seed)
    return {
        FIRST: weights(r, code, (5, channels, 3, 3)),
        "model.diffusion_model.out.2.weight": weights(r, code, (4, 5, 3, 3)),
        CONTEXT: weights(r, code, (2, 768)),
        VAE: weights(r, code, (5, 4, 3, 3)),
        "first_stage_model.quant_conv.bias": weights(r, code, (8,)),
        TEXT: weights(r, code, (3, 768)),
        POSITIONS: numbers("I64", np.arange(77) + seed),
        "betas": weights(r, "F32", (10,)),
    }


# -- degrees -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("a + b", "adds two whole models: the shares add up to 2"),
        ("a + b + c", "add up to 3"),
        ("a*0.5 + b*0.4", "add up to 0.9"),
        ("a*0.5", "add up to 0.5"),
        ("-a", "add up to -1"),
        ("a/3 + b/3", "add up to 2/3"),
        ("a + (b + c)*0.3", "add up to 1.6"),
        ("a * b", "two models cannot be multiplied"),
        ("a + 1", "a model and a number cannot be added"),
        ("1 / a", "divided by a model"),
        ("a / 0", "division by zero"),
        ("a / (0.3 - 0.1 - 0.2)", "division by zero"),
        ("a + k", "a model and a number"),
        ("0.5", "a model is needed"),
        ("scale(a)", "scale needs k"),
        ("weighted_sum(a, b, c)", "m is a number, not a model"),
    ],
)
def test_what_is_no_model_is_refused_with_its_place(tmp_path: Path, expression: str, message: str) -> None:
    write_models(tmp_path, of({"w": [1]}, {"w": [2]}, {"w": [3]}))
    with pytest.raises(RecipeError) as caught:
        plan(tmp_path, recipe(expression, more="params: { k: 0.3 }\n"))
    assert message in str(caught.value)
    assert caught.value.place is not None
    assert caught.value.place.line > 3
    assert not (tmp_path / "mix.safetensors").exists()


def test_a_step_of_any_other_degree_is_refused_even_when_the_output_is_a_model(tmp_path: Path) -> None:
    write_models(tmp_path, of({"w": [1]}, {"w": [2]}, {"w": [3]}))
    with pytest.raises(RecipeError, match=r"the shares of half add up to 0\.5"):
        plan(tmp_path, recipe("half + b*0.5", more="steps: { half: a*0.5 }\n"))


def test_degrees_that_a_profile_breaks_for_some_tensors_are_refused(tmp_path: Path) -> None:
    write_models(tmp_path, of({"w": [1], "v": [1]}, {"w": [2], "v": [2]}, {"w": [3], "v": [3]}))
    params = "params: { k: { default: 0.5, v: 0.4 } }\n"
    with pytest.raises(RecipeError, match=r"add up to 0\.9"):
        plan(tmp_path, recipe("a*0.5 + b*k", more=params))
    assert plan(tmp_path, recipe("a*(1 - k) + b*k", more=params)).outputs[0].build


def test_on_purpose_any_sum_is_a_model(tmp_path: Path) -> None:
    found = merged(tmp_path, "linear([a @ 2, b @ 0.5], normalize=false)", of({"w": [1, 2]}, {"w": [4, 6]}))
    assert floats(found["w"]) == [4, 7]
    found = merged(tmp_path, "scale(a, 3) + (b - a)", of({"w": [1, 2]}, {"w": [4, 6]}))
    assert floats(found["w"]) == [6, 10]


# -- primaries -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "primary"),
    [
        ("a + (b - c)", "a"),
        ("b - c + a", "a"),
        ("(b - c) + a", "a"),
        ("(b - c)*0.3 + a + (c - b)", "a"),
        ("b*0.5 + a*0.5", "b"),
        ("a*0.5 + b*0.5", "a"),
        ("weighted_sum(c, b, 0.3)", "c"),
        ("a - b", "a"),
        ("b - a", "b"),
        ("a + (b - a)*1", "a"),
    ],
)
def test_whose_tensors_integers_and_dtypes_a_result_has(tmp_path: Path, expression: str, primary: str) -> None:
    models: dict[str, Model] = {}
    for i, (name, code) in enumerate([("a", "F32"), ("b", "F16"), ("c", "BF16")]):
        models[name] = {
            "w": weights(rng(i), code, (20,)), "ids": numbers("I64", [i, i, i]), f"only.{name}": numbers(code, [i]),
            "flag": Tensor("BOOL", (1,), bytes([i % 2])),
        }  # fmt: skip
    heard = Heard()
    write_models(tmp_path, models)
    build(tmp_path, recipe(expression), heard)
    found = read(tmp_path / "mix.safetensors")
    assert found.keys() == models[primary].keys()
    assert found["ids"] == models[primary]["ids"]
    assert found["flag"] == models[primary]["flag"]
    assert found["w"].code == models[primary]["w"].code
    assert all(f"only.{m}" not in found for m in models if m != primary)
    assert any("has not: left out" in w or "kept as they are" in w for w in heard.warnings)


def test_like_chooses_another_primary(tmp_path: Path) -> None:
    models: dict[str, Model] = {
        "a": {"w": numbers("F32", [1, 2]), "ids": numbers("I32", [1])},
        "b": {"w": numbers("F16", [3, 4]), "ids": numbers("I32", [2]), "more": numbers("F16", [9])},
    }
    write_models(tmp_path, models)
    text = (
        "sources: { a: a.safetensors, b: b.safetensors }\n"
        "steps:\n  s: { expr: a*0.5 + b*0.5, like: b }\n"
        "outputs: { mix.safetensors: s, o.safetensors: { from: a*0.5 + b*0.5, like: b } }\n"
    )
    build(tmp_path, HEAD + text)
    found = read(tmp_path / "mix.safetensors")
    assert found == read(tmp_path / "o.safetensors")
    assert found["ids"] == models["b"]["ids"]
    assert (found["w"].code, floats(found["w"])) == ("F16", [2, 3])
    assert found["more"] == models["b"]["more"]


# -- missing tensors -----------------------------------------------------------------------------------------------


def test_what_a_delta_lacks_adds_nothing(tmp_path: Path) -> None:
    """gone: in neither b nor c; lost: only b lacks it, so b - c has no such tensor."""
    models = of({"w": [1], "gone": [2], "lost": [3]}, {"w": [10]}, {"w": [4], "lost": [5]})
    found = merged(tmp_path, "a + (b - c)*0.5", models)
    assert {k: floats(t) for k, t in found.items()} == {"w": [4], "gone": [2], "lost": [3]}


def test_what_a_model_lacks_leaves_the_sum_to_its_primary(tmp_path: Path) -> None:
    models = of({"w": [1], "lost": [3]}, {"w": [2]}, {"w": [0], "lost": [1]})
    found = merged(tmp_path, "a*0.5 + b*0.5", models)
    assert {k: floats(t) for k, t in found.items()} == {"w": [1.5], "lost": [3]}
    found = merged(tmp_path, "(a*0.5 + b*0.5) + (a - c)*2", models)  # the inner sum is a's there, and no more than that
    assert {k: floats(t) for k, t in found.items()} == {"w": [3.5], "lost": [7]}


def test_missing_tensors_are_resolved_before_algebra(tmp_path: Path) -> None:
    """b cancels out of the normal form, yet where it lacks a tensor both differences lack it too."""
    models = of({"w": [1], "lost": [3]}, {"w": [2]}, {"w": [5], "lost": [9]}, {"w": [7], "lost": [11]})
    found = merged(tmp_path, "a + (c - b) + (b - d)", models)
    assert {k: floats(t) for k, t in found.items()} == {"w": [-1], "lost": [3]}


def test_missing_error_refuses_and_names_the_model(tmp_path: Path) -> None:
    write_models(tmp_path, of({"w": [1], "lost": [3]}, {"w": [2]}))
    with pytest.raises(RecipeError, match="b lacks 1 of 2 tensors, such as lost"):
        plan(tmp_path, recipe("a*0.5 + b*0.5", "ab", more="options: { missing: error }\n"))


# -- integers, buffers, copies -------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"])
def test_integers_are_never_averaged(tmp_path: Path, code: str) -> None:
    models: dict[str, Model] = {
        m: {"n": any_bits(rng(i), code, (33,)), "w": numbers("F16", [i])} for i, m in enumerate("abc")
    }
    found = merged(tmp_path, "a + (b - c)*0.3", models, dtype="float32")
    assert found["n"] == models["a"]["n"]
    assert found["w"].code == "F32"


def test_buffers_are_taken_bit_for_bit_in_their_own_dtype(tmp_path: Path) -> None:
    models = {"a": sd1(1), "b": sd1(2), "c": sd1(3)}
    some = Tensor("F32", (3,), np.array([0x7FC00001, 0xFF800001, 0x80000000], np.uint32).tobytes())
    models["a"]["cond_stage_model.transformer.text_model.embeddings.position_ids"] = some
    found = merged(tmp_path, "a + (b - c)*0.3", models, dtype="float16")
    assert found[POSITIONS] == some
    assert found["betas"] == models["a"]["betas"]
    assert found["betas"].code == "F32"
    assert found[TEXT] != models["a"][TEXT]


def test_a_copy_is_bytes(tmp_path: Path) -> None:
    """NaN payloads, signalling NaNs, negative zeros: nothing is computed, so nothing is lost."""
    everything = np.arange(1 << 16, dtype=np.uint16).tobytes()
    model: Model = {
        "f16": Tensor("F16", (1 << 16,), everything),
        "bf16": Tensor("BF16", (256, 256), everything),
        "e4m3": Tensor("F8_E4M3", (256,), bytes(range(256))),
        "e5m2": Tensor("F8_E5M2", (256,), bytes(range(256))),
        "f32": Tensor("F32", (5,), np.array([0x7F800001, 0xFFC12345, 1 << 31, 1, 0x7FFFFFFF], np.uint32).tobytes()),
        "f64": Tensor("F64", (2,), np.array([0x7FF0000000000001, 0xFFF8000012345678], np.uint64).tobytes()),
    }
    heard = Heard()
    write(tmp_path / "a.safetensors", model)
    write(tmp_path / "b.safetensors", {k: numbers(t.code, np.ones(t.shape)) for k, t in model.items()})
    build(tmp_path, recipe("a + (b - b)*0.3", "ab"), heard)
    assert read(tmp_path / "mix.safetensors") == model
    p = plan(tmp_path, recipe("a + (b - b)*0.3", "ab", out="other"))
    assert {w.program for w in p.outputs[0].works} == {COPY}
    assert p.outputs[0].bytes_read == sum(len(t.data) for t in model.values())


def test_a_cast_is_rounded_once_to_nearest_even(tmp_path: Path) -> None:
    values = np.concatenate([np.arange(1 << 16, dtype=np.uint32) << 16 | e for e in (0, 0x7FFF, 0x8000, 0x8001)])
    values = values[(values & 0x7F800000) != 0x7F800000]
    model: Model = {"w": Tensor("F32", (len(values),), values.astype(np.uint32).tobytes())}
    write(tmp_path / "a.safetensors", model)
    build(tmp_path, recipe("a", "a", dtype="bfloat16", more="options: { nonfinite: allow }\n"))
    found = np.frombuffer(read(tmp_path / "mix.safetensors")["w"].data, np.uint16)
    wanted = ((values.astype(np.uint64) + 0x7FFF + ((values >> 16) & 1)) >> 16).astype(np.uint16)
    assert (found == wanted).all()


def test_equal_models_leave_zeros(tmp_path: Path) -> None:
    models = {m: {"w": any_bits(rng(1), "F16", (999,)), "n": numbers("I32", [4])} for m in "ab"}
    found = merged(tmp_path, "a - b", models, more="")
    assert found["w"].data == bytes(2 * 999)
    assert found["n"] == models["a"]["n"]
    p = plan(tmp_path, recipe("a - b", "ab", out="other"))
    assert {w.name: w.program for w in p.outputs[0].works} == {"w": ZERO, "n": COPY}
    found = merged(tmp_path, "a - a", {"a": models["a"]})
    assert found["w"].data == bytes(2 * 999)


# -- wide first convolutions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["", "float16", "float32", "bfloat16"])
@pytest.mark.parametrize("channels", [9, 8])
def test_a_wide_primary_keeps_its_other_channels(tmp_path: Path, channels: int, dtype: str) -> None:
    models = {"a": sd1(1, channels), "b": sd1(2), "c": sd1(3)}
    found = merged(tmp_path, "a + (b - c)*0.3", models, dtype=dtype)
    f = exact.FORMATS[found[FIRST].code]
    got, wide = (np.array(exact.values(x, t.data), object).reshape(5, channels, 3, 3)
                 for x, t in ((f, found[FIRST]), (F16, models["a"][FIRST])))  # fmt: skip
    b, c = (np.array(exact.values(F16, models[m][FIRST].data), object).reshape(5, 4, 3, 3) for m in "bc")
    wanted = np.vectorize(lambda x: exact.rounded(f, x), otypes=[object])(wide)
    wanted[:, :4] = np.vectorize(lambda x: exact.rounded(f, x), otypes=[object])(
        wide[:, :4] + (b - c) * Fraction(3, 10)
    )
    assert (got[:, 4:] == wanted[:, 4:]).all()
    if f is not F32:  # its sums are taken in float64, and divided there: not always exact
        assert (got == wanted).all()
    if f is F16:
        ours = np.frombuffer(found[FIRST].data, np.uint16).reshape(5, channels, 9)
        theirs = np.frombuffer(models["a"][FIRST].data, np.uint16).reshape(5, channels, 9)
        assert (ours[:, 4:] == theirs[:, 4:]).all()


def test_a_wide_model_that_is_also_in_the_difference(tmp_path: Path) -> None:
    """a + (b - c) with b wide as well: its first four channels count."""
    models = {"a": sd1(1, 9, "F32"), "b": sd1(2, 9, "F32"), "c": sd1(3, 4, "F32")}
    found = merged(tmp_path, "a + (b - c)", models)
    got, a, b = (doubles(F32, t.data).reshape(5, 9, 9) for t in (found[FIRST], models["a"][FIRST], models["b"][FIRST]))
    c = doubles(F32, models["c"][FIRST].data).reshape(5, 4, 9)
    assert (got[:, 4:] == a[:, 4:]).all()
    assert (got[:, :4] == (a[:, :4] + b[:, :4] - c).astype(np.float32)).all()


def test_the_classic_inpainting_conversion(tmp_path: Path) -> None:
    """inpainting + (model - base): the model's text-to-image part, able to inpaint."""
    models = {"a": sd1(1, 9), "b": sd1(2), "c": sd1(3)}
    models["c"][FIRST] = Tensor("F16", (5, 4, 3, 3), np.frombuffer(models["a"][FIRST].data, np.uint16).reshape(5, 9, 9)
                                [:, :4].tobytes())  # fmt: skip
    found = merged(tmp_path, "a + (b - c)", models)
    got, a = (np.frombuffer(m[FIRST].data, np.float16).reshape(5, 9, 9) for m in (found, models["a"]))
    assert (got[:, :4] == np.frombuffer(models["b"][FIRST].data, np.float16).reshape(5, 4, 9)).all()
    assert (got[:, 4:] == a[:, 4:]).all()


def test_the_other_way_round_is_an_error_with_the_fix(tmp_path: Path) -> None:
    write_models(tmp_path, {"a": sd1(1), "b": sd1(2, 9), "c": sd1(3)})
    with pytest.raises(RecipeError, match="could not inpaint") as caught:
        plan(tmp_path, recipe("a + (b - c)*0.3"))
    assert "b + (a - c)" in caught.value.hint


def test_other_shapes_are_never_broadcast(tmp_path: Path) -> None:
    write_models(tmp_path, {"a": {"w": weights(rng(), "F16", (3, 4))}, "b": {"w": weights(rng(), "F16", (4,))}})
    with pytest.raises(RecipeError, match=r"w has the shape \[4\] in b and \[3, 4\] in a"):
        plan(tmp_path, recipe("a*0.5 + b*0.5", "ab"))


def test_integers_and_floats_are_not_mixed(tmp_path: Path) -> None:
    write_models(tmp_path, {"a": {"w": numbers("F16", [1])}, "b": {"w": numbers("I64", [1])}})
    with pytest.raises(RecipeError, match="w is int64 in b and float16 in a: they cannot be mixed"):
        plan(tmp_path, recipe("a*0.5 + b*0.5", "ab"))


def test_scaled_quantised_weights_are_copied_but_not_summed(tmp_path: Path) -> None:
    quantised = {"w": weights(rng(), "F8_E4M3", (4,)), "w.scale_weight": numbers("F32", [2])}
    write_models(tmp_path, {"a": quantised, "b": {"w": weights(rng(), "F16", (4,))}})
    build(tmp_path, recipe("a", "ab"))
    assert read(tmp_path / "mix.safetensors") == quantised
    with pytest.raises(RecipeError, match="scaled, quantised weights"):
        plan(tmp_path, recipe("b + (b - a)*0.5", "ab"))


# -- rounding points -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("middle", ["float16", "bfloat16", "float8_e5m2", "float8_e4m3fn"])
def test_rounding_points(tmp_path: Path, middle: str) -> None:
    f = next(x for x in exact.FORMATS.values() if x.label == middle)
    models = {m: {"w": weights(rng(i), "F16", (400,))} for i, m in enumerate("abc")}
    steps = f"steps: {{ s: {{ expr: a*0.4 + b*0.6, round: {middle} }} }}\n"
    found = merged(tmp_path, "s + (b - c)*0.25", models, dtype="float32", more=steps)
    a, b, c = (exact.values(F16, models[m]["w"].data) for m in "abc")
    for x, y, z, got in zip(a, b, c, exact.values(F32, found["w"].data), strict=True):
        inner = exact.rounded(f, (2 * x + 3 * y) / 5)  # type: ignore[operator]
        assert got == exact.rounded(F32, inner + (y - z) / 4)  # type: ignore[operator]


def test_rounding_is_not_algebra(tmp_path: Path) -> None:
    """s - s is nothing, s - a is not; and rounding twice is rounding twice."""
    models = {m: {"w": weights(rng(i), "F32", (100,))} for i, m in enumerate("abc")}
    steps = "steps: { s: { expr: a, round: bfloat16 }, t: { expr: s*0.5 + b*0.5, round: float16 } }\n"
    found = merged(tmp_path, "c + (s - s)", models, more=steps)
    assert found == models["c"]
    found = merged(tmp_path, "t + (c - s)", models, more=steps)
    a, b, c = (exact.values(F32, models[m]["w"].data) for m in "abc")
    for x, y, z, got in zip(a, b, c, exact.values(F32, found["w"].data), strict=True):
        s = exact.rounded(BF16, x)  # type: ignore[arg-type]
        t = exact.rounded(F16, (s + y) / 2)  # type: ignore[operator]
        assert got == exact.rounded(F32, t + z - s)  # type: ignore[operator]


def test_a_rounded_output_of_the_same_dtype_is_rounded_once(tmp_path: Path) -> None:
    models = {m: {"w": weights(rng(i), "F16", (100,))} for i, m in enumerate("ab")}
    plain = merged(tmp_path, "a*0.4 + b*0.6", models)
    steps = "steps: { s: { expr: a*0.4 + b*0.6, round: float16 } }\n"
    assert merged(tmp_path, "s", models, more=steps) == plain


# -- components and profiles ---------------------------------------------------------------------------------------


def test_replacing_a_component_is_exact(tmp_path: Path) -> None:
    models = {"a": sd1(1), "b": sd1(2), "c": sd1(3)}
    models["c"]["first_stage_model.extra"] = numbers("F16", [7])
    models["c"][VAE] = any_bits(rng(), "F16", (5, 4, 3, 3), finite=False)
    steps = "steps: { s: { expr: a*0.5 + b*0.5, replace: { vae: c } } }\n"
    found = merged(tmp_path, "s", models, more=steps)
    for name in (VAE, "first_stage_model.quant_conv.bias", "first_stage_model.extra"):
        assert found[name] == models["c"][name]
    mean = (doubles(F16, models["a"][TEXT].data) + doubles(F16, models["b"][TEXT].data)) / 2
    assert (doubles(F16, found[TEXT].data) == mean.astype(np.float16)).all()
    assert found[POSITIONS] == models["a"][POSITIONS]
    other = merged(tmp_path, "a*0.5 + b*0.5", models)
    assert {n for n in found if found[n] != other.get(n)} == {n for n in found if n.startswith("first_stage_model.")}


@pytest.mark.parametrize(
    ("part", "message"), [("vea", "no component of a Stable Diffusion 1 model is called vea"), ("clip_g", "clip_g")]
)
def test_replacing_what_is_not_there(tmp_path: Path, part: str, message: str) -> None:
    write_models(tmp_path, {"a": sd1(1), "b": sd1(2), "c": sd1(3)})
    with pytest.raises(RecipeError, match=message):
        plan(tmp_path, recipe("s", more=f"steps: {{ s: {{ expr: a, replace: {{ {part}: c }} }} }}\n"))


def test_profiles_by_component_glob_name_and_default(tmp_path: Path) -> None:
    """The narrowest selector wins, in whatever order they are written."""
    models = {"a": sd1(1, code="F32"), "b": sd1(2, code="F32")}
    entries = ["default: 0", "unet: 0.5", "'*.attn2.*': 0.25", f"{FIRST}: 1", "text_encoder: 0.75"]
    share = {FIRST: 1, "model.diffusion_model.out.2.weight": 0.5, CONTEXT: 0.25, TEXT: 0.75, VAE: 0}
    results = []
    for order in (entries, entries[::-1]):
        params = f"params: {{ k: {{ {', '.join(order)} }} }}\n"
        results.append(merged(tmp_path, "weighted_sum(a, b, k)", models, more=params))
    assert results[0] == results[1]
    for name, k in share.items():
        a, b = (doubles(F32, models[m][name].data) for m in "ab")
        wanted = (a * (1 - k) + b * k).astype(np.float32)  # exact in float64 for quarters
        assert (doubles(F32, results[0][name].data) == wanted).all(), name


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ("{ unet: 0.5 }", "says nothing about"),
        ("{ default: 0, nothing.at.all: 1 }", "nothing.at.all"),
        ("{ default: 0, '*.nothing': 1 }", "matches no tensor"),
        ("{ default: 0, '*.weight': 1, 'model.*': 0.5 }", "and disagree"),
        ("{ default: 0, unett: 1 }", "did you mean unet"),
    ],
)
def test_profiles_that_leave_holes_or_disagree(tmp_path: Path, profile: str, message: str) -> None:
    write_models(tmp_path, {"a": sd1(1), "b": sd1(2)})
    with pytest.raises(RecipeError) as caught:
        plan(tmp_path, recipe("weighted_sum(a, b, k)", "ab", more=f"params: {{ k: {profile} }}\n"))
    assert message in str(caught.value)
    assert caught.value.place is not None


# -- values that are not finite ------------------------------------------------------------------------------------


def with_nan() -> dict[str, Model]:
    return of({"w": [1, float("nan"), float("inf"), 4]}, {"w": [1, 2, 3, float("inf")]}, {"w": [1, 1, 1, 1]})


def test_nonfinite_inputs_warn_and_are_counted(tmp_path: Path) -> None:
    heard = Heard()
    write_models(tmp_path, with_nan())
    build(tmp_path, recipe("a + (b - c)*0.5"), heard)
    text = "\n".join(heard.warnings)
    assert "a holds 2 values that are NaN or infinite, in" in text
    assert "b holds 1 value" in text
    assert "mix.safetensors: 3 values are NaN or infinite" in text
    assert "too large" not in text
    got = floats(read(tmp_path / "mix.safetensors")["w"])
    assert got[0] == 1
    assert np.isnan(got[1])
    assert got[2:] == [float("inf")] * 2


def test_nonfinite_error_refuses_before_anything_is_made(tmp_path: Path) -> None:
    write_models(tmp_path, with_nan())
    with pytest.raises(MergeflowError, match="a holds 2 values"):
        build(tmp_path, recipe("a + (b - c)*0.5", more="options: { nonfinite: error }\n"))
    assert not (tmp_path / "mix.safetensors").exists()


def test_nonfinite_allow_says_nothing(tmp_path: Path) -> None:
    heard = Heard()
    write_models(tmp_path, with_nan())
    build(tmp_path, recipe("a + (b - c)*0.5", more="options: { nonfinite: allow }\n"), heard)
    assert heard.warnings == []


def test_nonfinite_values_of_tensors_that_are_not_used_do_not_matter(tmp_path: Path) -> None:
    models = of({"w": [1]}, {"w": [1], "other": [float("nan")]})
    heard = Heard()
    write_models(tmp_path, models)
    build(tmp_path, recipe("a*0.5 + b*0.5", "ab", more="options: { nonfinite: error }\n"), heard)
    assert not [w for w in heard.warnings if "NaN" in w]


@pytest.mark.parametrize(
    ("dtype", "large", "count"),
    [("float16", 70000.0, 3), ("float8_e4m3fn", 470.0, 3), ("float8_e5m2", 70000.0, 3), ("bfloat16", 3.4e38, 3)],
)
def test_overflow_on_the_way_down_is_counted_apart(tmp_path: Path, dtype: str, large: float, count: int) -> None:
    values = [1.0, large, -large, large, float("nan"), 2.0]
    write_models(tmp_path, of({"w": values}, {"w": [1.0] * 6}, {"w": [1.0] * 6}))
    heard = Heard()
    build(tmp_path, recipe("a + (b - c)", dtype=dtype), heard)
    message = next(w for w in heard.warnings if w.startswith("mix.safetensors"))
    assert f"{count + 1} values are NaN or infinite; {count} of them are too large for the output's dtype" in message
    with pytest.raises(MergeflowError, match="a holds 1"):
        build(tmp_path, recipe("a + (b - c)", dtype=dtype, out="no", more="options: { nonfinite: error }\n"))


def test_overflow_alone_is_an_error_when_asked_for_and_nothing_is_left(tmp_path: Path) -> None:
    write_models(tmp_path, of({"w": [70000.0, 1.0]}))
    with pytest.raises(MergeflowError, match="1 of them are too large") as caught:
        build(tmp_path, recipe("a", "a", dtype="float16", more="options: { nonfinite: error }\n"))
    assert caught.value.exit_code == 1
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["a.safetensors", "recipe.yaml"]


# -- differences as files, recipes as sources ----------------------------------------------------------------------


def test_a_difference_is_a_file_that_is_read_back_as_one(tmp_path: Path) -> None:
    models = of({"w": [1, 2]}, {"w": [5, 7]}, {"w": [4, 9]})
    write_models(tmp_path, models)
    build(tmp_path, recipe("b - c", "bc", out="delta", more=""))
    assert metadata(tmp_path / "delta.safetensors")["mergeflow.kind"] == "delta"
    assert floats(read(tmp_path / "delta.safetensors")["w"]) == [1, -2]
    build(tmp_path, recipe("a + delta*0.5", "a delta "))
    assert floats(read(tmp_path / "mix.safetensors")["w"]) == [1.5, 1]
    build(tmp_path, recipe("delta*0.5 + a", "a delta "), force=True)
    assert floats(read(tmp_path / "mix.safetensors")["w"]) == [1.5, 1]
    with pytest.raises(RecipeError, match=r"add up to 0\.5"):
        plan(tmp_path, recipe("a*0.5 + delta", "a delta "))


def test_a_file_can_be_declared_a_difference(tmp_path: Path) -> None:
    write_models(tmp_path, of({"w": [1, 2]}, {"w": [5, 7]}))
    text = (
        HEAD
        + "sources: { a: a.safetensors, b: { path: b.safetensors, kind: delta } }\n"
        + "outputs: { mix.safetensors: a + b }\n"
    )
    build(tmp_path, text)
    assert floats(read(tmp_path / "mix.safetensors")["w"]) == [6, 9]
    assert metadata(tmp_path / "mix.safetensors").get("mergeflow.kind") is None


def test_a_tensor_that_a_delta_file_lacks_adds_nothing(tmp_path: Path) -> None:
    models = of({"w": [1, 2], "v": [3]}, {"w": [5, 7]})
    write_models(tmp_path, models)
    text = (
        HEAD
        + "sources: { a: a.safetensors, b: { path: b.safetensors, kind: delta } }\n"
        + "outputs: { mix.safetensors: a + b*2 }\n"
    )
    build(tmp_path, text)
    assert {k: floats(t) for k, t in read(tmp_path / "mix.safetensors").items()} == {"w": [11, 16], "v": [3]}


def nested(folder: Path) -> str:
    """A recipe that uses a step of another in another folder, which uses one of a third."""
    write_models(folder / "inner", of({"w": [1, 2]}, {"w": [5, 8]}))
    write_models(folder, {"c": of({"w": [3, 3]})["a"]})
    (folder / "inner" / "third.yaml").write_text(
        HEAD + "sources: { a: a.safetensors, b: b.safetensors }\nparams: { k: 0.25, j: 1 }\n"
        "steps: { low: a + (b - a)*k*j }\noutputs: { x.safetensors: low }\n"
    )
    (folder / "inner" / "second.yaml").write_text(
        HEAD + "sources: { t: { recipe: third.yaml, step: low, set: { j: 2 } }, b: b.safetensors }\n"
        "steps: { high: t*0.5 + b*0.5 }\noutputs: { y.safetensors: high }\n"
    )
    return HEAD + "sources: { s: { recipe: inner/second.yaml, step: high }, c: c.safetensors }\n"


def test_steps_of_other_recipes_fuse_into_one_sum(tmp_path: Path) -> None:
    text = nested(tmp_path) + "outputs: { mix.safetensors: s + (c - s)*0.5 }\n"
    build(tmp_path, text)
    assert floats(read(tmp_path / "mix.safetensors")["w"]) == [3.5, 4.75]
    flat = HEAD + (
        "sources: { a: inner/a.safetensors, b: inner/b.safetensors, c: c.safetensors }\n"
        "outputs: { mix.safetensors: a*0.125 + b*0.375 + (c*0.5) }\n"
    )
    assert not plan(tmp_path, flat).outputs[0].build  # by key: it is up to date


def test_params_of_nested_recipes_can_be_set(tmp_path: Path) -> None:
    text = nested(tmp_path).replace("step: high }", "step: high, set: { q: 1 } }") + "outputs: { mix.safetensors: s }\n"
    with pytest.raises(RecipeError, match="q"):
        plan(tmp_path, text)
    direct = HEAD + (
        "sources: { t: { recipe: inner/third.yaml, step: low, set: { k: 0.5, j: 0.5 } } }\n"
        "outputs: { mix.safetensors: t }\n"
    )
    build(tmp_path, direct)
    assert floats(read(tmp_path / "mix.safetensors")["w"]) == [2, 3.5]


def test_recipes_that_use_each_other_in_a_circle_are_refused(tmp_path: Path) -> None:
    one = HEAD + "sources: { o: { recipe: other.yaml, step: s } }\nsteps: { s: o }\noutputs: { mix.safetensors: s }\n"
    (tmp_path / "other.yaml").write_text(one.replace("other.yaml", "recipe.yaml"))
    with pytest.raises(RecipeError, match="leads back"):
        plan(tmp_path, one)
