"""An architecture read from the tables of its data file, each field checked by hand: a validation library would cost
more time than reading all the files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from mergeflow.arch.aliases import Aliases
from mergeflow.arch.base import BUFFERS, Architecture
from mergeflow.arch.blocks import BASE, Layout, NumberList, expanded

PARTS = ("network", "layout", "text_encoder", "vae")  # what a rule may look at, from the surest to the weakest
ANY = -1


class DefinitionError(ValueError):
    """A field that breaks the format: `blocks.tensors."net.*"`, `detect 2.has`."""

    def __init__(self, field: str, message: str, joint: str = ": ") -> None:
        super().__init__(f"{field}{joint}{message}")
        self.field = field


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


def parse(name: str, data: dict[str, Any]) -> tuple[Architecture, tuple[Rule, ...]]:
    """What a data file says.

    Raises:
        DefinitionError: it does not follow data/README.md; the error names the field.
    """
    _only("", data, "title", "components", "groups", "buffers", "blocks", "aliases", "diffusers", "detect")
    components = {c: _texts(f"components.{c}", globs) for c, globs in _table("components", data).items()}
    groups = {g: _texts(f"groups.{g}", members) for g, members in _table("groups", data, {}).items()}
    for group, members in groups.items():
        if group in components:
            raise DefinitionError(f"groups.{group}", "a component has this name")
        if unknown := [m for m in members if m not in components]:
            raise DefinitionError(f"groups.{group}", f"{unknown[0]} is no component")
    buffers = _texts("buffers", data.get("buffers", []))
    if bad := [b for b in buffers if "*" in b[1:]]:
        raise DefinitionError("buffers", f"a buffer is a whole name or * and an ending, not {bad[0]}")
    layout = _layout(_table("blocks", data, {}))
    aliases = _aliases(_texts_by_name("aliases", data), _table("diffusers", data, {}))
    architecture = Architecture(name, _text("title", data), components, groups, BUFFERS + buffers, layout, aliases)
    rules = data.get("detect", [])
    if not isinstance(rules, list) or not all(isinstance(r, dict) for r in rules):
        raise DefinitionError("detect", "expected tables, each headed [[detect]]")
    return architecture, tuple(_rule(f"detect {i}", rule) for i, rule in enumerate(rules, 1))


def _layout(data: dict[str, Any]) -> Layout:
    if not data:
        return Layout()
    _only("blocks", data, "order", "outside", "tensors", "lists")
    order = _texts("blocks.order", data.get("order"))
    outside = _texts("blocks.outside", data.get("outside", []))
    names = _expanded("blocks.order", order)
    if order[:1] != (BASE,):
        raise DefinitionError("blocks.order", f"{BASE} comes first")
    if len(set(names)) < len(names):
        raise DefinitionError("blocks.order", "a block is named twice")
    if unknown := [block for block in outside if block not in names]:
        raise DefinitionError("blocks.outside", f"{unknown[0]} is not in blocks.order")
    tensors = _texts_by_name("tensors", data, "blocks.tensors")
    layout = Layout(order, outside, tensors)
    for glob, block in tensors.items():
        field = f'blocks.tensors."{glob}"'
        if glob.count("#") > 1 or glob.count("#") < block.count("#") or "#" in block.removesuffix("#"):
            raise DefinitionError(field, "one # for the number in the name, and one at the end of the block's, if any")
        if block not in names and layout.group(block.replace("#", "0")) is None:
            raise DefinitionError(field, f"{block} is not in blocks.order")
    return Layout(order, outside, tensors, tuple(_lists(data.get("lists", []), names)))


def _lists(data: Any, known: tuple[str, ...]) -> Iterator[NumberList]:
    if not isinstance(data, list) or not all(isinstance(form, dict) for form in data):
        raise DefinitionError("blocks.lists", "expected tables, each headed [[blocks.lists]]")
    for i, form in enumerate(data, 1):
        field = f"blocks.lists {i}"
        _only(field, form, "names", "rest")
        names = _expanded(f"{field}.names", _texts(f"{field}.names", form.get("names")))
        if unknown := [n for n in names if n not in known]:
            raise DefinitionError(f"{field}.names", f"{unknown[0]} is not in blocks.order")
        try:
            yield NumberList(names, Fraction(_text("rest", form, field)) if "rest" in form else None)
        except (ValueError, ZeroDivisionError):
            raise _wrong(f"{field}.rest", "a number in quotes", form["rest"]) from None


def _expanded(field: str, entries: tuple[str, ...]) -> tuple[str, ...]:
    try:
        return expanded(entries)
    except ValueError as error:
        raise DefinitionError(field, str(error)) from None


def _aliases(prefixes: Mapping[str, str], data: dict[str, Any]) -> Aliases:
    _only("diffusers", data, "unet", "attention", "vae", "folders")
    unet = _text("unet", data, "diffusers") if "unet" in data else None
    vae = _text("vae", data, "diffusers") if "vae" in data else None
    attention = data.get("attention", [])
    if not isinstance(attention, list) or not all(isinstance(a, bool) for a in attention):
        raise _wrong("diffusers.attention", "true or false for each level of the UNet", attention)
    if unet is not None and not attention:
        raise _wrong("diffusers.attention", "", None)
    return Aliases(prefixes, unet, tuple(attention), vae, _texts_by_name("folders", data, "diffusers.folders"))


def _rule(field: str, data: dict[str, Any]) -> Rule:
    _only(field, data, "part", "why", "has", "lacks")
    part = _text("part", data, field)
    if part not in PARTS:
        raise DefinitionError(f"{field}.part", f"it is one of {', '.join(PARTS)}, not {part}")
    has = []
    for tensor, shape in _table("has", data, field=field).items():
        if shape != "*" and not (isinstance(shape, list) and all(type(n) is int and n >= ANY for n in shape)):
            raise _wrong(f'{field}.has."{tensor}"', 'a list of sizes, or "*"', shape)
        has.append((tensor, None if shape == "*" else tuple(shape)))
    if not has:
        raise DefinitionError(f"{field}.has", "a rule without a tensor fits every file")
    return Rule(part, _text("why", data, field), tuple(has), _texts(f"{field}.lacks", data.get("lacks", [])))


def _only(field: str, data: dict[str, Any], *known: str) -> None:
    if unknown := data.keys() - set(known):
        raise DefinitionError(_at(field, min(unknown)), f"means nothing here; known: {', '.join(known)}", " ")


def _at(field: str, key: str) -> str:
    return f"{field}.{key}" if field else key


def _wrong(field: str, expected: str, value: object) -> DefinitionError:
    return DefinitionError(field, "it is missing" if value is None else f"expected {expected}, not {value!r}")


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
