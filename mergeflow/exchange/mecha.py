"""sd-mecha's recipes (`.mecha`): one node a line, later lines name earlier ones by their number.

What has a counterpart here becomes an expression, each node a step of its own only where several others use it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from mergeflow.errors import Place, RecipeError
from mergeflow.exchange.draft import Draft, Imported, Locate, Value, one_line, spelled, stem
from mergeflow.exchange.loose import number
from mergeflow.recipe.expression import spell

VERSION = "0.1.0"
MOST_LINES = 20_000
_TOKEN = re.compile(r'\s*(?:(?P<key>[^\s="&]+)=)?(?P<value>"(?:[^"\\]|\\.)*"|[^\s"]+)')
_PARTS = {"pick_component": "pick", "omit_component": "omit"}
_FILLED = "fallback("
_PASSED = ("cast", "omit_non_finite", "convert_singleton")


class Node(NamedTuple):
    """A value of the recipe: `kind` is model, delta, number, table, word, or a part of the model `text`: pick (the
    component `part` alone) or omit (all but it). `first`: the source whose tensors it has."""

    kind: str
    text: str
    table: Mapping[str, str] = {}
    first: str = ""
    part: str = ""


class _Line(NamedTuple):
    at: int
    command: str
    positional: list[str]
    named: dict[str, str]


def is_mecha(text: str) -> bool:
    return bool(re.match(r"(?:\s*#[^\n]*\n|\s)*version \d", text))


def read(text: str, path: str, locate: Locate = lambda path: path) -> Imported:
    """The recipe of a `.mecha` text. The last line is what it makes.

    Raises:
        RecipeError: another version, a damaged line, or a method without a counterpart.
    """
    lines = _lines(text, path)
    reader = _Reader(path, lines, Draft(f"sd-mecha's recipe {stem(path)}", locate))
    return reader.whole()


def _lines(text: str, path: str) -> list[_Line]:
    rows = [(at, row.strip()) for at, row in enumerate(text.splitlines(), 1)]
    rows = [(at, row) for at, row in rows if row and not row.startswith("#")]
    if not rows or rows[0][1].split() != ["version", VERSION]:
        found = one_line(rows[0][1])[:40] if rows else "nothing"
        place = Place(path, rows[0][0], 1) if rows else Place(path)
        raise RecipeError(f"the recipe begins with {found}", place=place, hint=f"version {VERSION} is known here")
    if len(rows) > MOST_LINES:
        raise RecipeError(f"the recipe has more than {MOST_LINES:,} lines", place=Place(path))
    return [_line(at, row, path) for at, row in rows[1:]]


def _line(at: int, row: str, path: str) -> _Line:
    command, _, rest = row.partition(" ")
    positional: list[str] = []
    named: dict[str, str] = {}
    start = 0
    while rest[start:].strip():
        found = _TOKEN.match(rest, start)
        if found is None:
            raise RecipeError("this line is damaged", place=Place(path, at, len(command) + 2 + start, one_line(row)))
        if found["key"]:
            named[found["key"]] = found["value"]
        else:
            positional.append(found["value"])
        start = found.end()
    return _Line(at, command, positional, named)


class _Reader:
    def __init__(self, path: str, lines: list[_Line], draft: Draft) -> None:
        self.path, self.lines, self.draft = path, lines, draft
        refs = [ref for line in lines for ref in (*line.positional, *line.named.values()) if ref.startswith("&")]
        self.uses = Counter(refs)
        self.nodes: list[Node] = []
        self.at = 0

    def whole(self) -> Imported:
        for i, line in enumerate(self.lines):
            self.at = line.at
            node = self._node(line)
            last = i == len(self.lines) - 1
            if node.kind in ("model", "delta") and line.command == "merge" and self.uses[f"&{i}"] > 1 and not last:
                node = node._replace(text=spell(self.draft.step(f"n{i}", _bare(node.text))))
            self.nodes.append(node)
        if not self.nodes or self.nodes[-1].kind not in ("model", "delta"):
            raise RecipeError("the recipe makes no model", place=Place(self.path))
        self.draft.output(Path(self.path).with_suffix("").name, _bare(self.nodes[-1].text))
        self.draft.lose("such recipes do not say the dtype of the result (float16, unless told): as the first model")
        self.draft.lose("models are known by their paths alone, without hashes")
        return self.draft.finish()

    def _error(self, message: str, hint: str = "") -> RecipeError:
        return RecipeError(message, place=Place(self.path, self.at, 1), hint=hint)

    def _node(self, line: _Line) -> Node:
        if line.command == "model":
            path = _text(line.positional[0]) if line.positional else ""
            if not path:
                raise self._error("a model without a path")
            space = _text(line.named.get("merge_space", ""))
            found = self.draft.locate(one_line(path))
            name = self.draft.source(path, stem(path), {"path": found, "kind": "delta"} if space == "delta" else found)
            return Node("delta" if space == "delta" else "model", spell(name), first=spell(name))
        if line.command == "dict":
            return Node("table", "", dict(line.named))
        if line.command == "literal":
            return self._literal(line)
        if line.command == "merge":
            return self._merge(line)
        raise self._error(f"{one_line(line.command)} is no command of such recipes")

    def _value(self, text: str) -> Node:
        if text.startswith("&"):
            index = text[1:]
            if not index.isdecimal() or int(index) >= len(self.nodes):
                raise self._error(f"{one_line(text)} is no earlier line")
            return self.nodes[int(index)]
        found = number(_text(text))
        return Node("number", spelled(found)) if found is not None else Node("word", _text(text))

    def _literal(self, line: _Line) -> Node:
        inner = self._value(line.positional[0]) if line.positional else Node("table", "", {})
        if inner.kind == "table" and set(inner.table) == {"key"}:
            inner = self._value(inner.table["key"])
        if inner.kind == "table" and "blocks" in _text(line.named.get("model_config", "")):
            value: dict[str, Value] = {}
            for block, given in inner.table.items():
                found = self._value(given)
                if found.kind != "number":
                    raise self._error(f"the weight of {one_line(block)} is no number")
                value[one_line(block)] = found.text
            return Node("number", self.draft.param("blocks", value))
        quoted = line.positional and inner.kind == "word" and inner.text.isidentifier()
        if inner.kind != "number" and not quoted:
            raise self._error("a literal that is no number and no table of block weights")
        return inner

    def _merge(self, line: _Line) -> Node:
        if not line.positional:
            raise self._error("a merge without a method")
        name = _text(line.positional[0])
        given = [self._value(text) for text in line.positional[1:]]
        named = {key: self._value(text) for key, text in line.named.items()}
        if name in _PASSED and not given:
            raise self._error(f"{name} lacks an argument")
        if name in _PASSED or (name.startswith("convert") and given and given[0].kind == "number"):
            if name == "cast":
                self.draft.lose("casts inside the recipe are left out: sums are exact, and the output has one dtype")
            return given[0]
        if name == "fallback":
            return self._fallback(given)
        if name in _PARTS and [node.kind for node in given] == ["model", "word"]:
            return Node(_PARTS[name], given[0].text, first=given[0].first, part=given[1].text)
        alone = next((node for node in (*given, *named.values()) if node.kind in _PARTS.values()), None)
        if alone is not None:
            hint = f'pick_component(b, "{alone.part}") | a has one'
            raise self._error(f"{name} of a part of a model has no counterpart here", hint)
        call = _METHODS.get(name)
        if call is None:
            raise self._error(
                f"sd-mecha's method {one_line(name)} has no counterpart here", "`mergeflow methods` lists what there is"
            )
        try:
            return call(given, named)._replace(first=given[0].first)
        except (IndexError, KeyError):
            raise self._error(f"{name} lacks an argument") from None

    def _fallback(self, given: list[Node]) -> Node:
        """a | b. Of block weights b is the default; a model that b's tensors are those of already needs none."""
        if len(given) != 2:
            raise self._error(f"fallback takes two values, not {len(given)}", "a | b")
        a, b = given
        if a.kind == "number" and a.text in self.draft.params:
            table = self.draft.params[a.text]
            assert isinstance(table, Mapping)
            self.draft.params[a.text] = {"default": b.text, **table}
            return a
        if (a.kind, b.kind) in (("pick", "model"), ("pick", "omit"), ("omit", "pick"), ("omit", "model")):
            return self._replaced(a, b)
        if a.kind == "number" or b.text == a.text:
            return a
        if a.kind not in ("model", "delta") or a.kind != b.kind:
            raise self._error(f"fallback takes two models or two differences, not a {a.kind} and a {b.kind}")
        self.draft.lose("a | b has tensors there that its configuration of the architecture knows; here all of both")
        if a.text != a.first and not a.text.startswith(_FILLED):
            self.draft.lose("where a model of a sum lacks a tensor, sum | b is b's there; here it is the first model's")
        if b.text == a.first:
            return a
        listed = [
            text.removeprefix(_FILLED)[:-1] if text.startswith(_FILLED) else _bare(text) for text in (a.text, b.text)
        ]
        return Node(a.kind, f"{_FILLED}{', '.join(listed)})", first=a.first)

    def _replaced(self, a: Node, b: Node) -> Node:
        """A component of one model in another, in any of the ways in which `|` says that."""
        if a.part != (b.part or a.part):
            raise self._error(f"{a.part} of one model and all but {b.part} of another have no counterpart here")
        donor, whole = (a, b) if a.kind == "pick" else (b, a)
        value: dict[str, Value] = {"expr": _bare(whole.text), "replace": {a.part: _bare(donor.text)}}
        return Node("model", spell(self.draft.step("replaced", value)), first=whole.first)


def _text(value: str) -> str:
    return re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value


def _bare(text: str) -> str:
    """Without the brackets around the whole."""
    return text[1:-1] if text.startswith("(") and text.endswith(")") and text.count("(") == 1 else text


def _argument(given: list[Node], named: Mapping[str, Node], at: int, key: str, default: str) -> str:
    node = given[at] if len(given) > at else named.get(key)
    return node.text if node is not None else default


def _weighted_sum(given: list[Node], named: Mapping[str, Node]) -> Node:
    a, b = given[0], given[1]
    return Node(a.kind, f"weighted_sum({a.text}, {b.text}, {_argument(given, named, 2, 'alpha', '0.5')})")


def _add_difference(given: list[Node], named: Mapping[str, Node]) -> Node:
    alpha = _argument(given, named, 2, "alpha", "1")
    return Node(given[0].kind, f"({given[0].text} + {given[1].text} * {alpha})")


def _subtract(given: list[Node], named: Mapping[str, Node]) -> Node:
    return Node("delta", f"({given[0].text} - {given[1].text})")


def _scale(given: list[Node], named: Mapping[str, Node]) -> Node:
    return Node("delta", f"({given[0].text} * {_argument(given, named, 1, 'alpha', '1')})")


def _average(given: list[Node], named: Mapping[str, Node]) -> Node:
    return Node(given[0].kind, f"average({', '.join(node.text for node in given)})")


def _slerp(given: list[Node], named: Mapping[str, Node]) -> Node:
    t = _argument(given, named, 2, "alpha", "0.5")
    return Node(given[0].kind, f"slerp({given[0].text}, {given[1].text}, {t}, norm=lerp)")


def _ties_sum(given: list[Node], named: Mapping[str, Node]) -> Node:
    """Trim, elect, mean. Its default elects by the count of signs."""
    deltas = [node.text for node in given if node.kind == "delta"]
    k = named["k"].text if "k" in named else "1"
    elect = "count" if named.get("vote_sgn", Node("word", "false")).text in ("false", "0") else "sum"
    trimmed = [text if Fraction(1) == number(k) else f"ties_trim({text}, {k})" for text in deltas]
    return Node("delta", f"sum_sign([{', '.join(trimmed)}], elect={elect})")


def _perpendicular(given: list[Node], named: Mapping[str, Node]) -> Node:
    return Node("delta", f"perpendicular_component({given[0].text}, {given[1].text})")


def _tensor_sum(given: list[Node], named: Mapping[str, Node]) -> Node:
    width, offset = _argument(given, named, 2, "width", "1"), _argument(given, named, 3, "offset", "0")
    return Node(given[0].kind, f"tensor_sum({given[0].text}, {given[1].text}, {width}, {offset})")


_METHODS: Mapping[str, Callable[[list[Node], Mapping[str, Node]], Node]] = {
    "weighted_sum": _weighted_sum,
    "add_difference": _add_difference,
    "subtract": _subtract,
    "scale": _scale,
    "n_average": _average,
    "slerp": _slerp,
    "ties_sum": _ties_sum,
    "perpendicular_component": _perpendicular,
    "tensor_sum": _tensor_sum,
}
