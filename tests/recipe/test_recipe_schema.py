"""The JSON Schema agrees with the loader on what a recipe is."""

from __future__ import annotations

import re
from typing import Any

import jsonschema
import pytest
import yaml
from recipe_texts import HEAD, SMALL
from test_recipe_model import REFUSED

from mergeflow.recipe import loads, schema, sections
from mergeflow.recipe.load import RECIPE_KEYS

VALIDATOR = jsonschema.Draft202012Validator(schema())

GOOD = [
    SMALL,
    HEAD + "sources:\nx-mine: [1]\ninclude: [a.yaml]\n",
    HEAD
    + "sources: { a: { path: x, hash: 12345678, size: 12 }, b: [x, { path: y }], c: { recipe: r.yaml, step: s } }\n",
    HEAD + "params: { m: 0.3, n: m * 2, k: { default: 0, '*.attn1.*': 0.5 } }\n",
    HEAD
    + "params: { k: { preset: COSINE, BASE: 0 }, l: { mbw: '1,0,1', blocks: sd1, '*': { gradient: [1, m, 0] } } }\n",
    HEAD + "params: { k: { mbw: [1, 0.9, 0], default: 0 } }\n",
    HEAD + "params: { s: { sweep: [0, m / 2, a] }, t: { sweep: { from: 0, to: 1, by: 0.25 } } }\n",
    HEAD + "params: { k: { sweep: { '': 1, soft: { preset: COSINE }, '30': { default: 0, OUT: 0.3 } } } }\n",
    HEAD + "outputs: { '{x}/mix-{s:05.2f}{{}}.safetensors': a }\n",
    HEAD
    + "steps: { x: a, y: { expr: a, round: fp16 }, z: { method: ties, models: { a: 0.5 }, base: b, k: [1, c] } }\n",
    HEAD + "assert: [a == b]\ndefaults: { dtype: float16, embed: none }\noptions: { compute: fp32, missing: keep }\n",
    HEAD + "outputs: { a.safetensors: { from: x, metadata: { t: 1 }, replace: { vae: v } } }\n",
    HEAD + "outputs: { a.CKPT: x, b.pt: x, c.bin: x, d.safetensors: { from: x, shard_size: 1.5 GiB } }\n",
    HEAD + "sources: { a: hf:o/r/x.ckpt@v1, b: civitai:1@2, c: https://x/y, d: s3://b/k, e: hash:01234567 }\n",
    HEAD + f"sources: {{ a: hash:b3:{'0' * 64}, b: {{ path: x, hash: 'b3:{'a' * 64}' }} }}\n",
    HEAD + f"sources: {{ a: {{ url: https://x/y, sha256: {'0' * 64} }}, b: {{ hf: o/r/x, path: y }} }}\n",
    HEAD + "sources: { a: { civitai: 3 }, b: C:\\x.ckpt }\n",
    HEAD + "defaults: { metadata_for: a1111, sidecars: [config, sha256] }\noutputs: { a.pth: x }\n",
]

INVISIBLE = (  # what a schema does not see: texts inside, and what YAML itself refuses or splits
    "0:1:0.25", "1,0.9", "0,3", "30%", "a[0:16]", "[a + b]", "' a'", "\"a'", "x.yaml", "x.ckpt, step", "'f g'", "'a b'",
    "../{", "by: 0 }", "by: -0.1", "to: m", "1e-9", "s!r", "{s:d}", "{s:5",
    "b/../c", "/models/42/", "int8x", "10KB", "x.pt", "../x", "..\\", "''", "\\n", "./A", "seps",
)  # fmt: skip


def test_it_is_a_schema() -> None:
    VALIDATOR.check_schema(schema())
    assert schema()["$schema"].endswith("2020-12/schema")


@pytest.mark.parametrize("text", GOOD)
def test_good_recipes(text: str) -> None:
    assert [e.message for e in VALIDATOR.iter_errors(yaml.safe_load(text))] == []
    loads(text.replace("include: [a.yaml]\n", ""))


@pytest.mark.parametrize("text", [r[0] for r in REFUSED if not any(mark in r[0] for mark in INVISIBLE)])
def test_what_the_loader_refuses(text: str) -> None:
    assert not VALIDATOR.is_valid(yaml.safe_load(HEAD + text))


@pytest.mark.parametrize("text", ["{}", "mergeflow: 2", "[]", "a", "mergeflow: 1\nextra: 1"])
def test_what_is_no_recipe(text: str) -> None:
    assert not VALIDATOR.is_valid(yaml.safe_load(text))


def test_every_key_is_there_and_described() -> None:
    found = schema()
    definitions = found["$defs"]
    assert set(found["properties"]) == set(RECIPE_KEYS)
    assert set(definitions["output"]["anyOf"][1]["properties"]) == set(sections.OUTPUT_KEYS)
    assert set(definitions["defaults"]["properties"]) == set(sections.DEFAULT_KEYS)
    assert set(definitions["options"]["properties"]) == set(sections.OPTION_KEYS)
    tables: list[dict[str, Any]] = [
        found["properties"],
        definitions["source"]["anyOf"][1]["properties"],
        definitions["output"]["anyOf"][1]["properties"],
        definitions["options"]["properties"],
        definitions["step"]["anyOf"][1]["properties"],
    ]
    for properties in tables:
        for key, value in properties.items():
            assert re.search(r"\.$|c$", value["description"]), key
