# ruff: noqa: E501  # tables: a case is easier to read on one line
"""Recipes that can be read but mean nothing: models that do not go together, profiles, methods, numbers."""

from __future__ import annotations

import numpy as np
from broken_case import FIRST, Case, Model, flux, head, mix, sd1, small, values
from support.checkpoints import Tensor

AB = "a*0.5 + b*0.5"


def kinds(**models: Model) -> dict[str, Model]:
    return {f"{name}.safetensors": model for name, model in models.items()}


DEGREES = [
    mix("degree-two-models", "a + b"),
    mix("degree-three-models", "a + b + c"),
    mix("degree-not-1", "a*0.7 + b*0.4"),
    mix("degree-of-a-step", "final", "steps:\n  half: a*0.5\n  final: half + b*0.5"),
    mix("degree-of-a-profile", "a*0.5 + b*k", "params: { k: { default: 0.5, v: 0.4 } }"),
    mix("degree-of-a-method", "task_arithmetic(a, [b, c]) + b"),
    mix("sum-of-model-and-number", "a + 0.3"),
    mix("product-of-models", "a * b"),
    mix("quotient-of-models", "a / b"),
    mix("output-is-a-number", "0.3 + 0.7"),
    mix("division-by-zero", "a / 0"),
    mix("division-by-zero-computed", "a + (b - c) / (m - 0.1 - 0.2)", "params: { m: 0.3 }"),
    mix("division-by-zero-in-a-profile", "a + (b - c) * (1 / k)", "params: { k: { default: 1, v: 0 } }"),
]

METHODS = [
    mix("method-unknown", "weigthed_sum(a, b, 0.3)"),
    mix("method-of-a-later-version", "extract_lora(a, b)"),
    mix("method-takes-a-difference", "a + ties_trim(b, 0.2)"),
    mix("method-takes-a-difference-of-a-step", "a + ties_trim(s, 0.2)", "steps: { s: a*0.5 + b*0.5 }"),
    mix("method-takes-differences", "ties(a, [b - c, c])"),
    mix("method-takes-a-model", "slerp(a, b - c, 0.5)"),
    mix("method-word-unknown", "ties(a, [b, c], elect=cuont)"),
    mix("method-word-is-a-model", "ties(a, [b, c], elect=b)"),
    mix("method-word-elsewhere", "ties(a, [b, count])"),
    mix("method-number-too-large", "ties(a, [b, c], density=20)"),
    mix("method-number-too-small", "dare(a, [b, c], density=0)"),
    mix("method-number-too-large-in-a-profile", "ties(a, [b, c], density=k)", "params: { k: { default: 0.2, v: 2 } }"),
    mix("method-seed", "dare(a, [b, c], density=0.5, seed=0.5)"),
    mix("method-of-a-policy", "slerp(a, b, 0.5)", "options: { policy: a1111 }"),
    mix("method-lacks-an-argument", "weighted_sum(a, b)"),
    mix("method-parameter-unknown", "weighted_sum(a, b, alpha=0.3)"),
    mix("method-too-many-arguments", "weighted_sum(a, b, 0.3, 0.4)"),
    mix("method-argument-twice", "weighted_sum(a, b, 0.3, m=0.4)"),
    mix("method-model-for-number", "weighted_sum(a, b, c)"),
    mix("method-number-for-model", "weighted_sum(a, 0.3, b)"),
    mix("method-no-models", "average([])"),
    mix("method-weights-refused", "average([a @ 0.7, b @ 0.3])"),
    mix("method-weights-sum-to-zero", "linear([a @ 0.5, b @ -0.5])"),
    mix("method-weights-sum-to-zero-in-a-profile", "linear([a @ k, b @ 0.5])", "params: { k: { default: 1, v: -0.5 } }"),
    mix("method-word-for-number", "linear([a, b], normalize=0.5)"),
    mix("method-without-arguments", "add_difference()"),
    mix("method-name-alone", "average"),
    head("method-long-form-unknown", "steps: { s: { method: slrep, a: a, b: b, t: 0.5 } }\noutputs: { mix.safetensors: s }\n"),
    head("method-long-form-lacks", "steps: { s: { method: add_difference, a: a, m: 0.3 } }\noutputs: { mix.safetensors: s }\n"),
    head("method-long-form-parameter", "steps: { s: { method: weighted_sum, a: a, b: b, alpha: 0.3 } }\noutputs: { mix.safetensors: s }\n"),
    head("step-without-expression", "steps: { s: { round: float16 } }\noutputs: { mix.safetensors: s }\n"),
    head("step-with-both", "steps: { s: { expr: a, method: average } }\noutputs: { mix.safetensors: s }\n"),
]  # fmt: skip

ASSERTIONS = [
    mix("assert-models", "x", "steps: { x: a + (b - c) * 0.3 }\nassert: [x == a + b - c]"),
    mix("assert-numbers", "a + (b - c)*m", "params: { m: 1.3 }\nassert: [0 <= m <= 1]"),
    mix("assert-of-a-model-and-a-number", "a", "assert: [a == 1]"),
    mix("assert-order-of-models", "a", "assert: [a < b]"),
    mix("assert-without-comparison", "a", "assert: [a + b - c]"),
    mix("assert-with-one-equals-sign", "a", "assert: [a = b]"),
]

PROFILES = [
    mix("profile-with-holes", "a + (b - c)*k", "params:\n  k: { v: 0.5 }"),
    mix("profile-that-disagrees", "a + (b - c)*k", "params:\n  k: { default: 0, 'v*': 0.5, '*v': 0.6 }"),
    mix("profile-that-matches-nothing", "a + (b - c)*k", "params:\n  k: { default: 0, '*attn1*': 0.5 }"),
    mix("profile-name-unknown", "a + (b - c)*k", "params:\n  k: { default: 0, vv: 0.5 }"),
    mix("profile-component-misspelt", "a + (b - c)*k", "params:\n  k: { default: 0, unett: 0.5 }",
        files=kinds(a=sd1(1), b=sd1(2), c=sd1(3))),
    mix("profile-block-unknown", "a + (b - c)*k", "params:\n  k: { default: 0, IN99: 0.5 }",
        files=kinds(a=sd1(1), b=sd1(2), c=sd1(3))),
    mix("profile-of-models", "a + (b - c)*k", "params:\n  k: { default: a }"),
    mix("profile-of-profiles", "a + (b - c)*k", "params:\n  k: { default: j }\n  j: { default: 0, v: 1 }"),
    mix("profile-empty", "a + (b - c)*k", "params:\n  k: {}"),
    mix("profile-that-decides-what-comes-first", "(a - b*k) + c*k", "params: { k: { default: 0, v: 1 } }"),
]  # fmt: skip

SHAPES = [
    mix("shape-mismatch", AB, files=kinds(b={"v": values("F32", 1, 2, 3, 4), "w": small(1)["w"]})),
    mix("shape-mismatch-transposed", AB, files=kinds(b={"v": small(2)["v"], "w": small(2)["w"]._replace(shape=(4, 2))})),
    mix("shape-mismatch-of-one-architecture", AB,
        files=kinds(a=sd1(1), b={**sd1(2), "model.diffusion_model.out.2.weight": small(1)["w"]})),
    mix("architectures-differ", AB, files=kinds(a=sd1(1), b=flux(2))),
    mix("architectures-differ-in-a-difference", "a + (b - c)", files=kinds(a=sd1(1), b=flux(2), c=flux(3))),
    mix("architecture-changed-since-the-build", AB, files=kinds(a=flux(1), b=sd1(2))),
    mix("architecture-of-the-recipe", "a", "arch: flux", files=kinds(a=sd1(1))),
    Case("architecture-of-a-source", 2,
         "mergeflow: 1\nsources: { a: { path: a.safetensors, arch: flux } }\noutputs: { mix.safetensors: a }\n", kinds(a=sd1(1))),
    mix("wide-the-wrong-way-round", "a + (b - c)", files=kinds(a=sd1(1), b=sd1(2, 9), c=sd1(3))),
    mix("wide-pix2pix-the-wrong-way-round", AB, files=kinds(a=sd1(1), b=sd1(2, 8))),
    mix("wide-and-other-wide", AB, files=kinds(a=sd1(1, 9), b=sd1(2, 8))),
    mix("models-have-nothing-in-common", AB, "options: { missing: error }",
        files=kinds(b={"other": values("F32", 1)})),
    mix("integers-and-floats", AB, files=kinds(b={"v": values("I32", 1, 2, 3), "w": small(1)["w"]})),
    mix("quantised-fp8-scaled", AB, files=kinds(a={"w.weight": values("F8_E4M3", 1, 2), "w.scale_weight": values("F32", 0.1)},
                                                b={"w.weight": values("F16", 1, 2)})),
    mix("quantised-nf4", AB, files=kinds(b={
        "v": Tensor("U8", (3,), b"abc"), "v.absmax": values("F32", 1), "v.quant_map": values("F32", 1, 2),
        "w": small(1)["w"]})),
    mix("tensor-missing", AB, "options: { missing: error }", files=kinds(b={"v": small(2)["v"]})),
    head("component-unknown", "outputs: { mix.safetensors: { from: a, replace: { vea: b } } }\n", files=kinds(a=sd1(1), b=sd1(2))),
    head("component-of-an-unknown-architecture", "outputs: { mix.safetensors: { from: a, replace: { vae: b } } }\n"),
    head("component-the-donor-lacks", "outputs: { mix.safetensors: { from: a, replace: { vae: b } } }\n",
         files=kinds(a=sd1(1), b={FIRST: sd1(2)[FIRST]})),
    head("component-by-a-number", "outputs: { mix.safetensors: { from: a, replace: { vae: 0.3 } } }\n", files=kinds(a=sd1(1), b=sd1(2))),
    Case("delta-as-a-model", 2, "mergeflow: 1\nsources: { a: a.safetensors, d: { path: b.safetensors, kind: delta } }\n"
         "outputs: { mix.safetensors: d*0.5 + a*0.5 }\n"),
    head("metadata-of-ours", "outputs: { mix.safetensors: { from: a, metadata: { mergeflow.digest: x } } }\n"),
]  # fmt: skip

NAN = {"v": Tensor("F32", (3,), np.array([1, np.nan, np.inf], np.float32).tobytes()), "w": small(2)["w"]}
NONFINITE = [
    mix("nan-in-a-source", AB, "options: { nonfinite: error }", code=1, files=kinds(b=NAN)),
    head("overflow-of-the-dtype", "options: { nonfinite: error }\noutputs: { mix.safetensors: { from: a + (b - c)*100000000, dtype: float16 } }\n",
         code=1, computed=True),
]  # fmt: skip

CASES = [*DEGREES, *METHODS, *ASSERTIONS, *PROFILES, *SHAPES, *NONFINITE]
