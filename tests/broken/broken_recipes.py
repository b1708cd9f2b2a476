# ruff: noqa: E501  # tables: a case is easier to read on one line
"""Recipes that cannot be read: keys, names, YAML, numbers and expressions."""

from __future__ import annotations

import os
from pathlib import Path

from broken_case import HEAD, Case, head, mix

MB = 1_000_000

KEYS = [
    head("key-unknown", "outptus: { mix.safetensors: a }\n"),
    head("key-unknown-far", "frobnicate: yes\noutputs: { mix.safetensors: a }\n"),
    Case("key-unknown-in-source", 2,
         "mergeflow: 1\nsources:\n  a: { path: a.safetensors, sha526: 00 }\noutputs: { mix.safetensors: a }\n"),
    head("key-unknown-in-step", "steps: { s: { expr: a, rond: float16 } }\noutputs: { mix.safetensors: s }\n"),
    head("key-unknown-in-output", "outputs: { mix.safetensors: { from: a, dtpye: float16 } }\n"),
    head("key-unknown-in-defaults", "defaults: { dtpye: float16 }\noutputs: { mix.safetensors: a }\n"),
    head("key-unknown-in-options", "options: { misssing: keep }\noutputs: { mix.safetensors: a }\n"),
    head("key-of-the-machine", "options: { memory: 4GB }\noutputs: { mix.safetensors: a }\n"),
    head("key-of-a-later-version", "steps: { s: { expr: a, files: all } }\noutputs: { mix.safetensors: s }\n"),
    head("choice-unknown", "options: { nonfinite: warning }\noutputs: { mix.safetensors: a }\n"),
    head("dtype-unknown", "outputs: { mix.safetensors: { from: a, dtype: flaot16 } }\n"),
    head("dtype-integer", "outputs: { mix.safetensors: { from: a, dtype: int8 } }\n"),
    head("outputs-missing", ""),
    head("output-without-from", "outputs: { mix.safetensors: { dtype: float16 } }\n"),
    Case("version-missing", 2, "sources: { a: a.safetensors }\noutputs: { mix.safetensors: a }\n"),
    Case("version-unknown", 2, "mergeflow: 2\nsources: { a: a.safetensors }\noutputs: { mix.safetensors: a }\n"),
    Case("source-without-path", 2, "mergeflow: 1\nsources: { a: { kind: model } }\noutputs: { mix.safetensors: a }\n"),
    Case("source-of-an-unknown-kind", 2,
         "mergeflow: 1\nsources: { a: ftp://example.org/a.safetensors }\noutputs: { mix.safetensors: a }\n"),
    Case("source-with-a-secret", 2, "mergeflow: 1\nsources: { a: 'https://example.org/a.safetensors?token=abc' }\n"
         "outputs: { mix.safetensors: a }\n"),
    Case("source-by-hash-not-there", 4,
         f"mergeflow: 1\nsources: {{ a: sha256:{'0' * 64} }}\noutputs: {{ mix.safetensors: a }}\n"),
    Case("hash-malformed", 2,
         "mergeflow: 1\nsources: { a: { path: a.safetensors, sha256: 1234 } }\noutputs: { mix.safetensors: a }\n"),
    Case("hash-of-odd-length", 2,
         "mergeflow: 1\nsources: { a: { path: a.safetensors, hash: 12345 } }\noutputs: { mix.safetensors: a }\n"),
    Case("architecture-unknown", 2,
         "mergeflow: 1\nsources: { a: { path: a.safetensors, arch: sd15 } }\noutputs: { mix.safetensors: a }\n"),
]  # fmt: skip

NAMES = [
    mix("name-misspelt", "a + (bb - c) * 0.3"),
    mix("name-misspelt-in-step", "final", "params: { strength: 0.3 }\nsteps:\n  final: a + (b - c) * strenght"),
    mix("name-unlike-all", "a + (nai - c) * 0.3"),
    Case("name-with-a-hyphen", 2,
         "mergeflow: 1\nsources: { Anything-V3.0: a.safetensors, b: b.safetensors }\n"
         "outputs: { mix.safetensors: Anything-V3.0*0.5 + b*0.5 }\n"),
    Case("name-with-a-minus", 2,
         "mergeflow: 1\nsources: { any-model: a.safetensors, b: b.safetensors }\n"
         "outputs: { mix.safetensors: any-model*0.5 + b*0.5 }\n"),
    Case("name-with-a-space", 2,
         "mergeflow: 1\nsources: { my model: a.safetensors, b: b.safetensors }\n"
         "outputs: { mix.safetensors: my model*0.5 + b*0.5 }\n"),
    head("name-given-twice", "params: { a: 0.3 }\noutputs: { mix.safetensors: b }\n"),
    mix("name-like-unknown", "s", "steps: { s: { expr: a, like: bb } }"),
    Case("step-of-a-recipe-unknown", 2,
         "mergeflow: 1\nsources: { a: other.yaml#fnal }\noutputs: { mix.safetensors: a }\n",
         {"other.yaml": HEAD + "steps: { final: a }\n"}),
    Case("recipe-of-a-source-missing", 4, "mergeflow: 1\nsources: { a: other.yaml#s }\noutputs: { mix.safetensors: a }\n"),
    Case("error-in-another-recipe", 2, "mergeflow: 1\nsources: { x: sub/other.yaml#s }\noutputs: { mix.safetensors: x }\n",
         {"sub/other.yaml": HEAD + "steps: { s: a + (b - d) * 0.3 }\n"}),
    Case("included-recipe-missing", 4, "mergeflow: 1\ninclude: [common.yaml]\noutputs: { mix.safetensors: a }\n"),
]  # fmt: skip

CYCLES = [
    mix("cycle", "x", "steps:\n  x: y + (a - b)\n  y: z + (b - c)\n  z: x"),
    mix("cycle-of-one", "x", "steps: { x: a + (x - b) }"),
    mix("cycle-of-params", "a + (b - c)*m", "params: { m: n * 2, n: m / 2 }"),
    mix("cycle-of-many", "s0", "steps:\n" + "\n".join(f"  s{i}: s{(i + 1) % 500} + (a - b)" for i in range(500))),
    Case("cycle-of-recipes", 2, "mergeflow: 1\nsources: { x: other.yaml#s }\nsteps: { t: x }\noutputs: { mix.safetensors: t }\n",
         {"other.yaml": "mergeflow: 1\nsources: { y: recipe.yaml#t }\nsteps: { s: y }\n"}),
    Case("cycle-of-includes", 2, "mergeflow: 1\ninclude: [other.yaml]\noutputs: { mix.safetensors: a }\n",
         {"other.yaml": "mergeflow: 1\ninclude: [recipe.yaml]\n"}),
]  # fmt: skip

BOMB = "x-bomb:\n  a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"  a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)
YAML = [
    Case("yaml-key-without-colon", 2, "mergeflow: 1\nsources:\n  a a.safetensors\n  b: b.safetensors\n"
         "outputs: { mix.safetensors: a }\n"),
    Case("yaml-colon-without-space", 2, "mergeflow: 1\nsources:\n  a:a.safetensors\n  b: b.safetensors\n"
         "outputs: { mix.safetensors: a }\n"),
    Case("yaml-indented-too-far", 2, "mergeflow: 1\nsources:\n  a: a.safetensors\n   b: b.safetensors\n"
         "outputs: { mix.safetensors: a }\n"),
    Case("yaml-not-indented", 2, "mergeflow: 1\nsources:\n  a: a.safetensors\nb: b.safetensors\n"
         "outputs: { mix.safetensors: a }\n"),
    Case("yaml-section-indented", 2, "mergeflow: 1\nsources:\n  a: a.safetensors\n  params:\n  m: 0.5\n"
         "outputs: { mix.safetensors: a }\n"),
    Case("yaml-space-of-another-kind", 2, "mergeflow: 1\nsources: { a: a.safetensors }\n\u00a0outputs:\n  mix.safetensors: a\n"),
    Case("yaml-bracket-without-colon", 2, "mergeflow: 1\nsources:\n  a { path: a.safetensors, kind: model }\n"
         "outputs: { mix.safetensors: a }\n"),
    Case("yaml-bracket-after-a-colon-without-space", 2, "mergeflow: 1\nsources:\n  a:{ path: a.safetensors, kind: model }\n"
         "outputs: { mix.safetensors: a }\n"),
    Case("yaml-quoted-name-without-colon", 2, "mergeflow: 1\nsources:\n  'a-1' a.safetensors\n  b: b.safetensors\n"),
    Case("yaml-comma-after-a-line", 2, "mergeflow: 1\nsources: { a: a.safetensors },\noutputs: { mix.safetensors: a }\n"),
    Case("yaml-colon-lost-in-braces", 2, "mergeflow: 1\nsources: { a: a.safetensors, b b.safetensors }\n"),
    mix("yaml-quotes-of-another-kind", "a", "params: { k: { mbw: “0,0,0,1”, BASE: 0 } }"),
    mix("yaml-outputs-forgotten", "a", "params:\n  m: 0.5\n  mix.safetensors: a + (b - c)*m"),
    mix("yaml-quote-at-the-beginning", "'a'*0.5 + 'b'*0.5"),
    mix("yaml-quote-closed-too-late", "weighted_sum(a, b, k)", 'params:\n  k: { mbw: "0,0,1, BASE: 0 }\n  l: { "*.w": 0 }'),
    mix("yaml-list-of-numbers-in-braces", "weighted_sum(a, b, k)", "params: { k: { mbw: 0,0,0,1,1,1, BASE: 0 } }"),
    mix("yaml-list-without-brackets", "{ from: a, drop: ema, junk, dtype: float16 }"),
    mix("yaml-bracket-open-above", "a", "params:\n  k: { default: 0, v: 1\n  m: 0.3"),
    Case("yaml-duplicate-key", 2, HEAD + "outputs: { mix.safetensors: a }\nsources: { a: b.safetensors }\n"),
    head("yaml-duplicate-source", "params:\n  m: 0.3\n  k: 1\n  m: 0.4\noutputs: { mix.safetensors: a }\n"),
    head("yaml-duplicate-in-braces", "params: { m: 0.3, m: 0.4 }\noutputs: { mix.safetensors: a }\n"),
    head("yaml-alias-bomb", BOMB + "outputs: { mix.safetensors: a }\n"),
    head("yaml-alias-of-long-texts",
         f"x-a: &t {'y' * 900_000}\nx-b: [{', '.join(['*t'] * 100)}]\noutputs: {{ mix.safetensors: a }}\n"),
    head("yaml-alias-unknown", "params: { m: *k }\noutputs: { mix.safetensors: a }\n"),
    head("yaml-depth-bomb", f"x-a: {'[' * 5000}{']' * 5000}\noutputs: {{ mix.safetensors: a }}\n"),
    head("yaml-text-too-long", f"note: {'y' * (MB + 1)}\noutputs: {{ mix.safetensors: a }}\n"),
    head("yaml-long-path", f"outputs: {{ {'y' * 900}.safetensors: a }}\n"),
    Case("yaml-long-source-path", 4, f"mergeflow: 1\nsources: {{ a: {'y' * MB} }}\noutputs: {{ mix.safetensors: a }}\n"),
    mix("yaml-long-unknown-name", "y" * MB),
    mix("yaml-long-number", "a * 0." + "3" * (MB - 10)),
    mix("yaml-long-method", "y" * (MB - 10) + "(a)"),
    Case("yaml-long-version", 2, f"mergeflow: {'1' * MB}\n"),
    head("yaml-long-dtype", f"outputs: {{ mix.safetensors: {{ from: a, dtype: {'f' * MB} }} }}\n"),
    head("yaml-long-key", f"? {'k' * 2000}\n: 1\noutputs: {{ mix.safetensors: a }}\n"),
    head("yaml-long-simple-key", f"{'k' * 2000}: 1\noutputs: {{ mix.safetensors: a }}\n"),
    Case("yaml-long-arch", 2, f"mergeflow: 1\narch: {'s' * MB}\nsources: {{ a: a.safetensors }}\noutputs: {{ mix.safetensors: a }}\n"),
    head("yaml-long-like", f"outputs: {{ mix.safetensors: {{ from: a, like: {'s' * MB} }} }}\n"),
    head("yaml-long-component", f"outputs:\n  mix.safetensors:\n    from: a\n    replace: {{ {'s' * 1000}: b }}\n"),
    head("yaml-long-assert", f"assert: ['a == a + {' + '.join(['(b - c)'] * 5000)}']\noutputs: {{ mix.safetensors: a }}\n"),
    head("yaml-tag", "params: { m: !!python/object/apply:os.system [ls] }\noutputs: { mix.safetensors: a }\n"),
    head("yaml-merge-key", "params: { <<: { m: 1 } }\noutputs: { mix.safetensors: a }\n"),
    head("yaml-tab", "params:\n\tm: 0.3\noutputs: { mix.safetensors: a }\n"),
    head("yaml-bracket-open", "outputs: { mix.safetensors: a\n"),
    head("yaml-quote-open", "outputs: { mix.safetensors: 'a }\n"),
    head("yaml-comma-splits-call", "steps: { s: { expr: weighted_sum(a, b, 0.5), round: float16 } }\noutputs: { mix.safetensors: s }\n"),
    head("yaml-no-space-after-colon", "params: { k: {default:0, w:0.3} }\noutputs: { mix.safetensors: a }\n"),
    head("yaml-second-colon", "steps:\n  s: linear(models: [a, b])\noutputs: { mix.safetensors: a }\n"),
    head("yaml-star", "params:\n  k:\n    default: 0\n    *.attn1.*: 0.5\noutputs: { mix.safetensors: a }\n"),
    head("yaml-anchor-in-text", "steps:\n  s: &a + b\noutputs: { mix.safetensors: a }\n"),
    Case("yaml-windows-path", 2, 'mergeflow: 1\nsources: { a: "C:\\new\\anything.safetensors" }\noutputs: { mix.safetensors: a }\n'),
    Case("yaml-windows-path-escape", 2, 'mergeflow: 1\nsources: { a: "C:\\models\\a.safetensors" }\noutputs: { mix.safetensors: a }\n'),
    Case("yaml-comment-in-path", 4, "mergeflow: 1\nsources:\n  a: models/a #2.safetensors\noutputs: { mix.safetensors: a }\n", {"models/a #2.safetensors": b""}),
    Case("yaml-list", 2, "- mergeflow: 1\n"),
    Case("yaml-empty", 2, "# nothing yet\n"),
    Case("yaml-two-documents", 2, HEAD + "outputs: { mix.safetensors: a }\n---\nmergeflow: 1\n"),
    Case("yaml-control-character", 2, HEAD + "note: bell \a\noutputs: { mix.safetensors: a }\n"),
    Case("yaml-not-utf8", 2, HEAD.encode() + b"note: caf\xe9\noutputs: { mix.safetensors: a }\n"),
    Case("yaml-utf16", 2, (HEAD + "outputs: { mix.safetensors: a }\n").encode("utf-16")),
    Case("yaml-random-bytes", 2, bytes(range(256)) * 20),
    Case("yaml-one-long-line", 2, b"[" * MB),
]  # fmt: skip


def _large(folder: Path) -> None:
    os.truncate(folder / "recipe.yaml", 17 << 20)


RECIPE_FILES = [
    Case("recipe-missing", 4, command="build no-such.yaml"),
    Case("recipe-not-named", 2, command="build"),
    Case("recipe-not-named-others-there", 2, "", {"mix.yaml": HEAD, "other.yml": HEAD}, command="build"),
    Case("recipe-is-a-folder", 2, change=lambda f: (f / "recipe.yaml").mkdir()),
    Case("recipe-is-a-loop-of-links", 2, change=lambda f: (f / "recipe.yaml").symlink_to("recipe.yaml")),
    Case("recipe-is-a-model", 2, command="build a.safetensors"),
    Case("recipe-too-large", 2, "mergeflow: 1\n", change=_large),
]

NUMBERS = [
    mix("number-percent", "a + (b - c) * 30%"),
    head("number-percent-param", "params: { m: 30% }\noutputs: { mix.safetensors: a + (b - c)*m }\n"),
    mix("number-comma", "a + (b - c) * 0,3"),
    head("number-comma-param", "params:\n  m: 0,3\noutputs: { mix.safetensors: a + (b - c)*m }\n"),
    head("number-comma-in-braces", "params: { m: 0,3 }\noutputs: { mix.safetensors: a + (b - c)*m }\n"),
    head("number-comma-in-call", "outputs:\n  mix.safetensors: weighted_sum(a, b, 0,3)\n"),
    mix("number-x", "a x 0.7 + b x 0.3"),
    mix("number-before-name", "2a - b"),
    mix("number-before-bracket", "a + 0.3 (b - c)"),
    mix("number-grouped", "a + (b - c) * 1_000"),
    mix("number-hex", "a + (b - c) * 0x10"),
    mix("number-ends-in-point", "a + (b - c) * 1."),
    mix("number-41-digits", "a + (b - c) * 0." + "1" * 41),
    mix("number-exponent", "a + (b - c) * 1e400"),
    mix("number-nan", "a + (b - c) * nan"),
    mix("number-inf", "a + (b - c) * .inf"),
    head("number-list", "params: { m: '1,0.9,0.7,0.5' }\noutputs: { mix.safetensors: a }\n"),
    head("number-empty", "params: { m: }\noutputs: { mix.safetensors: a }\n"),
    head("number-text", "params: { m: much }\noutputs: { mix.safetensors: a + (b - c)*m }\n"),
    head("number-is-a-model", "params: { m: a }\noutputs: { mix.safetensors: a + (b - c)*m }\n"),
]

EXPRESSIONS = [
    mix("expression-empty", "''"),
    mix("expression-null", ""),
    mix("expression-bracket-open", "a + (b - c * 0.3"),
    mix("expression-bracket-close", "a + b - c) * 0.3"),
    mix("expression-brackets-differ", "average([a, b)"),
    mix("expression-quote-open", 'a + ("b - c) * 0.3'),
    mix("expression-ends-in-operator", "a + (b - c) *"),
    mix("expression-two-operators", "a + * b"),
    mix("expression-no-operator", "a (b - c)"),
    mix("expression-power", "a ** 2"),
    mix("expression-assignment", "a = b"),
    mix("expression-comparison", "a < b"),
    mix("expression-comma", "a, b"),
    mix("expression-list", "'[a, b]'"),
    mix("expression-weight-outside", "a @ 0.5 + b @ 0.5"),
    mix("expression-slice", "a[0:16]"),
    mix("expression-backslash", "a + models\\b"),
    mix("expression-curly-quotes", "“a” + (b - c)"),
    mix("expression-path", "a.safetensors + (b - c)"),
    mix("expression-emoji", "a + (b - c) * 🙂"),
    mix("expression-argument-after-named", "weighted_sum(a=a, b, 0.3)"),
    mix("expression-argument-twice", "weighted_sum(a, b, m=0.3, m=0.4)"),
]

SWEEPS = [
    head("sweep-in-words-of-another-tool", "params: { s: { sweep: { start: 0, stop: 1, step: 0.5 } } }\n"
         "outputs: { 'mix-{s}.safetensors': a + (b - c)*s }\n"),
    head("sweep-without-a-place", "params: { s: { sweep: [0, 1] } }\noutputs: { mix.safetensors: a + (b - c)*s }\n"),
    head("sweep-not-used", "params: { s: { sweep: [0, 1] } }\noutputs: { 'mix-{s}.safetensors': a }\n"),
    head("sweep-unknown", "params: { seed: { sweep: [0, 1] } }\noutputs: { 'mix-{sede}.safetensors': a + (b - c)*seed }\n"),
    head("sweep-of-two-kinds", "params: { s: { sweep: [0, b] } }\noutputs: { 'mix-{s}.safetensors': a + (b - c)*s }\n"),
    head("sweep-with-one-name-for-two", "params: { s: { sweep: [0.11, 0.12] } }\noutputs: { 'mix-{s:.1f}.safetensors': a + (b - c)*s }\n"),
    head("sweep-that-leads-away", "params: { s: { sweep: { from: 0, to: 1, by: -0.1 } } }\noutputs: { 'mix-{s}.safetensors': a + (b - c)*s }\n"),
    head("sweep-with-a-slash", "params: { s: { sweep: [1/3, 1/2] } }\noutputs: { 'mix-{s}.safetensors': a + (b - c)*s }\n"),
    head("sweep-of-too-many", "params: { s: { sweep: { from: 1, to: 200, by: 1 } }, t: { sweep: { from: 1, to: 200, by: 1 } } }\n"
         "outputs: { 'mix-{s}-{t}.safetensors': a + (b - c)*s*t }\n"),
    head("sweep-with-a-bad-value", "params: { s: { sweep: [1, 0] } }\noutputs: { 'mix-{s}.safetensors': a + (b - c)/s }\n"),
    head("sweep-against-an-assertion", "params: { s: { sweep: [0.5, 1.5] } }\nassert: [s <= 1]\noutputs: { 'mix-{s}.safetensors': a + (b - c)*s }\n"),
    head("sweep-of-another-degree", "params: { s: { sweep: [1, 0.4] } }\noutputs: { 'mix-{s}.safetensors': a*s }\n"),
    head("sweep-set-with-a-range", "params: { s: { sweep: [1, 0.4] } }\noutputs: { 'mix-{s}.safetensors': a*s + b*(1-s) }\n",
         command="build recipe.yaml --set s=0:1:0.5"),
    head("sweep-output-unknown", "params: { s: { sweep: [1, 0.4] } }\noutputs: { 'mix-{s}.safetensors': a*s + b*(1-s) }\n",
         command="build recipe.yaml mix-0.3.safetensors"),
    Case("sweep-of-another-recipe", 2, "mergeflow: 1\nsources: { x: other.yaml#mix }\noutputs: { mix.safetensors: x }\n",
         {"other.yaml": HEAD + "params: { s: { sweep: [0, 1] } }\nsteps: { mix: a + (b - c)*s }\n"}),
]  # fmt: skip

UNUSED = [
    mix("unused-profile-misspelt", "a", "params: { k: { defautl: 3, w: 1 } }"),
    mix("unused-preset-misspelt", "a", "params: { k: { preset: GRADV2 } }"),
    mix("unused-list-too-short", "a", 'params: { k: { mbw: "1,0.5,0", BASE: 0 } }'),
    mix("unused-sweep-misspelt", "a", "params: { k: { sweep: { x: { preset: GRAD_V, BASE: 0 }, y: { defalt: 1 } } } }"),
]  # fmt: skip

CASES = [*UNUSED, *SWEEPS, *KEYS, *NAMES, *CYCLES, *YAML, *RECIPE_FILES, *NUMBERS, *EXPRESSIONS]
