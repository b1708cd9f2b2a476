"""A graph of what is made of what, as the text that programs draw from: dot (Graphviz) and Mermaid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import networkx as nx

SOURCE, STEP, OUTPUT = "source", "step", "output"
_DOT_SHAPES = {SOURCE: "cylinder", STEP: "ellipse", OUTPUT: "box"}
_MERMAID_SHAPES = {SOURCE: "[({})]", STEP: "({})", OUTPUT: "[{}]"}


class Box(NamedTuple):
    """One thing. `name` is its own, `label` what is written in it; `bold` stands out."""

    name: str
    kind: str
    label: str
    bold: bool = False


@dataclass(frozen=True, slots=True)
class Drawing:
    """`arrows` lead from what is used to what is made of it, by name, with what is written on them."""

    boxes: Sequence[Box]
    arrows: Sequence[tuple[str, str, str]]

    def made_of(self, name: str) -> list[str]:
        order = {box.name: i for i, box in enumerate(self.boxes)}
        return sorted((a for a, b, _ in self.arrows if b == name), key=order.__getitem__)


def drawing_of(graph: nx.DiGraph[str]) -> Drawing:
    """The graph of a plan; what would be built is bold."""
    boxes = [Box(name, data["kind"], name, bool(data.get("build"))) for name, data in graph.nodes(data=True)]
    return Drawing(boxes, [(a, b, "") for a, b in graph.edges])


def dot(drawing: Drawing) -> Iterator[str]:
    yield "digraph mergeflow {"
    yield "  rankdir=LR;"
    for box in drawing.boxes:
        label = f", label={_quoted(box.label)}" if box.label != box.name else ""
        style = ", style=bold" if box.bold else ""
        yield f"  {_quoted(box.name)} [shape={_DOT_SHAPES[box.kind]}{label}{style}];"
    for a, b, text in drawing.arrows:
        label = f" [label={_quoted(text)}]" if text else ""
        yield f"  {_quoted(a)} -> {_quoted(b)}{label};"
    yield "}"


def mermaid(drawing: Drawing) -> Iterator[str]:
    number = {box.name: f"n{i}" for i, box in enumerate(drawing.boxes)}
    yield "graph LR"
    for box in drawing.boxes:
        shape = _MERMAID_SHAPES[box.kind].format(f'"{_escaped(box.label)}"')
        yield f"  {number[box.name]}{shape}"
    for a, b, text in drawing.arrows:
        arrow = f'-->|"{_escaped(text)}"|' if text else "-->"
        yield f"  {number[a]} {arrow} {number[b]}"


def _quoted(name: str) -> str:
    escaped = name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _escaped(text: str) -> str:
    return "<br/>".join("".join(f"#{ord(c)};" if c in '"#&;<>`' else c for c in line) for line in text.split("\n"))
