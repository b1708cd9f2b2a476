"""A YAML text as a tree of nodes that know where they stand, with every scalar kept as the text that was typed.

Built from parser events with a stack of its own, so that neither nesting nor aliases recurse. What YAML does silently
and nobody means (duplicate keys, tags, merge keys, lost anchors, escapes that become control characters, commas that
split a call) is refused here, with the correction.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import yaml

from mergeflow.errors import Place, RecipeError
from mergeflow.recipe.commas import split_by_comma
from mergeflow.recipe.places import SourceText
from mergeflow.recipe.tokens import clip
from mergeflow.recipe.yamltext import explain, refuse_unprintable

MAX_DEPTH = 40
MAX_ALIAS_NODES = 10_000
MAX_SCALAR = 1_000_000
MAX_KEY = 1024  # characters, YAML's own limit
MAX_BYTES = 16 << 20

Style = Literal["plain", "single", "double", "literal", "folded", "typed"]  # typed: on the command line
_STYLES: dict[str | None, Style] = {"'": "single", '"': "double", "|": "literal", ">": "folded"}
_LOADER: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SPACE = " \t\n\x85\u2028\u2029"  # what YAML folds


@dataclass(slots=True, eq=False)
class Positioned:
    """Something in a recipe file, from the character `start` to `end`."""

    source: SourceText = field(repr=False)
    start: int
    end: int = 0
    weight: int = field(default=1, repr=False)  # nodes in it, aliases expanded
    height: int = field(default=0, repr=False)

    @property
    def line(self) -> int:
        return self.source.place(self.start).line

    @property
    def column(self) -> int:
        return self.source.place(self.start).column

    @property
    def where(self) -> Place:
        return self.source.place(self.start)

    def place(self, offset: int = 0) -> Place:
        return self.source.place(self.start)

    def error(self, message: str, hint: str = "") -> RecipeError:
        return RecipeError(message, place=self.where, hint=hint)


@dataclass(frozen=True, slots=True)
class Start:
    """The anchor of text that is written nowhere: wherever one points, the place where a node begins."""

    node: Positioned

    def place(self, offset: int) -> Place:
        return self.node.where


@dataclass(slots=True, eq=False)
class Scalar(Positioned):
    """Text. As an Anchor it finds the place of each of its characters, also in folded and block scalars."""

    value: str = ""
    style: Style = "plain"

    @property
    def is_null(self) -> bool:
        return self.style == "plain" and self.value in ("", "~", "null")

    def place(self, offset: int = 0) -> Place:
        return self.source.place(self._locate(offset))

    def _locate(self, offset: int) -> int:
        """The place in the file of the value's character `offset`, by walking both past their spaces together."""
        text, at = self.source.text, self._content_start()
        if text.startswith(self.value, at):
            return at + offset  # as typed, on one line
        if self.style == "double" and "\\" in text[at : self.end]:
            return self.start  # escapes: the start has to do
        for char in self.value[:offset]:
            if char not in _SPACE:
                at = self._skip_space(at) + (2 if self.style == "single" and char == "'" else 1)
        on_text = offset < len(self.value) and self.value[offset] not in _SPACE
        return self._skip_space(at) if on_text else at

    def _skip_space(self, at: int) -> int:
        while at < self.end and self.source.text[at] in _SPACE:
            at += 1
        return at

    def _content_start(self) -> int:
        text, at = self.source.text, self.start
        if text[at : at + 1] == "&":  # an anchor in front
            while at < self.end and text[at] not in _SPACE:
                at += 1
            at = self._skip_space(at)
        if self.style in ("single", "double"):
            return at + 1
        if self.style in ("literal", "folded"):
            return text.find("\n", at) + 1
        return at


@dataclass(slots=True, eq=False)
class Sequence(Positioned):
    items: list[Node] = field(default_factory=list)
    flow: bool = False


@dataclass(slots=True, eq=False)
class Mapping(Positioned):
    items: dict[str, tuple[Scalar, Node]] = field(default_factory=dict)
    flow: bool = False

    def key(self, name: str) -> Scalar:
        return self.items[name][0]


Node: TypeAlias = Scalar | Sequence | Mapping


def compose(source: SourceText) -> Mapping:
    """The tree of a recipe's text."""
    refuse_unprintable(source)
    try:
        root = _Composer(source).compose()
    except yaml.YAMLError as error:
        raise explain(error, source) from None
    if root is None or (isinstance(root, Scalar) and root.is_null):
        raise RecipeError(
            "the recipe is empty",
            place=Place(source.file),
            hint="the smallest one has mergeflow: 1, sources: and outputs:",
        )
    if not isinstance(root, Mapping):
        raise root.error("a recipe is a mapping of keys to values", "begin with mergeflow: 1")
    return root


def _index(mark: Any) -> int:
    """The character a mark of the parser stands at; every event of a text has marks."""
    return int(mark.index)


class _Composer:
    def __init__(self, source: SourceText) -> None:
        self.source = source
        self.stack: list[tuple[Sequence | Mapping, str | None]] = []  # open collections with their anchors
        self.keys: list[Scalar | None] = []  # per open collection: the key that waits for its value
        self.anchors: dict[str, Node] = {}
        self.unused: dict[str, Scalar] = {}  # scalars with an anchor that no alias has used
        self.alias_nodes = 0
        self.root: Node | None = None

    def compose(self) -> Node | None:
        documents = 0
        for event in self._events():
            if isinstance(event, yaml.ScalarEvent):
                self._scalar(event)
            elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
                self._open(event)
            elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
                self._close(event)
            elif isinstance(event, yaml.AliasEvent):
                self._alias(event)
            elif isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    place = self.source.place(_index(event.start_mark))
                    raise RecipeError("a recipe is one YAML document", place=place, hint="remove the line ---")
        for name, scalar in self.unused.items():
            raise scalar.error(
                f"YAML reads &{clip(name)} as an anchor, and the text loses it", "quote the whole value: '&…'"
            )
        return self.root

    def _events(self) -> Iterator[yaml.Event]:
        return yaml.parse(self.source.text, Loader=_LOADER)  # type: ignore[no-any-return,no-untyped-call,unused-ignore]

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        start, end = _index(event.start_mark), _index(event.end_mark)
        scalar = Scalar(self.source, start, end, value=event.value, style=_STYLES.get(event.style, "plain"))
        scalar.weight += len(event.value) // 1000  # a long text, repeated, costs what many nodes do
        if event.tag is not None:
            raise self._tagged(scalar, event.tag)
        if len(event.value) > MAX_SCALAR:
            raise scalar.error(f"a text of {len(event.value):,} characters; at most {MAX_SCALAR:,} are read")
        if scalar.style == "double":
            self._refuse_escapes(scalar)
        if event.anchor is not None:
            self.anchors[event.anchor] = scalar
            self.unused[event.anchor] = scalar
        self._add(scalar)

    def _open(self, event: yaml.MappingStartEvent | yaml.SequenceStartEvent) -> None:
        kind = Mapping if isinstance(event, yaml.MappingStartEvent) else Sequence
        node = kind(self.source, _index(event.start_mark), flow=bool(event.flow_style))
        if event.tag is not None:
            raise self._tagged(node, event.tag)
        if self.stack and isinstance(self.stack[-1][0], Mapping) and self.keys[-1] is None:
            raise node.error(
                "a key is one word or text, not a list or a mapping", "quote a key that begins with { or ["
            )
        if len(self.stack) >= MAX_DEPTH:
            raise node.error(f"nested more than {MAX_DEPTH} deep")
        if event.anchor is not None:
            self.anchors.pop(event.anchor, None)  # an alias to it from inside finds nothing
        self.stack.append((node, event.anchor))
        self.keys.append(None)

    def _close(self, event: yaml.MappingEndEvent | yaml.SequenceEndEvent) -> None:
        node, anchor = self.stack.pop()
        self.keys.pop()
        node.end = _index(event.end_mark)
        if anchor is not None:
            self.anchors[anchor] = node
        self._add(node)

    def _alias(self, event: yaml.AliasEvent) -> None:
        name = event.anchor or ""
        target = self.anchors.get(name)
        place = self.source.place(_index(event.start_mark))
        if target is None:
            raise RecipeError(
                f"YAML reads *{clip(name)} as an alias, and nothing is anchored as &{clip(name)}",
                place=place,
                hint="a text that begins with * is quoted: '*…'",
            )
        self.unused.pop(name, None)
        self.alias_nodes += target.weight
        if self.alias_nodes > MAX_ALIAS_NODES:
            raise RecipeError(f"the aliases of this file expand to more than {MAX_ALIAS_NODES:,} nodes", place=place)
        if len(self.stack) + target.height > MAX_DEPTH:
            raise RecipeError(f"nested more than {MAX_DEPTH} deep", place=place)
        self._add(target)

    def _add(self, node: Node) -> None:
        """Put a finished node where it belongs: the document, a list, a key, or the value of the waiting key."""
        if not self.stack:
            self.root = node
            return
        parent = self.stack[-1][0]
        parent.weight += node.weight
        parent.height = max(parent.height, node.height + 1)
        if isinstance(parent, Sequence):
            parent.items.append(node)
            return
        assert isinstance(parent, Mapping)
        key = self.keys[-1]
        if key is None:
            self.keys[-1] = self._key(node, parent)
            return
        self.keys[-1] = None
        if parent.flow and isinstance(node, Scalar) and node.is_null and not self._has_colon(key):
            raise self._split(key, parent)
        parent.items[key.value] = (key, node)

    def _key(self, node: Node, parent: Mapping) -> Scalar:
        if not isinstance(node, Scalar):
            raise node.error("a key is one word or text, not a list or a mapping")
        if node.style == "plain" and node.value == "<<":
            raise node.error("merge keys (<<) are not part of recipes", "write the keys out, or use defaults:")
        text, at = self.source.text, node.start - 1
        while at >= 0 and text[at] == " ":
            at -= 1
        if at >= 0 and text[at] == "?" and at < node.start - 1:
            raise node.error("keys are written key: value, without ?")
        first = parent.items.get(node.value)
        if first is not None:
            raise node.error(
                f"the key {clip(node.value)} is given twice, first in line {first[0].line}",
                "give it another name, or take one of the two out",
            )
        if node.style == "plain" and node.value[:1].isspace():
            message = f"this line begins with U+{ord(node.value[0]):04X}, a space that YAML takes for a letter"
            raise node.error(message, "indent with plain spaces")
        if node.style == "plain" and node.value == "":
            raise node.error("there is no key before this colon")
        return node

    def _has_colon(self, key: Scalar) -> bool:
        """Whether a colon follows the key; in { a, b: } one does not."""
        return self.source.text[key.end : key.end + MAX_KEY].lstrip().startswith(":")

    def _tagged(self, node: Node, tag: str) -> RecipeError:
        return node.error(f"YAML tags ({clip(tag)}) are not part of recipes", "a text that begins with ! is quoted")

    def _refuse_escapes(self, scalar: Scalar) -> None:
        for char in scalar.value:
            if (char < " " and char not in "\n\t") or char == "\x7f":
                raise scalar.error(
                    f"in double quotes \\ begins an escape; this one became the control character U+{ord(char):04X}",
                    "use / in paths, or single quotes",
                )
            if "\ud800" <= char <= "\udfff":
                raise scalar.error("this escape is half a character (a surrogate)")

    def _split(self, key: Scalar, parent: Mapping) -> RecipeError:
        """The answer to a key without a value inside { }: most often a comma that was meant to be text."""
        if re.fullmatch(r"[^\s:]+:\S+", key.value) and "(" not in key.value:
            written = ": ".join(map(clip, key.value.split(":", 1)))
            return key.error(f"{clip(key.value)} has no space after its colon", f"write {written}")
        before = list(parent.items.values())
        if before:
            first, value = before[-1]
            typed = self.source.text[value.start : key.end]
            rest = self.source.text[key.end : key.end + MAX_KEY]
            answer = split_by_comma(first.value, key.value, typed, rest)
            return (value if answer.at_value else key).error(answer.message, answer.hint)
        return key.error(
            f"{clip(key.value)} has no value", "inside { } write key: value; a text that begins with { is quoted"
        )
