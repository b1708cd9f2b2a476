"""The sources: section: model files by path, by hash or by address; steps of other recipes; lists of them."""

from __future__ import annotations

import re
from pathlib import Path

from mergeflow.errors import Place
from mergeflow.recipe import later, nodes
from mergeflow.recipe.fields import (
    build,
    check_keys,
    choice,
    expression,
    free_text,
    line_of_text,
    mapping,
    path_text,
    reference,
    scalar,
)
from mergeflow.recipe.model import Source
from mergeflow.recipe.origins import read_origin, scheme_of
from mergeflow.recipe.tokens import clip, normal_name

ADDRESSES = ("url", "hf", "civitai")
HASHES = ("sha256", "hash")
ALONE = ("path", *ADDRESSES, *HASHES)  # each of them is enough to find a file by
_KEYS = (*ALONE, "size", "kind", "ema", "arch", "recipe", "step", "set", "note", "license")
EMA = ("keep", "drop", "use")
KINDS = ("model", "delta", "vae")
OF_A_FILE = (*ALONE, "size", "ema")
OF_A_RECIPE = ("step", "set")
_STEP_OF_RECIPE = re.compile(r"(.+\.ya?ml)#(.+)", re.IGNORECASE)


def read_source(name: str, node: nodes.Node, folder: Path, place: Place) -> Source:
    """One source in any of its forms."""
    if isinstance(node, nodes.Sequence):
        return _many(name, node, folder, place)
    if isinstance(node, nodes.Mapping):
        return _long(name, node, folder, place)
    return _short(name, node, folder, place)


def _short(name: str, node: nodes.Node, folder: Path, place: Place) -> Source:
    path = path_text(node, f"the source {clip(name)}")
    refuse_scheme(path, node)
    if scheme_of(path):
        return Source(url=read_origin(path, node), folder=folder, place=place)
    kind, colon, digits = path.partition(":")
    if colon and kind.strip().lower() in HASHES:
        values = {kind.strip().lower(): digits.strip(), "folder": folder, "place": place}
        return build(Source, values, node, {})
    of_recipe = _STEP_OF_RECIPE.fullmatch(path)
    if of_recipe:
        recipe, step = of_recipe.groups()
        return Source(recipe=recipe, step=normal_name(step.strip()), folder=folder, place=place)
    if path.lower().endswith((".yaml", ".yml")):
        raise node.error("a recipe is a source by one of its steps", f"name the step: {clip(path)}#STEP")
    return Source(path=path, folder=folder, place=place)


def _many(name: str, node: nodes.Sequence, folder: Path, place: Place) -> Source:
    if not node.items:
        raise node.error(f"the source {clip(name)} is an empty list", "list the files of the models")
    many = []
    for item in node.items:
        if isinstance(item, nodes.Sequence):
            raise item.error("a list of models holds models, not lists")
        many.append(read_source(name, item, folder, item.where))
    return Source(many=tuple(many), folder=folder, place=place)


def _long(name: str, node: nodes.Mapping, folder: Path, place: Place) -> Source:
    what = f"the source {clip(name)}"
    check_keys(node, what, _KEYS, later.SOURCE, name)
    given = {key: value for key, (_, value) in node.items.items()}
    _refuse_mixtures(what, node)
    values: dict[str, object] = {"folder": folder, "place": place}
    for key, value in given.items():
        if key == "path":
            values.update(_path(value))
        elif key in ADDRESSES:
            values["url"] = _address(key, value)
        elif key == "recipe":
            values.update(_recipe(value, given))
        elif key == "kind":
            values[key] = _kind(value)
        elif key == "arch":
            values[key] = architecture(value, folder)
        elif key == "ema":
            values[key] = choice(value, key, EMA)
        elif key == "step":
            values[key] = reference(value, "step")
        elif key == "set":
            values[key] = _settings(value)
        elif key in ("note", "license"):
            values[key] = free_text(value, key)
        else:
            values[key] = line_of_text(value, key).strip()
    return build(Source, values, node, given)


def _refuse_mixtures(what: str, node: nodes.Mapping) -> None:
    keys = node.items
    if "recipe" not in keys and not any(key in keys for key in ALONE):
        hint = "add path: with the model's file; or an address as url:, or the file's sha256:"
        raise node.error(f"{what} has no path", hint)
    addresses = [key for key in ADDRESSES if key in keys]
    if len(addresses) > 1:
        raise node.key(addresses[1]).error(f"{what} has two addresses, {addresses[0]}: and {addresses[1]}:")
    if "recipe" in keys and "path" in keys:
        raise node.key("recipe").error(f"{what} is either a path: or a recipe:, not both")
    first = next(key for key in (*ALONE, "recipe") if key in keys)
    allowed, other = ("recipe", OF_A_FILE) if "recipe" in keys else (first, OF_A_RECIPE)
    for key in other:
        if key in keys:
            raise node.key(key).error(f"{key}: does not go with {allowed}:")


def _address(key: str, node: nodes.Node) -> str:
    text = line_of_text(node, key).strip()
    return read_origin(text if key == "url" or scheme_of(text) else f"{key}:{text}", node)


def _path(node: nodes.Node) -> dict[str, str]:
    path = path_text(node, "path")
    refuse_scheme(path, node)
    if scheme_of(path):
        raise node.error("path: names a file, and this is an address", f"write url: {clip(path)}")
    if _STEP_OF_RECIPE.fullmatch(path) or path.lower().endswith((".yaml", ".yml")):
        raise node.error("path: names a model file, and this is a recipe", "write recipe: and step:")
    return {"path": path}


def _recipe(node: nodes.Node, given: dict[str, nodes.Node]) -> dict[str, str]:
    path = path_text(node, "recipe")
    refuse_scheme(path, node)
    of_recipe = _STEP_OF_RECIPE.fullmatch(path)
    if of_recipe and "step" not in given:
        return {"recipe": of_recipe[1], "step": normal_name(of_recipe[2].strip())}
    if not path.lower().endswith((".yaml", ".yml")):
        raise node.error(f"{clip(path)} is not a recipe", "recipes end in .yaml or .yml")
    if "step" not in given:
        raise node.error("a recipe is a source by one of its steps", "add step: with the name of the step")
    return {"recipe": path}


def _kind(node: nodes.Node) -> str:
    kind = line_of_text(node, "kind").strip()
    refusal = later.KINDS.get(kind.lower())
    if refusal:
        raise node.error(*(text.format(key=kind.lower()) for text in refusal))
    return choice(node, "kind", KINDS)


def architecture(node: nodes.Node, folder: Path) -> str:
    """A name, or the path of a data file (`./mine.toml`), which is taken from the recipe's folder."""
    name = line_of_text(node, "arch").strip()
    return str(folder / path_text(node, "arch").strip()) if name.endswith(".toml") else name


def _settings(node: nodes.Node) -> dict[str, str]:
    settings = {}
    for key, (_, value) in mapping(node, "set", like="for example set: { m: 0.25 }").items.items():
        expression(value, key)  # its text is kept, but a mistake in it is this file's
        settings[normal_name(key.strip())] = scalar(value, key).value
    return settings


def refuse_scheme(path: str, node: nodes.Node) -> None:
    """Refuse addresses of kinds that are not fetched."""
    scheme, colon, _ = path.partition(":")
    what = later.SCHEMES.get(scheme.strip().lower()) if colon else None
    if what:
        raise node.error(later.not_yet(what), "get the file and give its path")
