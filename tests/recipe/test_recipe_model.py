"""What each key of a recipe becomes, and what is refused by name."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pydantic
import pytest
from recipe_texts import HEAD, SMALL, answer, check

from mergeflow.recipe import Expression, loads
from mergeflow.tensors import DType

SHA = "89D5" * 16


def codes(expression: Expression | None) -> list[tuple[str, object]]:
    assert expression is not None
    return [(i.op, i.value) for i in expression.code]


def test_the_smallest_recipe() -> None:
    recipe = loads(SMALL, "mix.yaml", Path("/recipes"))
    assert list(recipe.sources) == ["a", "b", "c"]
    assert recipe.sources["a"].path == "a.safetensors"
    assert recipe.sources["a"].folder == Path("/recipes")
    output = recipe.outputs["mix.safetensors"]
    assert output.expr.text == "a + (b - c) * 0.3"
    assert (output.dtype, output.embed, output.metadata) == (None, "sidecar", {})
    assert recipe.options.compute == "auto"
    assert recipe.text == SMALL
    with pytest.raises(pydantic.ValidationError):
        recipe.name = "other"


def test_sources() -> None:
    recipe = loads(
        HEAD
        + f"""\
arch: sd1
sources:
  'Anything-V3.0': models\\Anything V3.ckpt
  NAI NSFW: {{ path: 'D:\\models\\nai.ckpt', sha256: {SHA}, hash: 925997E9, size: 4265380512, kind: model, arch: sd1 }}
  hard: abyss.yaml#hard
  soft: {{ recipe: ../abyss.yml, step: soft, set: {{ m: 0.25, k.OUT: 1 }}, license: other }}
  odd: a#b.ckpt
  all: [one.ckpt, {{ path: two.ckpt, kind: delta }}, abyss.yaml#hard]
"""
    )
    source = recipe.sources
    assert source["Anything-V3.0"].path == "models/Anything V3.ckpt"
    nai = source["NAI NSFW"]
    assert (nai.path, nai.sha256, nai.hash, nai.size) == ("D:\\models\\nai.ckpt", SHA.lower(), "925997E9", 4265380512)
    assert (source["hard"].recipe, source["hard"].step, source["hard"].path) == ("abyss.yaml", "hard", None)
    assert (source["soft"].recipe, source["soft"].set) == ("../abyss.yml", {"m": "0.25", "k.OUT": "1"})
    assert source["odd"].path == "a#b.ckpt"
    assert [s.path or s.recipe for s in source["all"].many] == ["one.ckpt", "two.ckpt", "abyss.yaml"]
    assert source["all"].many[1].kind == "delta"


def test_names_are_normalised() -> None:
    recipe = loads(HEAD + "sources: { ﾊﾞｼﾞﾙ: a.ckpt }\nsteps: { ｘ: バジル }\n")
    assert list(recipe.sources) == ["バジル"]
    assert recipe.steps["x"].expr.names == ("バジル",)


def test_params() -> None:
    recipe = loads(HEAD + 'params:\n  m: 0.3\n  n: m * 2\n  k: { default: 0, IN00-IN05: 0.3, "*.attn1.*": m }\n')
    m, n, k = recipe.params.values()
    assert codes(m.value) == [("number", Fraction(3, 10))]
    assert n.value.names == ("m",)
    assert (m.is_profile, k.is_profile) == (False, True)
    assert codes(k.default) == [("number", 0)]
    assert [(e.selector, e.numbers[0].text, str(e.place)) for e in k.profile] == [
        ("IN00-IN05", "0.3", "recipe.yaml:5:20"), ("*.attn1.*", "m", "recipe.yaml:5:36"),
    ]  # fmt: skip


def test_block_weights() -> None:
    recipe = loads(
        HEAD
        + """\
params:
  p: { preset: SMOOTHSTEP*2, BASE: 0.3 }
  w:
    mbw: 1,0.9,0.7
    blocks: sd1
  l: { mbw: [1, 0.9, .7e0], '*mlp*': { gradient: [1, m / 2, 0] } }
"""
    )
    p, w, l = recipe.params.values()  # noqa: E741
    assert (p.listed.preset, p.listed.mbw, p.listed.blocks) == ("SMOOTHSTEP*2", None, None)
    assert [e.selector for e in p.profile] == ["BASE"]
    assert (w.listed.mbw, w.listed.blocks, str(w.listed.place)) == ("1,0.9,0.7", "sd1", "recipe.yaml:5:10")
    assert w.default is None
    assert w.profile == ()
    assert w.is_profile
    assert l.listed.mbw == "1, 0.9, .7e0"
    assert [number.text for number in l.profile[0].numbers] == ["1", "m / 2", "0"]
    assert [e.text for e in l.expressions] == ["1", "m / 2", "0"]
    with pytest.raises(pydantic.ValidationError, match="either preset: or mbw:"):
        type(p.listed)(preset="COSINE", mbw="1,0")


def test_steps() -> None:
    recipe = loads(
        HEAD
        + """\
steps:
  short: a + b
  long: { expr: a, round: fp16, like: 'b c', replace: { vae: v }, note: why }
  call: { method: slerp, a: lewd, b: final, t: 0.5, flags: [x, [y @ 2]] }
  names: { method: ties, models: { a: 0.5, 'b-c': { weight: 1 - m } }, density: 0.2, round: bfloat16 }
  items: { method: ties, models: [a @ 0.5, b] }
"""
    )
    short, long, call, names, items = recipe.steps.values()
    assert (short.expr.text, short.method, short.arguments) == ("a + b", None, {})
    assert (long.round, long.like, long.note) == (DType.F16, "b c", "why")
    assert long.replace["vae"].names == ("v",)
    assert (call.expr, call.method, list(call.arguments)) == (None, "slerp", ["a", "b", "t", "flags"])
    assert codes(call.arguments["flags"])[-2:] == [("list", 1), ("list", 2)]
    assert codes(names.arguments["models"]) == [
        ("name", "a"), ("number", Fraction(1, 2)), ("weight", None),
        ("name", "b-c"), ("number", 1), ("name", "m"), ("sum", (1, -1)), ("weight", None), ("list", 2),
    ]  # fmt: skip
    assert names.arguments["models"].text == "[a @ (0.5), 'b-c' @ (1 - m)]"
    assert names.round is DType.BF16
    assert items.arguments["models"].text == "[a @ 0.5, b]"
    assert str(names.place) == "recipe.yaml:6:3"


def test_defaults_reach_every_output() -> None:
    recipe = loads(
        HEAD
        + """\
defaults: { dtype: float16, metadata: { author: me, title: all }, embed: recipe, replace: { vae: v } }
outputs:
  a.safetensors: x
  b/b.safetensors: { from: x, dtype: full, metadata: { title: b }, embed: none, like: x, note: n, replace: { t: u } }
"""
    )
    a, b = recipe.outputs.values()
    assert (a.dtype, a.metadata, a.embed, list(a.replace)) == (
        DType.F16, {"author": "me", "title": "all"}, "recipe", ["vae"],
    )  # fmt: skip
    assert (b.dtype, b.metadata, b.embed, list(b.replace)) == (
        DType.F32, {"author": "me", "title": "b"}, "none", ["vae", "t"],
    )  # fmt: skip
    assert (b.like, b.note) == ("x", "n")


def test_asserts_options_and_extras() -> None:
    recipe = loads(
        HEAD
        + """\
assert: [a == b, 0 <= m <= 1]
options: { compute: fp64, missing: error, nonfinite: allow }
x-mine: { list: [1, two], note: }
"""
    )
    assert [len(a.rest) for a in recipe.asserts] == [1, 2]
    assert recipe.asserts[1].rest[1][1].place(0).column == 28
    assert (recipe.options.compute, recipe.options.missing, recipe.options.nonfinite) == (DType.F64, "error", "allow")
    assert recipe.extras == {"x-mine": {"list": ["1", "two"], "note": ""}}
    assert len(loads(HEAD + "assert: a == b\n").asserts) == 1


def test_output_paths() -> None:
    recipe = loads(
        HEAD + "outputs:\n  ./build\\x.safetensors: a\n  'C:\\out\\y.SafeTensors': a\n  柚子 1.safetensors: a\n"
    )
    assert list(recipe.outputs) == ["./build/x.safetensors", "C:\\out\\y.SafeTensors", "柚子 1.safetensors"]


REFUSED = [
    # (recipe after the head, place, message, hint)
    ("sweep: {}", "2:1", "a sweep is the value of a param", "params:"),
    ("functions: {}", "2:1", "functions: is not in this version", ""),
    ("step: {}", "2:1", "a recipe has no key step", "did you mean steps?"),
    ("Outputs: {}", "2:1", "a recipe has no key Outputs", "did you mean outputs?"),
    ("models: {}", "2:1", "called sources", ""),
    ("sources: { a: hf:org/repo }", "2:15", "a whole repository of Hugging Face (hf:) is not", "hf:org/repo/FILE"),
    ("sources: { a: gs://bucket/x }", "2:15", "object store", "give its path"),
    ("sources: { a: { url: x } }", "2:22", "x is no address", "https://"),
    ("sources: { a: { hf: x } }", "2:21", "hf:x is no file on Hugging Face", "owner/repo/file@revision"),
    ("sources: { a: { hf: a/b/../c } }", "2:21", "is no file on Hugging Face", ""),
    ("sources: { a: { civitai: x } }", "2:26", "civitai:x is no number of a model version", "modelVersionId"),
    ("sources: { a: https://civitai.com/models/42/x }", "2:15", "several versions", "?modelVersionId=NUMBER"),
    ("sources: { a: https://x }", "2:15", "https://x is no address of a file", ""),
    ("sources: { a: { path: hf:a/b/c } }", "2:23", "path: names a file, and this is an address", "write url:"),
    ("sources: { a: { hf: a/b/c, civitai: 1 } }", "2:28", "two addresses, hf: and civitai:", ""),
    ("sources: { a: sha256:12ab }", "2:15", "a sha256 is 64 hexadecimal digits, this has 4", ""),
    (f"sources: {{ a: {{ sha256: {SHA}, step: x }} }}", "2:91", "step: does not go with sha256:", ""),
    ("sources: { a: { path: x, ema: yes } }", "2:31", "ema cannot be yes", ""),
    ("sources: { a: { path: x, kind: lora } }", "2:32", "kind: lora is not in this version", "kind: delta"),
    ("sources: { a: { path: x, kind: VAE } }", "2:32", "kind cannot be VAE", "did you mean vae?"),
    ("sources: { a: { path: x, kind: modelx } }", "2:32", "kind cannot be modelx", "did you mean model?"),
    ("sources: { a: { pth: x } }", "2:17", "the source a has no key pth", "did you mean path?"),
    ("sources: { a: { size: 3 } }", "2:15", "the source a has no path", ""),
    ("sources: { a: { path: x, sha256: 12ab } }", "2:34", "a sha256 is 64 hexadecimal digits, this has 4", ""),
    ("sources: { a: { path: x, hash: 12ab } }", "2:32", "a hash is 8, 10, 12 or 64", ""),
    ("sources: { a: { path: x, hash: 'b3:12ab' } }", "2:32", "the digest of a model is b3: and 64", ""),
    ("sources: { a: { path: x, size: 4GB } }", "2:32", "a size is a whole number of bytes", ""),
    ("sources: { a: { path: x, recipe: y.yaml } }", "2:26", "either a path: or a recipe:", ""),
    ("sources: { a: { path: x, step: y } }", "2:26", "step: does not go with path:", ""),
    ("sources: { a: { recipe: x.yaml, step: s, hash: 12345678 } }", "2:42", "hash: does not go with recipe:", ""),
    ("sources: { a: { recipe: x.yaml } }", "2:25", "a recipe is a source by one of its steps", "add step:"),
    ("sources: { a: { recipe: x.ckpt, step: s } }", "2:25", "x.ckpt is not a recipe", ""),
    ("sources: { a: { path: x.yaml } }", "2:23", "path: names a model file", "recipe:"),
    ("sources: { a: x.yaml }", "2:15", "a recipe is a source by one of its steps", "x.yaml#STEP"),
    ("sources: { a: [] }", "2:15", "an empty list", ""),
    ("sources: { a: [[x]] }", "2:16", "not lists", ""),
    ("sources: [a, b]", "2:10", "sources is a mapping", "a name, a colon and the source"),
    ("sources: { ' a': x }", "2:12", "begins or ends with a space", ""),
    ("sources: { \"a'\\\"\": x }", "2:12", "both kinds of quotes", ""),
    ("params: { s: 0:1:0.25 }", "2:14", "0:1:0.25 is a range of numbers", "{ sweep: { from: 0, to: 1, by: 0.25 } }"),
    ("params: { s: { sweep: 1 } }", "2:23", "the sweep s is a list, a range or a mapping", "[0, 0.5, 1]"),
    ("params: { s: { sweep: [] } }", "2:23", "the sweep s has no value", ""),
    ("params: { s: { sweep: {} } }", "2:23", "the sweep s has no value", ""),
    ("params: { s: { sweep: [0], default: 1 } }", "2:28", "sweep: stands alone in a param", "{ default: s, vae"),
    ("params: { s: { sweep: [[0]] } }", "2:24", "a number, a model or a profile, not a list", ""),
    ("params: { s: { sweep: [{ default: 0 }] } }", "2:24", "a profile in a sweep needs a label", "{ soft: { … } }"),
    ("params: { s: { sweep: { x: { sweep: [0] } } } }", "2:30", "a sweep has no sweep in it", "make a grid"),
    ("params: { s: { sweep: [30%] } }", "2:24", "30% is not a number here", "write 0.3"),
    ("params: { s: { sweep: { from: 0, to: 1 } } }", "2:23", "the range of the sweep s has no by:", "by: 0.25"),
    ("params: { s: { sweep: { from: 0, to: 1, step: 1 } } }", "2:41", "the step of a range is by:", ""),
    ("params: { s: { sweep: { from: 0, to: 1, by: 1, x: 1 } } }", "2:48", "has no key x", "by, from, to"),
    ("params: { s: { sweep: { from: 0, to: 1, by: 0 } } }", "2:45", "does not move in steps of 0", ""),
    ("params: { s: { sweep: { from: 0, to: 1, by: -0.1 } } }", "2:45", "steps of -0.1 do not lead from 0", "by: 0.1"),
    ("params: { s: { sweep: { from: 0, to: m, by: 1 } } }", "2:38", "to of the sweep s is a plain number", "m * 2"),
    ("params: { s: { sweep: { from: 0, to: 1, by: 1e-9 } } }", "2:23", "has 1,000,000,001 values; at most 1,000", ""),
    ("params: { k: { default: { sweep: [0] } } }", "2:27", "a line of a profile has no sweep", "{ default: s }"),
    ("params: { k: { default: 0, OUT: { sweep: [0] } } }", "2:35", "a line of a profile has no sweep", ""),
    ("params: { s: [0, 1] }", "2:14", "a list of numbers by block is an mbw:", 'write { mbw: "1,0.9,…", BASE: 0 }'),
    ("params:\n  k: 1,0.9,0.7,0", "3:6", "a list of numbers by block is an mbw:", "mbw:"),
    ("params:\n  k: 0,3", "3:6", "0,3 is not a number here", "write 0.3"),
    ("params:\n  k: 30%", "3:6", "30% is not a number here", "write 0.3"),
    ("params: { k: { preset: COSINE, mbw: '1,0' } }", "2:37", "either preset: or mbw:, not both", ""),
    ("params: { k: { preset: [COSINE] } }", "2:24", "preset is one text, not a list", ""),
    ("params: { k: { mbw: { IN00: 1 } } }", "2:21", "mbw is one text, not a mapping", ""),
    ("params: { k: { mbw: [1, [0]] } }", "2:25", "a number of mbw is one text, not a list", ""),
    ("params: { k: { lbw: '1,0' } }", "2:16", "lbw: is not in this version", "by block"),
    ("params: { k: { blocks: sd1, default: 0 } }", "2:24", "blocks: says what a preset: or an mbw: list", ""),
    ("params: { k: { gradient: [1, 0] } }", "2:16", "a gradient runs over the blocks of a selector", "'*': {"),
    ("params: { k: { default: { gradient: [1, 0] } } }", "2:25", "default of the param k is one number", "'*'"),
    ("params: { k: { default: 0, '*': { gradient: [1] } } }", "2:45", "a list of two numbers or more", "[1, 0.5, 0]"),
    ("params: { k: { default: 0, '*': { gradient: 1 } } }", "2:45", "a list of two numbers or more", ""),
    ("params: { k: { default: 0, '*': { gradent: [1, 0] } } }", "2:35", "has no key gradent", "did you mean gradient?"),
    ("params: { k: { default: 0, '*': {} } }", "2:33", "* of the param k has no value", "gradient"),
    ("params: { k: { default: 0, OUT: [1, 0] } }", "2:33", "OUT of the param k is one number", "{ gradient: [1,"),
    ("params: { k: { value: 1, min: 0 } }", "2:16", "a param is a number itself", "write k: 0.3"),
    ("params: { k: {} }", "2:14", "the param k has no value", ""),
    ("steps: { x: { expr: a, keep: maybe } }", "2:30", "keep cannot be maybe", "one of true, false"),
    ("steps: { x: { method: f, keep: 1 } }", "2:32", "keep cannot be 1", "one of true, false"),
    ("steps: { x: { expr: a, method: f } }", "2:24", "either expr: or method:", ""),
    ("steps: { x: { round: float16 } }", "2:13", "neither expr: nor method:", ""),
    ("steps: { x: { expr: a, vae: v } }", "2:24", "vae is not an option of a step", "replace: { vae: a_model }"),
    ("steps: { x: { expr: a, dtype: float16 } }", "2:24", "a step has no dtype", "round:"),
    ("steps: { x: { expr: a, rond: float16 } }", "2:24", "the step x has no key rond", "did you mean round?"),
    ("steps: { x: { expr: a, round: flaot16 } }", "2:31", "flaot16 is no floating point dtype", "float16"),
    ("steps: { x: { expr: a, round: int8 } }", "2:31", "int8 is no floating point dtype", ""),
    ("steps: { x: { method: 'f g' } }", "2:23", "f g is not the name of a method", ""),
    ("steps: { x: { method: f, 'a b': 1 } }", "2:26", "a b is not an argument of a method", ""),
    ("steps: { x: { method: f, a: { b: 1 } } }", "2:29", "a of the step x is one text, not a mapping", ""),
    ("steps: { x: { method: f, models: { a: { density: 1 } } } }", "2:41", "density: for one model", ""),
    ("steps: { x: [a] }", "2:13", "not a list", ""),
    ("steps: { x: a[0:16] }", "2:14", "YAML cannot read this line", "inside brackets"),
    ("steps:\n  x: a[0:16]", "3:7", "layer slices", ""),
    ("assert: [a + b]", "2:10", "an assertion compares", "final == a + b - c"),
    ("assert: { a: b }", "2:9", "assert is a list of comparisons", ""),
    ("defaults: { from: a }", "2:13", "from: is given per output", ""),
    ("defaults: { shard_size: 5 }", "2:25", "5 is not a size", "5GB"),
    ("defaults: { shard_size: 5 giga }", "2:25", "5 giga is not a size", "5GB"),
    ("defaults: { shard_size: 10KB }", "2:25", "shards of 10KB would be too small", "1MB is the least"),
    ("defaults: { shard_size: 5GB }\noutputs: { x.pt: a }", "3:18", "a .pt file is not written in shards", ""),
    ("outputs: { x.pt: { from: a, shard_size: 5GB } }", "2:41", "a .pt file is not written in shards", ".safetensors"),
    ("defaults: { metadata_for: a1112 }", "2:27", "metadata_for cannot be a1112", "did you mean a1111?"),
    ("defaults: { sidecars: [md5] }", "2:24", "sidecars cannot be md5", "config, sha256"),
    ("options: { seed: -1 }", "2:18", "a seed is a whole number", ""),
    ("options: { policy: a111 }", "2:20", "policy cannot be a111", "did you mean a1111?"),
    ("options: { policy: a1111, compute: float64 }", "2:36", "policy: a1111 decides the dtype", "leave compute: out"),
    ("options: { device: cuda }", "2:12", "device is the machine's business", "--device"),
    ("options: { compute: float16 }", "2:21", "compute is auto, float32 or float64", ""),
    ("options: { missing: kep }", "2:21", "missing cannot be kep", "did you mean keep?"),
    ("outputs:\n  'mix-{s.safetensors': a", "3:8", "this { has no partner", "{{ and }}"),
    ("outputs:\n  'mix-s}.safetensors': a", "3:9", "this } closes nothing", ""),
    ("outputs:\n  'mix-{}.safetensors': a", "3:8", "no name between these braces", "{s}"),
    ("outputs:\n  'mix-{s:d}.safetensors': a", "3:8", "{s:d}: d is no way to write a number", "{s:.2f}"),
    ("outputs:\n  'mix-{s!r}-{s:}.safetensors': a", "3:14", "{s:}: nothing is no way to write a number", ""),
    ("outputs:\n  'mix-{s:5.2f}.safetensors': a", "3:8", "5.2f is no way to write a number", "{s:05.2f}"),
    ("outputs:\n  'mix-{s}.safetensors/{s}': a", "3:3", "a file without a suffix", ""),
    ("outputs:\n  '../{s}.safetensors': a", "3:3", "an output path has no ..", ""),
    ("outputs:\n  build/x/: a", "3:3", "an output that is a folder is not in this version", ""),
    ("outputs:\n  x.gguf: a", "3:3", "a .gguf file cannot be written", ".ckpt, .pt, .pth or .bin: x.safetensors"),
    ("outputs:\n  x: a", "3:3", "a file without a suffix", ""),
    ("outputs:\n  ../x.safetensors: a", "3:3", "an output path has no ..", "--output-root"),
    ("outputs:\n  a/..\\x.safetensors: a", "3:3", "an output path has no ..", ""),
    ("outputs:\n  '': a", "3:3", "the path of an output is empty", ""),
    ('outputs:\n  "a\\nb.safetensors": a', "3:3", "contains a line break", "single quotes"),
    ("outputs:\n  a.safetensors: a\n  ./A.safetensors: b", "4:3", "the same file as the output in line 3", ""),
    ("outputs:\n  x.safetensors: { dtype: float16 }", "3:18", "has no from:", ""),
    ("outputs:\n  x.safetensors: { from: a, round: float16 }", "3:29", "not rounded apart from its dtype", "dtype:"),
    ("outputs:\n  x.safetensors: { from: a, vae: v }", "3:29", "vae is not an option of an output", "replace:"),
    ("outputs:\n  x.safetensors: { from: a, dtype: { unet: int8 } }", "3:44", "int8 is no floating point dtype", ""),
    ("outputs:\n  x.safetensors: { from: a, embed: inside }", "3:36", "embed cannot be inside", "sidecar"),
    ("outputs:\n  x.safetensors: { from: a, metadata: { a: { b: c } } }", "3:44", "one text, not a mapping", ""),
    ("outputs:\n  x.safetensors: { from: a, keep: x }", "3:29", "keep: is an option of a step", "kept anyway"),
    ("outputs:\n  x.safetensors: { from: a, files: x }", "3:29", "files: is not in this version", ""),
]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "https://me:pw@host/x.ckpt",
        "https://host/x.ckpt?token=abc",
        "'https://host/x.ckpt?a=1&X-Amz-Signature=abc'",
        "https://civitai.com/api/download/models/1?token=abc",
    ],
)
def test_an_address_with_a_secret_is_refused_and_not_repeated(text: str) -> None:
    error = answer(f"{HEAD}sources: {{ a: {text} }}\n")
    assert "secret" in error.message or "password" in error.message
    assert "abc" not in str(error)
    assert "pw@" not in str(error)
    assert "HF_TOKEN" in error.hint


ADDRESSES = {
    "https://Host.org/a%20b/x.ckpt?v=1#top": "https://host.org/a%20b/x.ckpt?v=1",
    "s3://bucket/a/x.ckpt": "s3://bucket/a/x.ckpt",
    "hf:o/r/a b/x.ckpt": "hf:o/r/a b/x.ckpt@main",
    "hf:o/r/x.ckpt@refs/pr/3": "hf:o/r/x.ckpt@refs/pr/3",
    "https://huggingface.co/o/r/blob/main/a%20b/x.ckpt": "hf:o/r/a b/x.ckpt@main",
    "https://huggingface.co/o/r/resolve/c0ffee/x.ckpt?download=true": "hf:o/r/x.ckpt@c0ffee",
    "civitai:4201@130072": "civitai:130072",
    "https://civitai.com/api/download/models/130072": "civitai:130072",
    "https://civitai.com/models/4201/name?modelVersionId=130072": "civitai:130072",
    "{ civitai: 130072 }": "civitai:130072",
    "{ hf: o/r/x.ckpt@v1, path: y.ckpt }": "hf:o/r/x.ckpt@v1",
}


@pytest.mark.parametrize(("text", "url"), ADDRESSES.items())
def test_addresses_have_one_spelling(text: str, url: str) -> None:
    if text[0] == "{":
        assert loads(f"{HEAD}sources: {{ a: {text} }}\n").sources["a"].url == url
        return
    assert loads(f"{HEAD}sources: {{ a: '{text}' }}\n").sources["a"].url == url
    assert loads(f"{HEAD}sources: {{ a: {{ url: '{url}' }} }}\n").sources["a"].url == url


@pytest.mark.parametrize(("text", "place", "message", "hint"), REFUSED, ids=[r[0][:60] for r in REFUSED])
def test_refused(text: str, place: str, message: str, hint: str) -> None:
    check(HEAD + text + "\n", place, message, hint)


def test_one_namespace() -> None:
    check(
        HEAD + "sources: { sfw: x }\nsteps: { sfw: a }\n",
        "3:10",
        "sfw is the name of two things: a step here, a source at mix.yaml:2:12",
        "rename one",
    )


def test_versions() -> None:
    check("sources: { a: b }\n", "1:1", "the key mergeflow is missing", "begin with mergeflow: 1")
    check("mergeflow: 2\n", "1:12", "mergeflow: 2 is not a version", "a newer mergeflow")
    check("mergeflow: one\n", "1:12", "mergeflow: one is not a version", "write mergeflow: 1")


def test_long_names_in_messages_are_cut() -> None:
    assert len(str(answer(HEAD + "steps: { '" + "x" * 5000 + "': a }\n"))) < 500
    assert len(str(answer(HEAD + "x" * 900 + ": 1\n"))) < 500
