"""What was meant by `{ name: value, key }`: inside { } YAML splits at commas, and makes a key of a value's rest."""

from __future__ import annotations

import re
from typing import NamedTuple

from mergeflow.recipe.tokens import clip

LISTS = ("sweep", "gradient", "drop", "only", "fix", "mark", "sidecars", "metadata_for", "include")  # keys of lists
_OF_MANY = (*LISTS, "mbw")
_SPLIT = "inside { } YAML splits at commas"
_MORE_ITEMS = re.compile(r"(?:\s*,\s*[^{}\[\],:\n]+(?=\s*[,}]))*")  # of a list without brackets
_LOST_COLON = re.compile(r"(\S+)\s+([-+]?[0-9.]+%?|\S+\.(?:safetensors|ckpt|pt|pth|bin))")  # OUT 0.6
_DECIMAL = re.compile(r"([0-9]+),([0-9]+)(?![0-9.])")
_CURLY = ("“", "„", "‟")  # not the quotes that YAML knows


class Answer(NamedTuple):
    """`at_value`: the error stands at the value, not at the key."""

    message: str
    hint: str
    at_value: bool = False


def split_by_comma(name: str, key: str, typed: str, rest: str) -> Answer:
    """The answer to a key without a value: `typed` is the text from the value to the key's end, `rest` what follows."""
    more = _MORE_ITEMS.match(rest)
    after = more[0] if more else ""
    in_call = typed.count("(") > typed.count(")") or ")" in key
    decimal = _DECIMAL.search(typed)
    if decimal and not in_call and name not in _OF_MANY and not after and typed.count(",") == 1:
        return Answer(f"{clip(decimal[0])} is not a number here", f"write {decimal[1]}.{decimal[2]}", at_value=True)
    if not in_call and (lost := _LOST_COLON.fullmatch(key)):
        return Answer(f"{clip(key)} has no colon", f"write {lost[1]}: {lost[2]}")
    if in_call and (closing := (typed + rest).find(")", len(typed) - len(key))) >= 0:
        typed = (typed + rest)[: closing + 1]
    elif name in _OF_MANY or re.fullmatch(r"[-+0-9.,\s]+", typed):
        typed = (typed + after).rstrip()
    if name in LISTS:
        return Answer(_SPLIT, f"a list has brackets: {name}: [{typed if len(typed) <= 60 else '…, …'}]")
    if typed.startswith(_CURLY):
        return Answer(_SPLIT, 'these quotes are none to YAML: write " in their place')
    quoted = "…" if '"' in typed else typed if len(typed) <= 60 else f"{typed[:20]}…"
    return Answer(_SPLIT, f'put it on lines of its own, or quote the text: {clip(name)}: "{quoted}"')
