"""policy: a1111 gives the bytes of A1111's merger, compared with an implementation of its description in torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from a1111.webui import SKIP, State, merger
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support.builds import Heard, build, plan, python
from support.checkpoints import metadata

from mergeflow.cli.describe import describe
from mergeflow.cli.plan import _output
from mergeflow.digest import action_key
from mergeflow.errors import RecipeError
from mergeflow.plan.planner import tensor_preimage

FIRST = "model.diffusion_model.input_blocks.0.0.weight"
KEY = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
OUT = "model.diffusion_model.out.2.bias"
NORM = "cond_stage_model.transformer.text_model.final_layer_norm.weight"
VAE = "first_stage_model.decoder.conv_in.weight"
EMA, DECAY, UPDATES = "model_ema.diffusion_modelout2bias", "model_ema.decay", "model_ema.num_updates"
SCHEDULE = "alphas_cumprod"
SHAPES = {FIRST: (8, 4, 3, 3), KEY: (2, 768), OUT: (5,), NORM: (768,), VAE: (2, 4, 3, 3), EMA: (5,), DECAY: (),
          SCHEDULE: (100,)}  # fmt: skip
F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
NUMBERS = ("0.3", "0.05", "0.9", "1", "0")


def model(seed: int, dtype: torch.dtype = F16, *, channels: int = 4, ema: bool = True, scale: float = 0.05) -> State:
    draw = torch.Generator().manual_seed(seed)
    shapes = {**SHAPES, FIRST: (8, channels, 3, 3)}
    state = {name: (torch.randn(shape, generator=draw) * scale).to(dtype) for name, shape in shapes.items()}
    state[SKIP[0]] = torch.arange(77).reshape(1, 77) + seed
    if ema:
        return state
    return {name: t for name, t in state.items() if not name.startswith("model_ema")}


def recipe(text: str, *, policy: str = "a1111", dtype: str = "") -> str:
    """A recipe over a, b, c and d; `text` is the expression, or steps before it, a line each."""
    *steps, last = text.splitlines()
    lines = [
        "mergeflow: 1",
        "sources:",
        *(f"  {n}: {n}.safetensors" for n in "abcd"),
        f"options: {{ policy: {policy} }}",
    ]
    if steps:
        lines += ["steps:", *(f"  {step}" for step in steps)]
    wanted = f", dtype: {dtype}" if dtype else ""
    return "\n".join([*lines, f'outputs: {{ mix.safetensors: {{ from: "{last}"{wanted} }} }}', ""])


def write(folder: Path, **models: State) -> None:
    for name in "abcd":
        save_file(models.get(name, models["a"]), folder / f"{name}.safetensors")


def made(folder: Path, text: str, *, dtype: str = "", policy: str = "a1111", **models: State) -> State:
    write(folder, **models)
    build(folder, recipe(text, dtype=dtype, policy=policy), force=True)
    return load_file(folder / "mix.safetensors")


def assert_same_bits(got: State, wanted: State) -> None:
    assert got.keys() == wanted.keys()
    for name, want in wanted.items():
        have = got[name]
        assert (have.dtype, have.shape) == (want.dtype, want.shape), name
        assert torch.equal(have.reshape(-1).view(torch.uint8), want.contiguous().reshape(-1).view(torch.uint8)), name


@pytest.mark.parametrize("m", NUMBERS)
@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64], ids=str)
def test_models_of_one_dtype(dtype: torch.dtype, m: str, tmp_path: Path) -> None:
    a, b, c = (model(i, dtype) for i in range(3))
    got = made(tmp_path, f"weighted_sum(a, b, {m})", a=a, b=b)
    assert_same_bits(got, merger(a, b, m=float(m)))
    got = made(tmp_path, f"a + (b - c) * {m}", a=a, b=b, c=c)
    assert_same_bits(got, merger(a, b, c, float(m)))


@pytest.mark.parametrize("half", ["", "float16"])
@pytest.mark.parametrize(
    "dtypes",
    [(F16, F32, F32), (F32, F16, F16), (F16, F16, F32), (F16, BF16, BF16), (BF16, F16, F32), (BF16, BF16, F16),
     (F64, F16, BF16), (F16, F64, F32), (F32, F32, F32)],
    ids=lambda dtypes: "-".join(str(d)[6:] for d in dtypes),
)  # fmt: skip
def test_mixed_dtypes_and_save_as_half(dtypes: tuple[torch.dtype, ...], half: str, tmp_path: Path) -> None:
    a, b, c = (model(i, dtype) for i, dtype in enumerate(dtypes))
    del b[OUT], b[SCHEDULE]  # not merged, hence not halved
    got = made(tmp_path, "a*0.95 + b*0.05", dtype=half, a=a, b=b)
    assert_same_bits(got, merger(a, b, m=0.05, half=bool(half)))
    assert got[OUT].dtype is got[SCHEDULE].dtype is dtypes[0]
    got = made(tmp_path, "add_difference(a, b, c, 0.3)", dtype=half, a=a, b=b, c=c)
    assert_same_bits(got, merger(a, b, c, 0.3, half=bool(half)))


@pytest.mark.parametrize("dtype", [F16, F32], ids=str)
def test_tensors_that_are_not_everywhere(dtype: torch.dtype, tmp_path: Path) -> None:
    a, b, c = model(0), model(1, dtype), model(2)
    a[KEY][0, :9] = -0.0  # where C lacks a tensor, zeros are added
    a[SCHEDULE + "_only_a"], b["model.only_b"], c["model.only_c"] = torch.ones(2), torch.ones(2), torch.ones(2)
    del b[OUT], c[KEY], c[NORM], b[VAE], c[VAE], a[EMA]
    got = made(tmp_path, "a + (b - c) * 0.3", a=a, b=b, c=c)
    assert_same_bits(got, merger(a, b, c, 0.3))
    assert got[KEY].dtype is dtype
    assert_same_bits(made(tmp_path, "a - (b - c) * 0.3", a=a, b=b, c=c), merger(a, b, c, -0.3))
    assert_same_bits(made(tmp_path, "a*0.7 + b*0.3", a=a, b=b), merger(a, b, m=0.3))


def test_an_infinity_where_c_lacks_the_tensor_stays(tmp_path: Path) -> None:
    a, b, c = model(0), model(1, F32), model(2)
    a[OUT][0] = float("inf")
    del c[OUT]
    got = made(tmp_path, "a + (b - c) * 0.3", a=a, b=b, c=c)
    assert_same_bits(got, merger(a, b, c, 0.3))


def test_what_is_skipped_and_what_is_not(tmp_path: Path) -> None:
    a, b = model(0), model(1)
    got = made(tmp_path, "weighted_sum(a, b, 0.3)", a=a, b=b)
    for name in (SKIP[0], SCHEDULE):
        assert torch.equal(got[name], a[name])
    for name in (EMA, DECAY, VAE, NORM):
        assert not torch.equal(got[name], a[name])
    exact = made(tmp_path, "weighted_sum(a, b, 0.3)", policy="exact", a=a, b=b)
    assert not torch.equal(got[KEY], exact[KEY])
    assert torch.equal(exact[DECAY], a[DECAY])


def test_integers_stay_the_first_models(tmp_path: Path) -> None:
    """The one difference of dtype: the merger makes float32 of them."""
    a, b = ({**model(i), UPDATES: torch.tensor(100 + i, dtype=torch.int32)} for i in range(2))
    got = made(tmp_path, "weighted_sum(a, b, 0.5)", a=a, b=b)
    wanted = merger(a, b, m=0.5)
    assert wanted[UPDATES].dtype is F32
    assert got.pop(UPDATES).equal(a[UPDATES])
    del wanted[UPDATES]
    assert_same_bits(got, wanted)


@pytest.mark.parametrize("half", ["", "float16"])
@pytest.mark.parametrize("channels", [8, 9])
@pytest.mark.parametrize("dtypes", [(F16, F16), (F32, F16), (F16, F32), (F32, F32), (BF16, F16)], ids=str)
def test_inpainting_and_pix2pix(dtypes: tuple[torch.dtype, ...], channels: int, half: str, tmp_path: Path) -> None:
    a = model(0, dtypes[0], channels=channels, ema=False)
    b, c, d = (model(i, dtypes[1]) for i in (1, 2, 3))
    got = made(tmp_path, "a + (b - c) * 1", dtype=half, a=a, b=b, c=c)
    assert_same_bits(got, merger(a, b, c, 1.0, half=bool(half)))
    got = made(tmp_path, "weighted_sum(a, b, 0.3)", dtype=half, a=a, b=b)
    assert_same_bits(got, merger(a, b, m=0.3, half=bool(half)))
    got = made(tmp_path, "one: a + (b - c) * 0.7\nweighted_sum(one, d, 0.3)", dtype=half, a=a, b=b, c=c, d=d)
    assert_same_bits(got, merger(merger(a, b, c, 0.7), d, m=0.3, half=bool(half)))


def test_two_inpainting_models_are_merged_whole(tmp_path: Path) -> None:
    a, b = model(0, channels=9), model(1, channels=9)
    assert_same_bits(made(tmp_path, "weighted_sum(a, b, 0.3)", a=a, b=b), merger(a, b, m=0.3))


def test_chains_round_at_each_step(tmp_path: Path) -> None:
    a, b, c, d = model(0, F32), model(1), model(2), model(3, BF16)
    text = "one: a + (b - c) * 0.3\ntwo: { expr: 'weighted_sum(one, d, 0.25)', round: float16 }\ntwo + (one - b)"
    one = merger(a, b, c, 0.3)
    two = merger(one, d, m=0.25, half=True)
    assert_same_bits(made(tmp_path, text, a=a, b=b, c=c, d=d), merger(two, one, b, 1.0))
    assert_same_bits(
        made(tmp_path, "sum_twice(a, b, c, 0.3, 0.6)", a=a, b=b, c=c), merger(merger(a, b, m=0.3), c, m=0.6)
    )


def test_the_two_orders_are_two_files(tmp_path: Path) -> None:
    models = {name: model(i) for i, name in enumerate("abcd")}
    one = made(tmp_path, "x: a + (b - c)\nx + (d - b)", **models)
    two = made(tmp_path, "x: a + (d - b)\nx + (b - c)", **models)
    assert not torch.equal(one[KEY], two[KEY])


@pytest.mark.parametrize("dtype", [F16, F32, BF16], ids=str)
def test_no_merge_is_no_interpolation(dtype: torch.dtype, tmp_path: Path) -> None:
    a = model(0, dtype)
    assert_same_bits(made(tmp_path, "a", a=a), merger(a))
    assert_same_bits(made(tmp_path, "a", dtype="float16", a=a), merger(a, half=True))


@settings(max_examples=15)
@given(
    st.integers(0, 2**31),
    st.sampled_from([F16, BF16]),
    st.floats(-2, 2, width=32),
    st.sampled_from([1e-7, 1e-3, 1, 3e3]),
)
def test_any_number_and_any_magnitude(
    tmp_path_factory: pytest.TempPathFactory, seed: int, dtype: torch.dtype, m: float, scale: float
) -> None:
    folder = tmp_path_factory.mktemp("any")
    a, b, c = (model(seed + i, dtype, scale=scale) for i in range(3))
    text = f"{abs(m):.12f}"
    number = float(text) if m >= 0 else -float(text)
    sign = "+" if m >= 0 else "-"
    assert_same_bits(made(folder, f"a {sign} (b - c) * {text}", a=a, b=b, c=c), merger(a, b, c, number))
    assert_same_bits(made(folder, f"weighted_sum(a, b, {text})", a=a, b=b), merger(a, b, m=float(text)))


def test_large_tensors_are_cut_and_the_bytes_do_not_depend_on_the_cpu(tmp_path: Path) -> None:
    name = "model.diffusion_model.large.weight"
    big = [
        {**model(i), name: torch.randn(1_500_007, generator=torch.Generator().manual_seed(i)).half()} for i in range(3)
    ]
    a, b, c = big
    assert_same_bits(made(tmp_path, "a + (b - c) * 0.3", a=a, b=b, c=c), merger(a, b, c, 0.3))
    code = (
        "import sys, pathlib; from support.builds import build;"
        "folder = pathlib.Path(sys.argv[1]); build(folder, (folder / 'recipe.yaml').read_text(), force=True)"
    )
    first = (tmp_path / "mix.safetensors").read_bytes()
    python(code, tmp_path, ATEN_CPU_CAPABILITY="default")
    assert (tmp_path / "mix.safetensors").read_bytes() == first


def test_the_policy_is_in_the_file_and_in_every_key(tmp_path: Path) -> None:
    write(tmp_path, a=model(0), b=model(1), c=model(2))
    heard = Heard()
    build(tmp_path, recipe("a + (b - c) * 0.3", policy="exact"), heard)
    assert "a1111" not in metadata(tmp_path / "mix.safetensors")["mergeflow"]
    planned = plan(tmp_path, recipe("a + (b - c) * 0.3"))
    (output,) = planned.outputs
    assert output.reason == "the policy changed: exact → a1111"
    (exact,) = plan(tmp_path, recipe("a + (b - c) * 0.3", policy="exact")).outputs
    computed = [{w.key for w in o.works if w.program >= 0} for o in (exact, output)]
    assert computed[0].isdisjoint(computed[1])
    for work in output.works:
        assert action_key(tensor_preimage(planned, output, work.name)) == work.key
        assert "policy a1111" in tensor_preimage(planned, output, work.name) or work.program < 0
    (entry,) = describe(planned)["outputs"]
    assert entry["policy"] == "a1111"
    assert any("policy a1111: step by step" in line for line in _output(entry, brief=False))
    build(tmp_path, recipe("a + (b - c) * 0.3"), heard)
    said = metadata(tmp_path / "mix.safetensors")["mergeflow"]
    assert '"policy":"a1111"' in said
    assert '["add difference",2,1,0,"0.3"]' in said  # the numbers of earlier entries
    assert plan(tmp_path, recipe("a + (b - c) * 0.3")).outputs[0].reason == "it is up to date"


@pytest.mark.parametrize(
    ("text", "dtype", "message"),
    [
        ("a + b*0.3 - c*0.3", "", "mix.safetensors holds a sum of 3 terms"),
        ("x: b - c\ny: average(a, b, c)\ny + x", "", "y holds a sum of 3 terms"),
        ("a + (b*0.3 - c*0.3)", "", "the sum 0.3·x + -0.3·y"),
        ("b - c", "", "a result that is no model"),
        ("(b - c) + (c - d)", "", "a sum of differences"),
        ("scale(a, 1.05)", "", "scale() or normalize=false"),
        ("x: { expr: a, like: b }\nx", "", "x holds like:"),
        ("x: { expr: a, replace: { vae: b } }\nx", "", "x holds replace:"),
        ("x: { expr: a, round: bfloat16 }\nx", "", "x holds round: bfloat16"),
        ("a*0.5 + b*0.5", "float32", "an output keeps its tensors' dtypes"),
    ],
)
def test_what_that_merger_cannot_do_is_refused(text: str, dtype: str, message: str, tmp_path: Path) -> None:
    write(tmp_path, a=model(0))
    with pytest.raises(RecipeError) as caught:
        plan(tmp_path, recipe(text, dtype=dtype))
    assert message in caught.value.message
    assert caught.value.place is not None
    assert caught.value.place.line > 1
    assert caught.value.hint


def test_profiles_are_refused(tmp_path: Path) -> None:
    write(tmp_path, a=model(0))
    text = recipe("weighted_sum(a, b, k)") + "params: { k: { default: 0.3, vae: 0 } }\n"
    with pytest.raises(RecipeError, match="a number that differs from tensor to tensor"):
        plan(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("weighted_sum(b, a, 0.3)", "9 input channels in B and 4 in A"),
        ("a + (b - d) * 0.3", "has the shapes"),
        ("x: a*0.5 + d*0.5\nx + (b - c)", "once with a model as wide and once with a narrower one"),
        ("x: a + (b - c)\nx*0.5 + d*0.5", "once with a model as wide and once with a narrower one"),
    ],
)
def test_widths_that_do_not_go_together(text: str, message: str, tmp_path: Path) -> None:
    write(tmp_path, a=model(0, channels=9), b=model(1), c=model(2), d=model(3, channels=9))
    with pytest.raises(RecipeError) as caught:
        plan(tmp_path, recipe(text))
    assert message in caught.value.message


def test_dtypes_without_such_arithmetic_are_refused(tmp_path: Path) -> None:
    b = model(1)
    write(tmp_path, a=model(0), b={**b, KEY: b[KEY].to(torch.float8_e4m3fn)}, c={**b, KEY: torch.ones(2, 768).int()})
    for name, message in (("b", "torch cannot add such tensors"), ("c", "it is floating point in another")):
        with pytest.raises(RecipeError, match=message):
            plan(tmp_path, recipe(f"weighted_sum(a, {name}, 0.3)"))
