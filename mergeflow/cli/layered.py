"""A graph of what is made of what as a picture: layers from left to right, boxes that link to what is said of them.

Sugiyama's way (1981) in its simplest form: layers by the longest path, arrows over several layers led through gaps of
their own, the order within layers by the mean place of the neighbours, a few times back and forth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean
from xml.sax.saxutils import escape, quoteattr

from mergeflow.cli.picture import columns, fitted
from mergeflow.provenance.drawing import OUTPUT, SOURCE, Box, Drawing

LINE, PAD, GAP, BETWEEN, EDGE = 17, 12, 14, 64, 12  # lengths in pixels
BOLD, SMALL = 8.2, 7.6  # of a letter in the first line and in those below it, where letters are wide
LONGEST = 44  # columns of a line in a box
LEAST = 0.75  # a picture wider than its page is shrunk so far, then it is scrolled
MOST_GAPS = 4_000  # for arrows over several layers; with more than these, arrows are straight
SWEEPS = 6


@dataclass(slots=True)
class _Place:
    """A box, or (without one) the gap that an arrow goes through. `y` is the middle."""

    box: Box | None
    layer: int
    lines: Sequence[str] = ()
    y: float = 0.0
    before: list[_Place] = field(default_factory=list)
    after: list[_Place] = field(default_factory=list)

    @property
    def height(self) -> float:
        return PAD + LINE * len(self.lines) if self.box else 4.0

    @property
    def width(self) -> float:
        widths = [columns(line) * (SMALL if i else BOLD) for i, line in enumerate(self.lines)]
        return 2 * PAD + max(widths, default=0.0) if self.box else 0.0


def layered_svg(drawing: Drawing, links: Mapping[str, str]) -> str:
    """`links`: where each box leads, by its name. Colours are the page's: classes source, step, output, bold."""
    places = _placed(drawing)
    routes = list(_routes(drawing, places))
    layers: list[list[_Place]] = [[] for _ in range(1 + max((p.layer for p in places.values()), default=0))]
    for place in places.values():
        layers[place.layer].append(place)
    for route in routes:
        for place in route[1:-1]:
            layers[place.layer].append(place)
    _arrange(layers)
    left, x = [], float(EDGE)
    for layer in layers:
        left.append(x)
        x += max((p.width for p in layer), default=0.0) + BETWEEN
    width = x - BETWEEN + EDGE
    height = max((p.y + p.height / 2 for layer in layers for p in layer), default=0.0) + EDGE
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    size += f' style="min-width:{LEAST * width:.0f}px"'
    body = [line for route in routes for line in _arrow(route, left, layers)]
    for place in places.values():
        body += _box(place, left[place.layer], links)
    return "\n".join(
        [f'<svg class="graph" xmlns="http://www.w3.org/2000/svg" {size} role="img">', _HEAD, *body, "</svg>"]
    )


_HEAD = (
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M0 0 8 4 0 8z" class="tip"/></marker></defs>'
)


def _placed(drawing: Drawing) -> dict[str, _Place]:
    """Boxes in their layers: behind all that they are made of; sources right before their first use."""
    users: dict[str, list[str]] = {box.name: [] for box in drawing.boxes}
    missing = dict.fromkeys(users, 0)
    for a, b, _ in drawing.arrows:
        users[a].append(b)
        missing[b] += 1
    layer = dict.fromkeys(users, 0)
    ready = [name for name, n in missing.items() if not n]
    for name in ready:  # grows while it is gone through
        for user in users[name]:
            layer[user] = max(layer[user], layer[name] + 1)
            missing[user] -= 1
            if not missing[user]:
                ready.append(user)
    for box in drawing.boxes:
        if box.kind == SOURCE and users[box.name] and not layer[box.name]:
            layer[box.name] = min(layer[user] for user in users[box.name]) - 1
    found = {}
    for box in drawing.boxes:
        first, *rest = box.label.split("\n")
        lines = [fitted(first, LONGEST - 8), *(_begun(line, LONGEST) for line in rest)]
        found[box.name] = _Place(box, layer[box.name], lines)
    return found


def _begun(text: str, most: int) -> str:
    """The beginning of a line that is too long."""
    if columns(text) <= most:
        return text
    while columns(text) >= most:
        text = text[:-1]
    return f"{text}…"


def _routes(drawing: Drawing, places: Mapping[str, _Place]) -> Iterator[list[_Place]]:
    """The places that each arrow goes through, its ends among them."""
    ends = [(places[a], places[b]) for a, b, _ in drawing.arrows]
    straight = sum(b.layer - a.layer - 1 for a, b in ends) > MOST_GAPS
    for a, b in ends:
        between = [] if straight else [_Place(None, layer) for layer in range(a.layer + 1, b.layer)]
        route = [a, *between, b]
        for one, other in pairwise(route):
            one.after.append(other)
            other.before.append(one)
        yield route


def _arrange(layers: Sequence[list[_Place]]) -> None:
    """Order and height: each place near those that it is joined to."""
    for layer in layers:
        _stack(layer)
    for sweep in range(SWEEPS):
        forward = sweep % 2 == 0
        for layer in layers if forward else reversed(layers):
            wanted = {id(p): _wanted(p, forward=forward) for p in layer}
            layer.sort(key=lambda p: wanted[id(p)])
            _stack(layer)
            _pull(layer, [wanted[id(p)] for p in layer])
    top = min((p.y - p.height / 2 for layer in layers for p in layer), default=0.0)
    for layer in layers:
        for place in layer:
            place.y += EDGE - top


def _wanted(place: _Place, *, forward: bool) -> float:
    joined = (place.before or place.after) if forward else (place.after or place.before)
    return fmean(p.y for p in joined) if joined else place.y


def _stack(layer: Sequence[_Place]) -> None:
    """One below the other, around the middle."""
    total = sum(p.height + GAP for p in layer) - GAP
    y = -total / 2
    for place in layer:
        place.y = y + place.height / 2
        y += place.height + GAP


def _pull(layer: Sequence[_Place], wanted: Sequence[float]) -> None:
    """Each to where it wants to be, as far as its neighbours leave room; what had to go down is evened out."""
    previous: _Place | None = None
    for place, y in zip(layer, wanted, strict=True):
        least = previous.y + (previous.height + place.height) / 2 + GAP if previous else y
        place.y = max(y, least)
        previous = place
    if layer:
        shift = fmean(p.y - y for p, y in zip(layer, wanted, strict=True))
        for place in layer:
            place.y -= shift


def _arrow(route: Sequence[_Place], left: Sequence[float], layers: Sequence[Sequence[_Place]]) -> Iterator[str]:
    widest = [max((p.width for p in layer), default=0.0) for layer in layers]
    first = route[0]
    path = f"M{left[first.layer] + first.width:.1f} {first.y:.1f}"
    x, y = left[first.layer] + first.width, first.y
    for place in route[1:]:
        to = left[place.layer]
        bend = max(BETWEEN / 2, (to - x) / 2)
        path += f"C{x + bend:.1f} {y:.1f} {to - bend:.1f} {place.y:.1f} {to:.1f} {place.y:.1f}"
        x, y = to, place.y
        if place.box is None:  # straight through the layer, above or below its boxes
            x += widest[place.layer]
            path += f"H{x:.1f}"
    yield f'<path class="arrow" d="{path}" marker-end="url(#tip)"/>'


def _box(place: _Place, x: float, links: Mapping[str, str]) -> Iterator[str]:
    assert place.box is not None
    kind = f"{place.box.kind} bold" if place.box.bold else place.box.kind
    y, link = place.y - place.height / 2, links.get(place.box.name)
    if link:
        yield f"<a href={quoteattr(f'#{link}')}>"
    yield f'<g class="{kind}"><title>{escape(place.box.label)}</title>'
    corner = 4 if kind.startswith(OUTPUT) else 18 if kind.startswith(SOURCE) else 12
    size = f'width="{place.width:.1f}" height="{place.height:.1f}"'
    yield f'<rect x="{x:.1f}" y="{y:.1f}" {size} rx="{min(corner, place.height / 2):g}"/>'
    for i, line in enumerate(place.lines):
        style = ' class="small"' if i else ""
        at = y + PAD / 2 + LINE * (i + 0.75)
        yield f'<text x="{x + place.width / 2:.1f}" y="{at:.1f}" text-anchor="middle"{style}>{escape(line)}</text>'
    yield "</g>"
    if link:
        yield "</a>"
