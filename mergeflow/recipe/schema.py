"""The recipe format as JSON Schema (2020-12), for completion and checks in editors.

Editors read YAML with numbers and dates, so texts that look like numbers are allowed wherever a number can be meant.
The schema says what is there; what only this version refuses, and everything inside expressions, is the loader's to
say.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

from pydantic import BaseModel

from mergeflow.recipe import later
from mergeflow.recipe.fields import FLOATS
from mergeflow.recipe.model import BlockList, Options, Output, Recipe, Source, Step
from mergeflow.recipe.origins import SCHEMES
from mergeflow.recipe.outputs import METADATA_FOR, SIDECARS, SUFFIXES
from mergeflow.recipe.params import MAX_VALUES, RANGE_KEYS
from mergeflow.recipe.sections import EMBED, POLICIES
from mergeflow.recipe.sources import ADDRESSES, ALONE, EMA, HASHES, KINDS, OF_A_FILE, OF_A_RECIPE
from mergeflow.tensors import SHORT

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string", "minLength": 1}
_NOTE: Schema = {"type": ["string", "number"]}
_DTYPE: Schema = {"enum": [*FLOATS, *SHORT]}
_HEX = "[0-9a-fA-F]"
_HASH = f"({_HEX}{{8}}|{_HEX}{{10}}|{_HEX}{{12}}|{_HEX}{{64}}|b3:{_HEX}{{64}})"
_HUB_FILE = "[^/@]+/[^/@]+/[^@]+(@[^@]+)?"
_ADDRESS = f"(https?://[^/?#]+/.+|s3://[^/?#]+/.+|hf:{_HUB_FILE}|civitai:([0-9]+@)?[0-9]+)"
_EXPRESSION: Schema = {"$ref": "#/$defs/expression"}


def schema() -> Schema:
    """The schema of a recipe file."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:mergeflow:recipe:1",
        "title": "mergeflow recipe",
        "description": "How model checkpoints are merged: sources, params, steps and the outputs made of them.",
        "type": "object",
        "required": ["mergeflow"],
        "properties": _top(),
        "patternProperties": {"^x-": {"description": "The author's own keys; kept, and never read."}},
        "additionalProperties": False,
        "$defs": {
            "expression": {
                "description": "Numbers, names and calls with + - * / and brackets: a + (b - c) * 0.3",
                "type": ["string", "number"],
                "minLength": 1,
            },
            "argument": _argument(),
            "replace": {"type": "object", "additionalProperties": _EXPRESSION},
            "source": _source(),
            "param": _param(),
            "step": _step(),
            "output": _output(),
            "defaults": _defaults(),
            "options": _options(),
        },
    }


def _top() -> Schema:
    def named(kind: str) -> Schema:
        return {"type": ["object", "null"], "additionalProperties": {"$ref": f"#/$defs/{kind}"}}

    text_list = {"anyOf": [_TEXT, {"type": "array", "items": _TEXT}]}
    properties = {
        "mergeflow": {"const": 1},
        "name": _NOTE,
        "description": _NOTE,
        "license": _NOTE,
        "note": _NOTE,
        "arch": _TEXT,
        "include": text_list,
        "sources": named("source"),
        "params": named("param"),
        "steps": named("step"),
        "outputs": {
            "type": ["object", "null"],
            "propertyNames": {
                "pattern": r"^([^{}]|\{\{|\}\}|\{[^{}]+\})+\.(" + "|".join(map(_any_case, SUFFIXES)) + ")$"
            },
            "additionalProperties": {"$ref": "#/$defs/output"},
        },
        "options": {"$ref": "#/$defs/options"},
    }
    described = _described(Recipe, properties)
    described["assert"] = {**text_list, "description": "Comparisons that must hold when planning: final == a + b - c"}
    described["defaults"] = {"$ref": "#/$defs/defaults", "description": "Options for all outputs."}
    return described


def _any_case(suffix: str) -> str:
    """A suffix without its dot, in the regular expressions of JSON Schema, which have no flag for this."""
    return "".join(f"[{letter}{letter.upper()}]" for letter in suffix.removeprefix("."))


def _source() -> Schema:
    hexadecimal = {"type": ["string", "integer"]}
    properties = {
        "path": _path(),
        "url": {**_TEXT, "pattern": f"^{_ADDRESS}$"},
        "sha256": {**hexadecimal, "pattern": f"^{_HEX}{{64}}$"},
        "hash": {**hexadecimal, "pattern": f"^{_HASH}$"},
        "size": {"type": ["integer", "string"], "minimum": 0, "pattern": "^[0-9]+$"},
        "kind": {"enum": list(KINDS)},
        "ema": {"enum": list(EMA)},
        "arch": _TEXT,
        "recipe": _path(),
        "step": _TEXT,
        "set": {"type": "object", "additionalProperties": _EXPRESSION},
        "note": _NOTE,
        "license": _NOTE,
    }
    described = _described(Source, properties)
    described["hf"] = {
        **_TEXT,
        "pattern": f"^(hf:)?{_HUB_FILE}$",
        "description": "A file on Hugging Face: owner/repo/file@revision.",
    }
    described["civitai"] = {
        "type": ["integer", "string"],
        "pattern": "^(civitai:)?([0-9]+@)?[0-9]+$",
        "description": "The number of a model version on Civitai.",
    }
    long = _object(described)
    long["oneOf"] = [
        {
            "anyOf": [{"required": [key]} for key in ALONE],
            "properties": dict.fromkeys(("recipe", *OF_A_RECIPE), False),
            "not": {"anyOf": [{"required": [a, b]} for a, b in combinations(ADDRESSES, 2)]},
        },
        {"required": ["recipe"], "properties": dict.fromkeys(OF_A_FILE, False)},
    ]
    short = {"anyOf": [_path(), {**_TEXT, "pattern": f"^({_ADDRESS}|sha256:{_HEX}{{64}}|hash:{_HASH})$"}]}
    return {"anyOf": [short, long, {"type": "array", "minItems": 1, "items": {"anyOf": [short, long]}}]}


def _path() -> Schema:
    schemes = "|".join((*later.SCHEMES, *SCHEMES, *HASHES))
    return {**_TEXT, "pattern": f"^(?!({schemes}):)"}


def _param() -> Schema:
    later_keys = {"not": {"enum": ["sweep", *later.PARAM]}}
    numbers = {"type": "array", "minItems": 2, "items": _EXPRESSION}
    gradient = _object({"gradient": {**numbers, "description": "Numbers along the blocks."}}, required=("gradient",))
    pasted = {"anyOf": [_TEXT, {"type": "array", "minItems": 1, "items": {"type": ["number", "string"]}}]}
    profile = {
        "description": "Numbers for blocks, components, tensor names and patterns; default: is for the rest.",
        "type": "object",
        "minProperties": 1,
        "propertyNames": later_keys,
        "properties": {
            "default": _EXPRESSION,
            **_described(BlockList, {"preset": _TEXT, "mbw": pasted, "blocks": _TEXT}),
        },
        "not": {"required": ["preset", "mbw"]},
        "if": {"required": ["blocks"]},
        "then": {"anyOf": [{"required": ["preset"]}, {"required": ["mbw"]}]},
        "additionalProperties": {"anyOf": [_EXPRESSION, gradient]},
    }
    return {"anyOf": [_EXPRESSION, profile, _sweep({"anyOf": [_EXPRESSION, profile]})]}


def _sweep(value: Schema) -> Schema:
    """A list of values, a range, or labels with values, of which a profile needs one."""
    numbers: Schema = {key: {"type": ["number", "string"]} for key in RANGE_KEYS}
    no_range = {"not": {"enum": list(RANGE_KEYS)}}
    labels = {"type": "object", "minProperties": 1, "propertyNames": no_range, "additionalProperties": value}
    values = {"type": "array", "minItems": 1, "maxItems": MAX_VALUES, "items": _EXPRESSION}
    sweep = {
        "description": "A value for each output: a list, a range, or labels with values, over numbers or models.",
        "anyOf": [values, _object(numbers, required=RANGE_KEYS), {**labels, "maxProperties": MAX_VALUES}],
    }
    return _object({"sweep": sweep}, required=("sweep",))


def _step() -> Schema:
    properties = _described(
        Step,
        {
            "expr": _EXPRESSION,
            "method": _TEXT,
            "round": _DTYPE,
            "keep": {"type": "boolean"},
            "like": _TEXT,
            "replace": {"$ref": "#/$defs/replace"},
            "note": _NOTE,
        },
    )
    by_expr = {k: v for k, v in properties.items() if k != "method"}
    by_method = {k: v for k, v in properties.items() if k != "expr"}
    by_method["models"] = _models()
    return {
        "anyOf": [
            _EXPRESSION,
            _object(by_expr, required=("expr",)),
            {
                "type": "object",
                "properties": {**by_method, "expr": False},
                "required": ["method"],
                "additionalProperties": {"$ref": "#/$defs/argument"},
            },
        ]
    }


def _argument() -> Schema:
    return {
        "description": "A number, a name, an expression, or a list of them; x @ 0.5 gives x a weight.",
        "anyOf": [_EXPRESSION, {"type": "array", "items": {"$ref": "#/$defs/argument"}}, {"type": "boolean"}],
    }


def _models() -> Schema:
    weight = {"anyOf": [_EXPRESSION, _object({"weight": _EXPRESSION}, required=("weight",))]}
    by_name = {"type": "object", "additionalProperties": weight}
    return {"description": "The models, with weights.", "anyOf": [{"$ref": "#/$defs/argument"}, by_name]}


def _shared() -> Schema:
    words: Schema = {"anyOf": [_TEXT, {"type": "array", "items": _TEXT}]}
    return {
        "dtype": {"anyOf": [_DTYPE, {"type": "object", "minProperties": 1, "additionalProperties": _DTYPE}]},
        "only": words,
        "drop": words,
        "fix": words,
        "mark": words,
        "metadata": {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}},
        "replace": {"$ref": "#/$defs/replace"},
        "embed": {"enum": list(EMBED)},
        "shard_size": {**_TEXT, "pattern": "^[0-9.]+ *[kKmMgGtT]?[iI]?[bB]$"},
        "metadata_for": _some_of(METADATA_FOR),
        "sidecars": _some_of(SIDECARS),
    }


def _some_of(words: tuple[str, ...]) -> Schema:
    return {"anyOf": [{"enum": list(words)}, {"type": "array", "items": {"enum": list(words)}}]}


def _output() -> Schema:
    properties = _described(Output, {**_shared(), "like": _TEXT, "note": _NOTE})
    properties["from"] = {**_EXPRESSION, "description": "The expression whose result is written."}
    return {"anyOf": [_EXPRESSION, _object(properties, required=("from",))]}


def _defaults() -> Schema:
    return _object(_described(Output, _shared()))


def _options() -> Schema:
    floats = [label for label in (*FLOATS, *SHORT) if SHORT.get(label, label) in ("float32", "float64")]
    properties = {
        "compute": {"enum": ["auto", *floats]},
        "missing": {"enum": ["keep", "error"]},
        "nonfinite": {"enum": ["warn", "error", "allow"]},
        "policy": {"enum": list(POLICIES)},
        "seed": {"type": "integer", "minimum": 0},
    }
    alone = {"if": {"required": ["policy"], "properties": {"policy": {"const": "a1111"}}},
             "then": {"properties": {"compute": {"const": "auto"}}}}  # fmt: skip
    return _object(_described(Options, properties)) | alone


def _object(properties: Schema, required: tuple[str, ...] = ()) -> Schema:
    found: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    if required:
        found["required"] = list(required)
    return found


def _described(model: type[BaseModel], properties: Schema) -> Schema:
    """The properties with the descriptions that the model's fields have."""
    return {
        key: {**value, "description": model.model_fields[key].description or ""} for key, value in properties.items()
    }
