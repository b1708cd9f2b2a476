"""The sections of a recipe other than sources and params: steps, assertions, outputs, options; from nodes to values."""

from __future__ import annotations

from typing import Any

from mergeflow.errors import Place
from mergeflow.recipe import later, nodes
from mergeflow.recipe.expression import Comparison, Expression, parse_comparison
from mergeflow.recipe.fields import (
    argument,
    build,
    check_keys,
    choice,
    dtype,
    expression,
    free_text,
    line_of_text,
    list_of,
    mapping,
    name_of,
    reference,
    scalar,
    weighted,
    word,
)
from mergeflow.recipe.model import Options, Output, Step
from mergeflow.recipe.outputs import METADATA_FOR, SIDECARS, check_shards, shard_size, words
from mergeflow.recipe.template import Template
from mergeflow.recipe.tokens import clip

STEP_KEYS = ("expr", "method", "round", "keep", "like", "replace", "note")  # no argument of a method is called so
DEFAULT_KEYS = ("dtype", "only", "drop", "fix", "mark", "metadata", "replace", "embed", "shard_size", "metadata_for",
                "sidecars")  # fmt: skip
OUTPUT_KEYS = ("from", "like", "note", *DEFAULT_KEYS)
OPTION_KEYS = ("compute", "missing", "nonfinite", "policy", "seed")
POLICIES = ("exact", "a1111")
EMBED = ("sidecar", "recipe", "none")


def read_step(name: str, node: nodes.Node, place: Place) -> Step:
    what = f"the step {clip(name)}"
    if isinstance(node, nodes.Scalar):
        return Step(expr=expression(node, what), place=place)
    if isinstance(node, nodes.Sequence):
        raise node.error(f"{what} is an expression or a mapping, not a list", "quote an expression that begins with [")
    given = {key: value for key, (_, value) in node.items.items()}
    if "expr" in given and "method" in given:
        raise node.key("method").error(f"{what} has either expr: or method:, not both")
    if "method" not in given:
        check_keys(node, what, STEP_KEYS, later.STEP, name)
        if "expr" not in given:
            raise node.error(f"{what} has neither expr: nor method:", f"write {clip(name)}: a + (b - c) * 0.3")
    return build(Step, {**_step_values(what, node), "place": place}, node, given)


def _step_values(what: str, node: nodes.Mapping) -> dict[str, Any]:
    values: dict[str, Any] = {}
    arguments: dict[str, Expression] = {}
    for key, (key_node, value) in node.items.items():
        if key == "expr":
            values[key] = expression(value, f"expr of {what}")
        elif key == "method":
            values[key] = word(line_of_text(value, "method"), value, "the name of a method")
        elif key == "round":
            values[key] = dtype(value, key)
        elif key == "keep":
            values[key] = choice(value, key, ("true", "false")) == "true"
        elif key == "like":
            values[key] = reference(value, key)
        elif key == "replace":
            values[key] = _replacements(value)
        elif key == "note":
            values[key] = free_text(value, key)
        else:
            name = word(key, key_node, "an argument of a method")
            if name in arguments:
                raise key_node.error(f"{name} is given twice")
            arguments[name] = _models(value) if name == "models" else argument(value, f"{name} of {what}")
    return {**values, "arguments": arguments}


def _models(node: nodes.Node) -> Expression:
    """models: as a list of values, or as a mapping of names to weights."""
    if not isinstance(node, nodes.Mapping):
        return argument(node, "models")
    items = []
    for key, (key_node, value) in node.items.items():
        weight = value
        if isinstance(value, nodes.Mapping):
            check_keys(value, f"the model {clip(key)}", ("weight",), _PER_MODEL)
            if "weight" not in value.items:
                raise value.error(f"the model {clip(key)} has no weight", "for example { weight: 0.5 }")
            weight = value.items["weight"][1]
        items.append(
            weighted(name_of(key_node, "the model's name"), key_node, expression(weight, f"the weight of {clip(key)}"))
        )
    return list_of(items, node)


_PER_MODEL: later.Refusals = {
    key: (later.not_yet(f"{key}: for one model"), f"give {key}: once, for all of them")
    for key in ("density", "k", "drop", "epsilon", "gamma")
}


def _replacements(node: nodes.Node) -> dict[str, Expression]:
    replacements = {}
    for key_node, value in mapping(node, "replace", like="for example replace: { vae: a_model }").items.values():
        component = line_of_text(key_node, "a component").strip()
        replacements[component] = expression(value, f"the model that gives {clip(component)}")
    return replacements


def read_asserts(node: nodes.Node) -> tuple[Comparison, ...]:
    items = node.items if isinstance(node, nodes.Sequence) else [node]
    found = []
    for item in items:
        if isinstance(item, nodes.Mapping):
            raise item.error("assert is a list of comparisons", "for example assert: [final == a + b - c]")
        text = scalar(item, "an assertion")
        found.append(parse_comparison(text.value, text))
    return tuple(found)


def read_defaults(node: nodes.Mapping) -> dict[str, Any]:
    """The options that every output takes over."""
    for key in ("from", "like", "note"):
        if key in node.items:
            raise node.key(key).error(f"{key}: is given per output, not under defaults:")
    check_keys(node, "defaults", DEFAULT_KEYS, later.OUTPUT)
    return _output_values(node)


def read_output(template: Template, node: nodes.Node, place: Place, defaults: dict[str, Any]) -> Output:
    path = template.text
    what = f"the output {clip(path)}"
    if isinstance(node, nodes.Scalar):
        if defaults.get("shard_size"):
            check_shards(path, node)
        return Output(**{**defaults, "expr": expression(node, what), "template": template, "place": place})
    if isinstance(node, nodes.Sequence):
        raise node.error(
            f"{what} is an expression or a mapping, not a list", "a list is merged by a method: average([a, b])"
        )
    check_keys(node, what, OUTPUT_KEYS, later.OUTPUT, path)
    given = {key: value for key, (_, value) in node.items.items()}
    if "from" not in given:
        raise node.error(f"{what} has no from:", "for example { from: final, dtype: float16 }")
    own = _output_values(node)
    for merged in ("metadata", "replace"):
        if merged in own and merged in defaults:
            own[merged] = {**defaults[merged], **own[merged]}
    if {**defaults, **own}.get("shard_size"):
        check_shards(path, given.get("shard_size", node))
    expr = expression(given["from"], f"from of {what}")
    return build(Output, {**defaults, **own, "expr": expr, "template": template, "place": place}, node, given)


def _output_values(node: nodes.Mapping) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, (_, value) in node.items.items():
        if key == "dtype":
            values |= _dtypes(value)
        elif key in ("only", "drop", "fix", "mark"):
            values[key] = _words(value, key)
        elif key == "metadata":
            values[key] = _metadata(value)
        elif key == "like":
            values[key] = reference(value, key)
        elif key == "replace":
            values[key] = _replacements(value)
        elif key == "embed":
            values[key] = choice(value, key, EMBED)
        elif key == "shard_size":
            values[key] = shard_size(value)
        elif key == "metadata_for":
            values[key] = words(value, key, METADATA_FOR)
        elif key == "sidecars":
            values[key] = words(value, key, SIDECARS)
        elif key == "note":
            values[key] = free_text(value, key)
    return values


def _dtypes(node: nodes.Node) -> dict[str, Any]:
    """One dtype, or one per selector with `default` for the rest (without it, the rest keeps its own)."""
    if not isinstance(node, nodes.Mapping):
        return {"dtype": dtype(node, "dtype"), "dtypes": {}}
    found = {line_of_text(key, "a selector").strip(): dtype(value, "dtype") for key, value in node.items.values()}
    return {"dtype": found.pop("default", None), "dtypes": found}


def _words(node: nodes.Node, what: str) -> tuple[str, ...]:
    """One word, or a list of them."""
    items = node.items if isinstance(node, nodes.Sequence) else [node]
    return tuple(line_of_text(item, what).strip() for item in items)


def _metadata(node: nodes.Node) -> dict[str, str]:
    found = {}
    for key, (key_node, value) in mapping(
        node, "metadata", like="for example metadata: { title: a mix }"
    ).items.items():
        found[line_of_text(key_node, "a metadata key")] = free_text(value, f"the metadata {clip(key)}")
    return found


def read_options(node: nodes.Mapping) -> Options:
    check_keys(node, "options", OPTION_KEYS, later.OPTIONS)
    given = {key: value for key, (_, value) in node.items.items()}
    values: dict[str, Any] = {}
    if "compute" in given:
        compute = line_of_text(given["compute"], "compute").strip()
        values["compute"] = compute if compute == "auto" else dtype(given["compute"], "compute")
    if "missing" in given:
        values["missing"] = choice(given["missing"], "missing", ("keep", "error"))
    if "nonfinite" in given:
        values["nonfinite"] = choice(given["nonfinite"], "nonfinite", ("warn", "error", "allow"))
    if "policy" in given:
        values["policy"] = choice(given["policy"], "policy", POLICIES)
        if values["policy"] != "exact" and values.get("compute", "auto") != "auto":
            raise given["compute"].error(
                f"policy: {values['policy']} decides the dtype of its sums itself", "leave compute: out"
            )
    if "seed" in given:
        values["seed"] = line_of_text(given["seed"], "seed").strip()
    return build(Options, values, node, given)


def read_extra(node: nodes.Node) -> Any:
    """The author's own x- keys, as plain lists, dicts and texts (nodes nest at most 40 deep)."""
    if isinstance(node, nodes.Sequence):
        return [read_extra(item) for item in node.items]
    if isinstance(node, nodes.Mapping):
        return {key: read_extra(value) for key, (_, value) in node.items.items()}
    assert isinstance(node, nodes.Scalar)
    return node.value
