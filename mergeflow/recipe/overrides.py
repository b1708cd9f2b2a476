"""--set and --source: what the command line changes in a recipe that was read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from mergeflow.errors import RecipeError, UnknownName
from mergeflow.recipe import nodes
from mergeflow.recipe.expression import Expression
from mergeflow.recipe.fields import build
from mergeflow.recipe.model import BlockList, Param, ProfileEntry, Recipe
from mergeflow.recipe.params import MAX_VALUES, read_value
from mergeflow.recipe.places import SourceText
from mergeflow.recipe.profiles import LIST_KEYS, list_value, number
from mergeflow.recipe.sources import read_source
from mergeflow.recipe.tokens import clip, normal_name, tokenize


def override(recipe: Recipe, params: Mapping[str, str], sources: Mapping[str, str]) -> Recipe:
    """The recipe with `name=value` of --set and `name=path` of --source applied and recorded."""
    if not params and not sources:
        return recipe
    changed = dict(recipe.params)
    for name, text in params.items():
        _set(changed, recipe.sources, name, text)
    replaced = dict(recipe.sources)
    for name, text in sources.items():
        node = typed("--source", name, text)
        known = normal_name(name)
        if known not in replaced:
            raise UnknownName("source", name, replaced, place=node.where)
        old = replaced[known]
        new = read_source(known, node, Path(), node.where)
        replaced[known] = new.model_copy(update={"kind": old.kind, "arch": old.arch, "given": True})
    gone = (*recipe.replaced, *(recipe.sources[normal_name(name)] for name in sources))
    record = (*recipe.overrides, *(f"{k}={v}" for k, v in [*params.items(), *sources.items()]))
    return recipe.model_copy(update={"params": changed, "sources": replaced, "overrides": record, "replaced": gone})


def typed(option: str, name: str, text: str) -> nodes.Scalar:
    """A value of the command line as a node, so that errors show where in the argument they are."""
    whole = f"{name}={text}"
    start = len(name) + 1
    return nodes.Scalar(SourceText(option, whole), start, len(whole), value=text, style="typed")


def _set(params: dict[str, Param], sources: Mapping[str, object], name: str, text: str) -> None:
    node = typed("--set", name, text)
    known = normal_name(name)
    if known in params:
        params[known] = _given(params[known], known, node)
        return
    param, dot, selector = known.rpartition(".")
    while dot and param not in params:  # selectors have dots too: k.layers.3
        param, dot, rest = param.rpartition(".")
        selector = f"{rest}.{selector}"
    if not dot:
        hint = "" if params else "the recipe has no params"
        hint = f"{known} is a source: --source {known}=PATH" if known in sources else hint
        raise UnknownName("param", name, params, place=node.where, hint=hint)
    if not selector:
        raise RecipeError(f"--set {name} names no block", place=node.where, hint=f"for example --set {param}.OUT05=0.5")
    if params[param].sweep:
        hint = f"--set {param}=… puts one number, label or list [x, y] in its place"
        raise RecipeError(f"{clip(param)} is a sweep, which has no blocks", place=node.where, hint=hint)
    if selector in LIST_KEYS:
        params[param] = _with_list(params[param], selector, node)
        return
    params[param] = _with_entry(params[param], selector, number(node, f"the param {clip(known)}"), node)


def _given(old: Param, name: str, node: nodes.Scalar) -> Param:
    """What takes a param's place: `[x, y]` is a sweep over these; of a sweep, one value or label leaves one output."""
    if node.value.strip().startswith("["):
        values = tuple(_value(old, name, item) for item in _items(node))
        if not 0 < len(values) <= MAX_VALUES:
            raise node.error(f"a sweep has from one to {MAX_VALUES:,} values, not {len(values):,}")
        return Param(sweep=values, place=node.where)
    if old.sweep:
        return Param(sweep=(_value(old, name, node),), place=node.where)
    return Param(value=number(node, f"the param {clip(name)}"), place=node.where)


def _value(old: Param, name: str, node: nodes.Scalar) -> Param:
    labelled = {value.label: value for value in old.sweep if value.label is not None}
    return labelled.get(node.value.strip()) or read_value(name, node)


def _items(node: nodes.Scalar) -> Iterator[nodes.Scalar]:
    """The items of a list that was typed, each where it stands."""
    tokens = tokenize(node.value, node)
    depth, begin = 0, 0
    for token in map(tokens.__getitem__, range(len(tokens))):
        opens, closes = token.kind in ("[", "("), token.kind in ("]", ")")
        depth += opens - closes
        if depth == 1 and opens:
            begin = token.end
        elif (depth == 1 and token.kind == ",") or (depth == 0 and closes):
            yield _piece(node, begin, token.offset)
            begin = token.end
        if depth == 0 and (rest := node.value[token.end :].strip()):
            raise node.error(f"{clip(rest)} stands after the end of the list")
        if depth == 0:
            return
    raise node.error("this list is not closed", "end it with ]")


def _piece(node: nodes.Scalar, begin: int, end: int) -> nodes.Scalar:
    text = node.value[begin:end]
    begin += len(text) - len(text.lstrip())
    text = text.strip()
    return nodes.Scalar(node.source, node.start + begin, node.start + begin + len(text), value=text, style="typed")


def _with_list(param: Param, key: str, node: nodes.Scalar) -> Param:
    """The profile with another preset, list or layout; a preset takes the place of a list, and the other way round."""
    old = param.listed.model_dump(exclude={"place"}) if param.listed else {}
    kept = old if key == "blocks" else {"blocks": old.get("blocks")}
    listed = build(BlockList, {**kept, key: list_value(key, node), "place": node.where}, node, {})
    default = param.default if param.is_profile else param.value
    return param.model_copy(update={"value": None, "default": default, "listed": listed})


def _with_entry(param: Param, selector: str, value: Expression, node: nodes.Scalar) -> Param:
    """The profile with one selector set; a plain number becomes the default of a profile."""
    default = param.default if param.is_profile else param.value
    if selector == "default":
        return param.model_copy(update={"default": value, "value": None})
    entry = ProfileEntry(selector=selector, numbers=(value,), place=node.where)
    entries = [entry if e.selector == selector else e for e in param.profile]
    if entry not in entries:
        entries.append(entry)
    return param.model_copy(update={"value": None, "default": default, "profile": tuple(entries)})
