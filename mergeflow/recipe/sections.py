"""The sections of a recipe other than sources: params, steps, assertions, outputs, options; from nodes to values."""

from __future__ import annotations

import posixpath
import re
import unicodedata
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
    path_text,
    reference,
    scalar,
    weighted,
    word,
)
from mergeflow.recipe.model import BlockList, Options, Output, Param, ProfileEntry, Step
from mergeflow.recipe.tokens import clip, normal_name

STEP_KEYS = ("expr", "method", "round", "keep", "like", "replace", "note")  # no argument of a method is called so
OUTPUT_KEYS = ("from", "dtype", "only", "drop", "fix", "mark", "metadata", "like", "replace", "embed", "note")
DEFAULT_KEYS = ("dtype", "only", "drop", "fix", "mark", "metadata", "replace", "embed")
OPTION_KEYS = ("compute", "missing", "nonfinite", "policy")
POLICIES = ("exact", "a1111")
MAX_STEM = 220  # file names end at 255 bytes, and the sidecar's adds 12
LIST_KEYS = ("preset", "mbw", "blocks")  # of a profile; its other keys are default and selectors
EMBED = ("sidecar", "recipe", "none")
_NUMBER_LIST = re.compile(r"\s*-?[0-9.]+(?:\s*,\s*-?[0-9.]+){2,}\s*,?\s*")
_A_LIST = "a list of numbers by block is an mbw: of a profile"
_LISTS_ARE = 'write { mbw: "1,0.9,…", BASE: 0 }, without BASE: where the list has a number for it'
_SWEEP = re.compile(r"\s*-?[0-9.]+(?:\s*:\s*-?[0-9.]+){1,2}\s*")


def read_param(name: str, node: nodes.Node, place: Place) -> Param:
    if isinstance(node, nodes.Mapping):
        return _profile(name, node, place)
    if isinstance(node, nodes.Sequence):
        raise node.error(_A_LIST, _LISTS_ARE)
    return Param(value=_number(node, f"the param {clip(name)}"), place=place)


def _profile(name: str, node: nodes.Mapping, place: Place) -> Param:
    what = f"the param {clip(name)}"
    if not node.items:
        raise node.error(f"{what} has no value", f"write {clip(name)}: 0.3, or a profile with default: and selectors")
    check_keys(node, what, node.items.keys() - later.PARAM.keys(), later.PARAM, name)
    default: Expression | None = None
    entries = []
    for selector, (key, value) in node.items.items():
        of = f"{clip(selector)} of {what}"
        if selector == "default":
            default = _number(_one(value, of, "for all blocks it is '*': { gradient: [1, 0] }"), of)
        elif selector not in LIST_KEYS:
            label = normal_name(line_of_text(key, "a selector").strip())
            entries.append(ProfileEntry(selector=label, numbers=_numbers(value, of, name), place=key.where))
    return Param(profile=tuple(entries), default=default, listed=_block_list(node), place=place)


def _one(node: nodes.Node, what: str, hint: str) -> nodes.Scalar:
    if not isinstance(node, nodes.Scalar):
        raise node.error(f"{what} is one number", hint)
    return node


def _numbers(node: nodes.Node, what: str, name: str) -> tuple[Expression, ...]:
    """What a selector has: a number, or a gradient of several."""
    if not isinstance(node, nodes.Mapping):
        return (_number(_one(node, what, "numbers along the blocks are { gradient: [1, 0.5, 0] }"), what),)
    check_keys(node, what, ("gradient",), later.PARAM, name)
    if "gradient" not in node.items:
        raise node.error(f"{what} has no value", "write a number, or { gradient: [1, 0.5, 0] }")
    value = node.items["gradient"][1]
    if not isinstance(value, nodes.Sequence) or len(value.items) < 2:
        raise value.error(f"the gradient of {what} is a list of two numbers or more", "for example [1, 0.5, 0]")
    return tuple(_number(item, f"a number in the gradient of {what}") for item in value.items)


def _block_list(node: nodes.Mapping) -> BlockList | None:
    given = {key: node.items[key][1] for key in LIST_KEYS if key in node.items}
    if not given:
        return None
    at = given.get("mbw") or given.get("preset") or given["blocks"]
    values: dict[str, Any] = {key: list_value(key, value) for key, value in given.items()}
    return build(BlockList, {**values, "place": at.where}, at, given)


def list_value(key: str, node: nodes.Node) -> str:
    """The value of preset:, mbw: or blocks:; a YAML list of numbers is as good as a pasted one."""
    if key != "mbw":
        return line_of_text(node, key).strip()
    items = node.items if isinstance(node, nodes.Sequence) else [node]
    return ", ".join(scalar(item, "a number of mbw" if item is not node else "mbw").value for item in items)


def _number(node: nodes.Node, what: str) -> Expression:
    """A number: an expression, but not the lists and ranges that people write here."""
    text = scalar(node, what).value
    if _NUMBER_LIST.fullmatch(text):
        raise node.error(_A_LIST, _LISTS_ARE)
    if _SWEEP.fullmatch(text):
        raise node.error(later.not_yet("a range of numbers (sweep)"), "give one number, and build again with --set")
    return expression(node, what)


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
        check_keys(node, what, [key for key in STEP_KEYS if key not in ("keep", "method")], later.STEP, name)
        if "expr" not in given:
            raise node.error(f"{what} has neither expr: nor method:", f"write {clip(name)}: a + (b - c) * 0.3")
    elif "keep" in given:
        check_keys(node, what, given.keys() - {"keep"}, later.STEP, name)
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


def read_output(path: str, node: nodes.Node, place: Place, defaults: dict[str, Any]) -> Output:
    what = f"the output {clip(path)}"
    if isinstance(node, nodes.Scalar):
        return Output(**{**defaults, "expr": expression(node, what), "place": place})
    if isinstance(node, nodes.Sequence):
        raise node.error(f"{what} is an expression or a mapping, not a list")
    check_keys(node, what, OUTPUT_KEYS, later.OUTPUT, path)
    given = {key: value for key, (_, value) in node.items.items()}
    if "from" not in given:
        raise node.error(f"{what} has no from:", "for example { from: final, dtype: float16 }")
    own = _output_values(node)
    for merged in ("metadata", "replace"):
        if merged in own and merged in defaults:
            own[merged] = {**defaults[merged], **own[merged]}
    expr = expression(given["from"], f"from of {what}")
    return build(Output, {**defaults, **own, "expr": expr, "place": place}, node, given)


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


def output_path(key: nodes.Scalar) -> str:
    """The path of an output, as typed; it stays below the folder it is taken from."""
    path = path_text(key, "the path of an output")
    if "{" in path or "}" in path:
        raise key.error(
            later.not_yet("an output path with { }"), "a path for each output, and one output for each value"
        )
    if path.endswith("/"):
        raise key.error(later.not_yet("an output that is a folder"), "an output is one .safetensors file")
    if ".." in path.replace("\\", "/").split("/"):
        raise key.error("an output path has no ..", "paths are taken from the output root (--output-root)")
    stem, suffix = posixpath.splitext(posixpath.basename(path.replace("\\", "/")))
    if suffix.lower() != ".safetensors":
        found = f"a {suffix} file" if suffix else "a file without a suffix"
        raise key.error(
            f"{found} cannot be written", f"outputs end in .safetensors: {clip(stem.strip('.') or 'mix')}.safetensors"
        )
    if len(stem.encode()) > MAX_STEM:
        raise key.error(f"the name of an output has at most {MAX_STEM} bytes before .safetensors")
    return path


def same_output(path: str) -> str:
    """What two paths share that are one file on some system."""
    return unicodedata.normalize("NFC", posixpath.normpath(path.replace("\\", "/"))).casefold()


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
    return build(Options, values, node, given)


def read_extra(node: nodes.Node) -> Any:
    """The author's own x- keys, as plain lists, dicts and texts (nodes nest at most 40 deep)."""
    if isinstance(node, nodes.Sequence):
        return [read_extra(item) for item in node.items]
    if isinstance(node, nodes.Mapping):
        return {key: read_extra(value) for key, (_, value) in node.items.items()}
    assert isinstance(node, nodes.Scalar)
    return node.value
