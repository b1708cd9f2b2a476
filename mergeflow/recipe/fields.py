"""From nodes to single values: text, names, paths, dtypes, expressions; and from a failed model to a RecipeError."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from mergeflow.errors import RecipeError, nearest
from mergeflow.recipe import nodes
from mergeflow.recipe.expression import Expression, Instr, parse, parse_value, spell
from mergeflow.recipe.later import Refusals
from mergeflow.recipe.places import Pieces
from mergeflow.recipe.tokens import clip, is_plain_name, normal_name
from mergeflow.tensors import BY_LABEL, SHORT, DType

MAX_NAME = 500
FLOATS = {label: dtype for label, dtype in BY_LABEL.items() if dtype.is_float}

Model = TypeVar("Model", bound=BaseModel)


def scalar(node: nodes.Node, what: str) -> nodes.Scalar:
    """A text that is there."""
    if not isinstance(node, nodes.Scalar):
        kind, mark = ("a list", "[") if isinstance(node, nodes.Sequence) else ("a mapping", "{")
        raise node.error(f"{what} is one text, not {kind}", f"a text that begins with {mark} is quoted")
    if node.is_null:
        raise node.error(f"{what} has no value", "quote the text if null or ~ is meant" if node.value else "")
    return node


def line_of_text(node: nodes.Node, what: str) -> str:
    """Text of one line, as paths and names are."""
    value = scalar(node, what).value
    if not value.strip():
        raise node.error(f"{what} is empty")
    for char in value:
        if not char.isprintable() and char != "\u3000":
            escape = {"\n": "a line break", "\t": "a tab"}.get(char, f"U+{ord(char):04X}")
            hint = "give it on one line"
            if isinstance(node, nodes.Scalar) and node.style == "double":
                hint = "in double quotes \\n is a line break and \\t a tab: use / in paths, or single quotes"
            raise node.error(f"{what} contains {escape}", hint)
    return value


def free_text(node: nodes.Node, what: str) -> str:
    return scalar(node, what).value


def path_text(node: nodes.Node, what: str) -> str:
    """A path as typed; in a relative one \\ separates folders on every system."""
    path = line_of_text(node, what)
    absolute = path.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[\\/]", path)
    return path if absolute else path.replace("\\", "/")


def name_of(key: nodes.Node, what: str) -> str:
    """A name for a source, param or step: anything printable, in NFKC."""
    name = normal_name(line_of_text(key, what))
    if name != name.strip():
        raise key.error(f"{what} begins or ends with a space")
    if "'" in name and '"' in name:
        raise key.error(f"{what} holds both kinds of quotes, so no expression could quote it")
    if len(name) > MAX_NAME:
        raise key.error(f"{what} has {len(name)} characters; at most {MAX_NAME} are read")
    return name


def reference(node: nodes.Node, what: str) -> str:
    """A name that stands outside of an expression, with or without quotes of its own."""
    text = line_of_text(node, what).strip()
    if len(text) > 2 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1]
    return normal_name(text)


def word(text: str, node: nodes.Node, what: str) -> str:
    """A plain word: a method, or one of its arguments."""
    name = normal_name(text.strip())
    if not is_plain_name(name):
        meant = re.sub(r"\W+", "_", name)
        also = f": {clip(meant)}" if is_plain_name(meant) else ""
        raise node.error(f"{clip(text)} is not {what}", f"it is a word of letters, digits and _{also}")
    return name


def dtype(node: nodes.Node, what: str) -> DType:
    label = line_of_text(node, what).strip().lower()
    label = SHORT.get(label, label)
    found = FLOATS.get(label)
    if found is None:
        close = nearest(label, [*FLOATS, *SHORT])
        message = f"{clip(label)} is no floating point dtype"
        raise node.error(message, f"did you mean {close[0]}?" if close else f"one of {', '.join(FLOATS)}")
    return found


def expression(node: nodes.Node, what: str) -> Expression:
    text = scalar(node, what)
    try:
        return parse(text.value, text)
    except RecipeError as error:
        raise _with_yaml_hint(error, text) from None


def argument(node: nodes.Node, what: str) -> Expression:
    """An argument of a call in its long form: a value as text, or a YAML list of values."""
    if isinstance(node, nodes.Sequence):
        return list_of([argument(item, what) for item in node.items], node)
    text = scalar(node, what)
    try:
        return parse_value(text.value, text)
    except RecipeError as error:
        raise _with_yaml_hint(error, text) from None


def list_of(items: list[Expression], node: nodes.Node) -> Expression:
    """One list expression of several values, each keeping its own place."""
    starts: list[int] = [0]
    code: list[Instr] = []
    at = 1
    for item in items:
        starts.append(at)
        code.extend(_moved(item.code, at))
        at += len(item.text) + 2
    text = f"[{', '.join(item.text for item in items)}]"
    anchors = (nodes.Start(node), *(item.anchor for item in items))
    return Expression(text, (*code, Instr("list", len(items), 0)), Pieces(tuple(starts), anchors))


def weighted(name: str, key: nodes.Scalar, weight: Expression) -> Expression:
    """`name @ weight`, from a line of a models: mapping."""
    label = f"{spell(name)} @ "
    text = f"{label}({weight.text})"
    shift = len(label) + 1
    code = (Instr("name", name, 0), *_moved(weight.code, shift), Instr("weight", None, len(label) - 2))
    return Expression(text, code, Pieces((0, shift), (nodes.Start(key), weight.anchor)))


def _moved(code: tuple[Instr, ...], by: int) -> list[Instr]:
    return [Instr(i.op, i.value, i.offset + by) for i in code]


def _with_yaml_hint(error: RecipeError, node: nodes.Scalar) -> RecipeError:
    """A bracket that YAML cut off, because the text stands inside { } or [ ] and held a comma."""
    before = node.source.text[: node.start].rstrip()[-1:]
    after = node.source.text[node.end : node.end + 1]
    if node.style == "plain" and after == "," and "not closed" in error.message and before in (":", ",", "[", "{"):
        return RecipeError(
            "inside { } and [ ] YAML splits at commas, and this bracket is not closed",
            place=error.place,
            hint=f'put it on lines of its own, or quote the text: "{clip(node.value)}, …"',
        )
    return error


def mapping(node: nodes.Node, what: str, *, like: str = "") -> nodes.Mapping:
    if not isinstance(node, nodes.Mapping):
        raise node.error(f"{what} is a mapping", like)
    return node


def section(node: nodes.Node, what: str, like: str) -> dict[str, tuple[nodes.Scalar, nodes.Node]]:
    """The entries of a top-level section; one that is still empty has none."""
    if isinstance(node, nodes.Scalar) and node.is_null:
        return {}
    return mapping(node, what, like=like).items


def check_keys(node: nodes.Mapping, what: str, known: Iterable[str], refused: Refusals, name: str = "") -> None:
    """Refuse keys that do not exist, saying which was meant or that a later version brings it."""
    valid = frozenset(known)
    for key, (scalar_key, _) in node.items.items():
        if key in valid:
            continue
        if key in refused:
            message, hint = refused[key]
            raise scalar_key.error(message.format(key=key, name=name), hint.format(key=key, name=name))
        raise unknown_key(scalar_key, what, valid)


def unknown_key(key: nodes.Scalar, what: str, known: frozenset[str]) -> RecipeError:
    close = nearest(key.value, known)
    if key.value.rstrip().endswith(")"):
        hint = "inside { } YAML splits at commas: quote the whole expression"
    elif close:
        hint = f"did you mean {' or '.join(close)}?"
    else:
        hint = f"there are {', '.join(sorted(known))}" if known else ""
    return key.error(f"{what} has no key {clip(key.value)}", hint)


def choice(node: nodes.Node, what: str, allowed: tuple[str, ...]) -> str:
    value = line_of_text(node, what)
    if value not in allowed:
        close = nearest(value, allowed)
        hint = f"did you mean {close[0]}?" if close else f"one of {', '.join(allowed)}"
        raise node.error(f"{what} cannot be {clip(value)}", hint)
    return value


def build(kind: type[Model], values: Mapping[str, Any], where: nodes.Node, fields: Mapping[str, nodes.Node]) -> Model:
    """The model of these values; what it refuses becomes an error at the node of the field."""
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        cause = first.get("ctx", {}).get("error")
        message = str(cause) if cause is not None else f"{name} has no value that can be used"
        raise fields.get(name, where).error(message) from None
