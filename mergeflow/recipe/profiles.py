"""Numbers and profiles, as params have them: one number, or numbers for parts of a model."""

from __future__ import annotations

import re
from typing import Any

from mergeflow.errors import Place, nearest
from mergeflow.recipe import later, nodes
from mergeflow.recipe.expression import Expression
from mergeflow.recipe.fields import build, check_keys, expression, line_of_text, scalar
from mergeflow.recipe.model import BlockList, Param, ProfileEntry
from mergeflow.recipe.tokens import clip, normal_name

LIST_KEYS = ("preset", "mbw", "blocks")  # of a profile; its other keys are default and selectors
A_LIST = "a list of numbers by block is an mbw: of a profile"
LISTS_ARE = 'write { mbw: "1,0.9,…", BASE: 0 }, without BASE: where the list has a number for it'
_NUMBER_LIST = re.compile(r"\s*-?[0-9.]+(?:\s*,\s*-?[0-9.]+){2,}\s*,?\s*")
_RANGE = re.compile(
    r"\s*(-?[0-9.]+)\s*(?::|\bto\b)\s*(-?[0-9.]+)(?:\s*(?::|\b(?:by|step)\b)\s*(-?[0-9.]+))?\s*", re.IGNORECASE
)


def read_profile(name: str, node: nodes.Mapping, place: Place) -> Param:
    what = f"the param {clip(name)}"
    if not node.items:
        raise node.error(f"{what} has no value", f"write {clip(name)}: 0.3, or a profile with default: and selectors")
    check_keys(node, what, node.items.keys() - later.PARAM.keys(), later.PARAM, name)
    default: Expression | None = None
    entries = []
    for selector, (key, value) in node.items.items():
        of = f"{clip(selector)} of {what}"
        if selector == "default":
            default = number(_one(value, of, "for all blocks it is '*': { gradient: [1, 0] }"), of)
        elif selector not in LIST_KEYS:
            label = normal_name(line_of_text(key, "a selector").strip())
            entries.append(ProfileEntry(selector=label, numbers=_numbers(value, of, name, selector), place=key.where))
    return Param(profile=tuple(entries), default=default, listed=_block_list(node), place=place)


def _one(node: nodes.Node, what: str, hint: str) -> nodes.Scalar:
    if isinstance(node, nodes.Mapping) and "sweep" in node.items:
        message, hint = later.SWEEP_IN_A_LINE
        raise node.key("sweep").error(message, hint.format())
    if not isinstance(node, nodes.Scalar):
        raise node.error(f"{what} is one number", hint)
    return node


def _no_number(selector: str) -> str:
    """What to do about several values behind a selector."""
    close = nearest(selector, [*LIST_KEYS, "sweep"])
    return f"did you mean {close[0]}?" if close else "numbers along the blocks are { gradient: [1, 0.5, 0] }"


def _numbers(node: nodes.Node, what: str, name: str, selector: str) -> tuple[Expression, ...]:
    """What a selector has: a number, or a gradient of several."""
    if not isinstance(node, nodes.Mapping):
        return (number(_one(node, what, _no_number(selector)), what),)
    if "gradient" not in node.items and (close := nearest(selector, ["sweep"])):
        raise node.error(f"{clip(selector)} of the param {clip(name)} has no value", f"did you mean {close[0]}?")
    check_keys(node, what, ("gradient",), {**later.PARAM, "sweep": later.SWEEP_IN_A_LINE}, name)
    if "gradient" not in node.items:
        raise node.error(f"{what} has no value", "write a number, or { gradient: [1, 0.5, 0] }")
    value = node.items["gradient"][1]
    if not isinstance(value, nodes.Sequence) or len(value.items) < 2:
        raise value.error(f"the gradient of {what} is a list of two numbers or more", "for example [1, 0.5, 0]")
    return tuple(number(item, f"a number in the gradient of {what}") for item in value.items)


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


def number(node: nodes.Node, what: str) -> Expression:
    """A number: an expression, but not the lists and ranges that people write here."""
    text = scalar(node, what).value
    if _NUMBER_LIST.fullmatch(text):
        raise node.error(A_LIST, LISTS_ARE)
    if found := _RANGE.fullmatch(text):
        low, high, step = found.groups()
        written = f"{{ sweep: {{ from: {low}, to: {high}, by: {step or '…'} }} }}"
        typed = isinstance(node, nodes.Scalar) and node.style == "typed"
        hint = "list them: [0, 0.5, 1]" if typed else f"write {written}"
        raise node.error(f"{clip(text.strip())} is a range of numbers, and one is needed", hint)
    return expression(node, what)
