"""The architectures there are, by name; each data file is read when it is first asked for.

A data file is checked as it is read, by hand: a validation library would cost more time than all files together.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

from mergeflow.arch.aliases import Aliases
from mergeflow.arch.base import BUFFERS, Architecture
from mergeflow.arch.blocks import BASE, Layout, NumberList, expanded
from mergeflow.errors import IntegrityError, MissingInput, Place, RecipeError, UnknownName

DATA = Path(__file__).parent / "data"
PARTS = ("network", "layout", "text_encoder", "vae")  # what a rule may look at, from the surest to the weakest
ANY = -1


@dataclass(frozen=True, slots=True)
class Rule:
    """A sign by which a header shows its architecture: tensors it has, and tensors it must not have.

    In a shape, ANY stands for any size; no shape at all (None) for any shape.
    """

    part: str
    why: str
    has: tuple[tuple[str, tuple[int, ...] | None], ...]
    lacks: tuple[str, ...]

    def fits(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        there = all(tensor in shapes and _same(shapes[tensor], pattern) for tensor, pattern in self.has)
        return there and not any(tensor in shapes for tensor in self.lacks)


def names() -> tuple[str, ...]:
    """The architectures that a recipe may name, in alphabetical order."""
    return tuple(_files())


def get(name: str) -> Architecture:
    return load(name)[0]


@cache
def load(name: str) -> tuple[Architecture, tuple[Rule, ...]]:
    """An architecture and the rules that detect it."""
    path = _files().get(name)
    if path is None:
        raise UnknownName("architecture", name, names(), hint=f"known: {', '.join(names())}")
    try:
        return parse(name, tomllib.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise IntegrityError(f"{path} does not describe an architecture: {error}") from error


def load_file(path: Path | str) -> Architecture:
    """An architecture of the user's own, called what its file is called. It is not detected, but named by recipes.

    Raises:
        MissingInput: there is no such file.
        RecipeError: it does not follow data/README.md; the message names the field.
    """
    path = Path(path)
    place = Place(str(path))
    if path.stem in _files():
        raise RecipeError(f"there is an architecture called {path.stem} already", place=place, hint="rename the file")
    try:
        return parse(path.stem, tomllib.loads(path.read_text(encoding="utf-8")))[0]
    except OSError as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
        raise MissingInput(f"{path}: {reason}") from error
    except tomllib.TOMLDecodeError as error:
        at = re.search(r"line ([0-9]+), column ([0-9]+)", str(error))
        if at:
            place = Place(str(path), int(at[1]), int(at[2]))
        raise RecipeError(f"not TOML: {error}", place=place) from error
    except ValueError as error:
        raise RecipeError(str(error), place=place, hint="arch/data/README.md says what such a file holds") from error


def parse(name: str, data: dict[str, Any]) -> tuple[Architecture, tuple[Rule, ...]]:
    """What a data file says. ValueError, with the field, where it does not follow data/README.md."""
    _only("", data, "title", "components", "groups", "buffers", "blocks", "aliases", "diffusers", "detect")
    components = {c: _texts(f"components.{c}", globs) for c, globs in _table("components", data).items()}
    groups = {g: _texts(f"groups.{g}", members) for g, members in _table("groups", data, {}).items()}
    for group, members in groups.items():
        if group in components:
            raise ValueError(f"groups.{group}: a component has this name")
        if unknown := [m for m in members if m not in components]:
            raise ValueError(f"groups.{group}: {unknown[0]} is no component")
    buffers = _texts("buffers", data.get("buffers", []))
    if bad := [b for b in buffers if "*" in b[1:]]:
        raise ValueError(f"buffers: a buffer is a whole name or * and an ending, not {bad[0]}")
    layout = _layout(_table("blocks", data, {}))
    aliases = _aliases(_texts_by_name("aliases", data), _table("diffusers", data, {}))
    architecture = Architecture(name, _text("title", data), components, groups, BUFFERS + buffers, layout, aliases)
    rules = data.get("detect", [])
    if not isinstance(rules, list) or not all(isinstance(r, dict) for r in rules):
        raise ValueError("detect: expected tables, each headed [[detect]]")
    return architecture, tuple(_rule(f"detect {i}", rule) for i, rule in enumerate(rules, 1))


def _layout(data: dict[str, Any]) -> Layout:
    if not data:
        return Layout()
    _only("blocks", data, "order", "outside", "tensors", "lists")
    order = _texts("blocks.order", data.get("order"))
    outside = _texts("blocks.outside", data.get("outside", []))
    names = _expanded("blocks.order", order)
    if order[:1] != (BASE,):
        raise ValueError(f"blocks.order: {BASE} comes first")
    if len(set(names)) < len(names):
        raise ValueError("blocks.order: a block is named twice")
    if unknown := [block for block in outside if block not in names]:
        raise ValueError(f"blocks.outside: {unknown[0]} is not in blocks.order")
    tensors = _texts_by_name("tensors", data, "blocks.tensors")
    layout = Layout(order, outside, tensors)
    for glob, block in tensors.items():
        field = f'blocks.tensors."{glob}"'
        if glob.count("#") > 1 or glob.count("#") < block.count("#") or "#" in block.removesuffix("#"):
            raise ValueError(f"{field}: one # for the number in the name, and one at the end of the block's, if any")
        if block not in names and layout.group(block.replace("#", "0")) is None:
            raise ValueError(f"{field}: {block} is not in blocks.order")
    return Layout(order, outside, tensors, tuple(_lists(data.get("lists", []), names)))


def _lists(data: Any, known: tuple[str, ...]) -> Iterator[NumberList]:
    if not isinstance(data, list) or not all(isinstance(form, dict) for form in data):
        raise ValueError("blocks.lists: expected tables, each headed [[blocks.lists]]")
    for i, form in enumerate(data, 1):
        field = f"blocks.lists {i}"
        _only(field, form, "names", "rest")
        names = _expanded(f"{field}.names", _texts(f"{field}.names", form.get("names")))
        if unknown := [n for n in names if n not in known]:
            raise ValueError(f"{field}.names: {unknown[0]} is not in blocks.order")
        try:
            yield NumberList(names, Fraction(_text("rest", form, field)) if "rest" in form else None)
        except (ValueError, ZeroDivisionError):
            raise _wrong(f"{field}.rest", "a number in quotes", form["rest"]) from None


def _expanded(field: str, entries: tuple[str, ...]) -> tuple[str, ...]:
    try:
        return expanded(entries)
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from None


def _aliases(prefixes: Mapping[str, str], data: dict[str, Any]) -> Aliases:
    _only("diffusers", data, "unet", "attention", "vae", "folders")
    unet = _text("unet", data, "diffusers") if "unet" in data else ""
    vae = _text("vae", data, "diffusers") if "vae" in data else ""
    attention = data.get("attention", [])
    if not isinstance(attention, list) or not all(isinstance(a, bool) for a in attention):
        raise _wrong("diffusers.attention", "true or false for each level of the UNet", attention)
    if unet and not attention:
        raise _wrong("diffusers.attention", "", None)
    return Aliases(prefixes, unet, tuple(attention), vae, _texts_by_name("folders", data, "diffusers.folders"))


def _rule(field: str, data: dict[str, Any]) -> Rule:
    _only(field, data, "part", "why", "has", "lacks")
    part = _text("part", data, field)
    if part not in PARTS:
        raise ValueError(f"{field}.part is one of {', '.join(PARTS)}, not {part}")
    has = []
    for tensor, shape in _table("has", data, field=field).items():
        if shape != "*" and not (isinstance(shape, list) and all(type(n) is int and n >= ANY for n in shape)):
            raise ValueError(f'{field}.has."{tensor}": expected a list of sizes, or "*", not {shape!r}')
        has.append((tensor, None if shape == "*" else tuple(shape)))
    if not has:
        raise ValueError(f"{field}.has: a rule without a tensor fits every file")
    return Rule(part, _text("why", data, field), tuple(has), _texts(f"{field}.lacks", data.get("lacks", [])))


def _only(field: str, data: dict[str, Any], *known: str) -> None:
    if unknown := data.keys() - set(known):
        raise ValueError(f"{_at(field, min(unknown))} means nothing here; known: {', '.join(known)}")


def _at(field: str, key: str) -> str:
    return f"{field}.{key}" if field else key


def _wrong(field: str, expected: str, value: object) -> ValueError:
    return ValueError(f"{field}: " + ("it is missing" if value is None else f"expected {expected}, not {value!r}"))


def _text(key: str, data: dict[str, Any], field: str = "") -> str:
    if not isinstance(value := data.get(key), str):
        raise _wrong(_at(field, key), "a text", value)
    return value


def _texts(field: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise _wrong(field, "a list of texts", value)
    return tuple(value)


def _table(key: str, data: dict[str, Any], default: dict[str, Any] | None = None, field: str = "") -> dict[str, Any]:
    if not isinstance(value := data.get(key, default), dict):
        raise _wrong(_at(field, key), "a table", value)
    return value


def _texts_by_name(key: str, data: dict[str, Any], field: str = "") -> dict[str, str]:
    table = _table(key, data, {})
    if bad := [name for name, value in table.items() if not isinstance(value, str)]:
        raise _wrong(f'{field or key}."{bad[0]}"', "a text", table[bad[0]])
    return table


def _same(shape: tuple[int, ...], pattern: tuple[int, ...] | None) -> bool:
    if pattern is None:
        return True
    return len(shape) == len(pattern) and all(p in (ANY, n) for n, p in zip(shape, pattern, strict=True))


@cache
def _files() -> dict[str, Path]:
    return {path.stem: path for path in sorted(DATA.glob("*.toml"), key=lambda path: path.stem)}
