"""A comparison as a picture: a row of squares a component, a square a block, darker the more it changed. SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING
from unicodedata import east_asian_width
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from mergeflow.build.compare import Tally

WIDTH, HEIGHT, GAP, MARGIN, LABEL, PER_ROW = 64, 40, 4, 24, 90, 13
TITLE_LINE, TITLE, NAME, BLOCK = 20, 95, 11, 10  # a line's height, and the columns that titles and labels may take
LEAST, MOST = 1e-3, 1.0  # relative differences at the two ends of the scale, which is logarithmic
PALE, DARK = (239, 243, 255), (8, 48, 107)
SAME, OTHER = "#e8e8e8", "#f4c27a"  # no change at all; tensors that are on one side only, or of another shape
WHITE_ON = 0.64  # the share of dark from which white letters are easier to read than black ones (equal luminance)


def svg(title: str, blocks: Mapping[tuple[str, str], Tally], *, inline: bool = False) -> str:
    """`blocks`: by component and block, in the order to be drawn in. `inline`: as a part of a page that has a heading,
    a background and a colour of letters of its own."""
    rows: dict[str, list[tuple[str, Tally]]] = {}
    for (component, block), tally in blocks.items():
        rows.setdefault(component or "(none)", []).append((block, tally))
    body: list[str] = []
    heading = [] if inline else _heading(title)
    y = 8 if inline else MARGIN + 14 + TITLE_LINE * len(heading)
    for component, cells in rows.items():
        body.append(_text(MARGIN, y + HEIGHT / 2 + 4, fitted(component, NAME), size=13, weight="bold"))
        for i, (block, tally) in enumerate(cells):
            x = MARGIN + LABEL + (i % PER_ROW) * (WIDTH + GAP)
            body += _cell(x, y + (i // PER_ROW) * (HEIGHT + GAP), component, block, tally)
        y += -(-len(cells) // PER_ROW) * (HEIGHT + GAP) + 12
    width = 2 * MARGIN + LABEL + PER_ROW * (WIDTH + GAP)
    body += _legend(y + 6)
    height = y + 6 + 44 + (0 if inline else MARGIN)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    paper = [] if inline else [f'<rect width="{width}" height="{height}" fill="white"/>']
    ink = ' fill="currentColor"' if inline else ""
    lines = [
        f'{head} font-family="sans-serif"{ink}>',
        f"<title>{escape(title)}</title>",
        *paper,
        *(_text(MARGIN, MARGIN + 12 + TITLE_LINE * i, line, size=15, weight="bold") for i, line in enumerate(heading)),
        *body,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _cell(x: float, y: float, component: str, block: str, tally: Tally) -> Iterator[str]:
    fill, ink, number = _looks(tally)
    counts = ", ".join(f"{n} {state}" for state, n in tally.counts.items() if n)
    kind = ' class="same"' if fill == SAME else ""
    yield f"<g{kind}><title>{escape(f'{component} {block}: {counts}; {number}')}</title>"
    yield f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="3" fill="{fill}"/>'
    yield _text(
        x + WIDTH / 2,
        y + 16,
        fitted(block.replace("encoder.", "enc.").replace("decoder.", "dec."), BLOCK),
        size=10,
        anchor="middle",
        fill=ink,
    )
    yield _text(x + WIDTH / 2, y + 31, number, size=11, anchor="middle", fill=ink)
    yield "</g>"


def _looks(tally: Tally) -> tuple[str, str, str]:
    """Colour of the square, of what is written in it, and the number."""
    relative = tally.sums.relative
    if relative is None:
        states = [state for state, n in tally.counts.items() if n]
        if states == ["same"]:
            return SAME, "#555555", "same"
        return OTHER, "#000000", states[0] if states in (["added"], ["removed"]) else "other"
    fill, dark = shade(relative)
    return fill, "#ffffff" if dark else "#000000", percent(relative)


def shade(relative: float) -> tuple[str, bool]:
    """The colour of a relative difference, and whether it is a dark one."""
    share = math.log(max(LEAST, min(MOST, relative)) / LEAST) / math.log(MOST / LEAST)
    mixed = [round(a + (b - a) * share) for a, b in zip(PALE, DARK, strict=True)]
    return "#{:02x}{:02x}{:02x}".format(*mixed), share > WHITE_ON


def percent(relative: float) -> str:
    if not math.isfinite(relative) or relative >= 10:
        return "> 1000%"
    return f"{relative:.3%}" if relative < 0.001 else f"{relative:.2%}" if relative < 0.1 else f"{relative:.0%}"


def _heading(title: str) -> list[str]:
    """The title in lines that are not cut off: one, or one a model."""
    lines = [title] if columns(title) <= TITLE else title.replace(" → ", " →\n").split("\n")
    return [fitted(line, TITLE) for line in lines]


def fitted(text: str, most: int) -> str:
    """At most so many columns: what is too much goes from the middle, as names differ at their ends."""
    if columns(text) <= most:
        return text
    head, tail = text[: len(text) // 2], text[len(text) // 2 :]
    while columns(head) + columns(tail) >= most:
        if columns(head) > columns(tail):
            head = head[:-1]
        else:
            tail = tail[1:]
    return f"{head}…{tail}"


def columns(text: str) -> int:
    return sum(2 if east_asian_width(c) in "WF" else 1 for c in text)


def _legend(y: float) -> Iterator[str]:
    x = float(MARGIN + LABEL)
    yield _text(MARGIN, y + 12, "|B − A| / |A|", size=11)
    for relative in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0):
        yield f'<rect x="{x}" y="{y}" width="{WIDTH}" height="16" fill="{shade(relative)[0]}"/>'
        yield _text(x + WIDTH / 2, y + 30, f"{relative:.1%}" if relative < 0.01 else f"{relative:.0%}", anchor="middle")
        x += WIDTH
    for fill, said in ((SAME, "same"), (OTHER, "not compared")):
        x += 16
        kind = ' class="same"' if fill == SAME else ""
        yield f'<rect{kind} x="{x}" y="{y}" width="{WIDTH}" height="16" fill="{fill}"/>'
        yield _text(x + WIDTH / 2, y + 30, said, anchor="middle")
        x += WIDTH


def _text(x: float, y: float, text: str, *, size: int = 10, anchor: str = "", weight: str = "", fill: str = "") -> str:
    given = (("text-anchor", anchor), ("font-weight", weight), ("fill", fill))
    extra = "".join(f' {name}="{value}"' for name, value in given if value)
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}"{extra}>{escape(text)}</text>'
