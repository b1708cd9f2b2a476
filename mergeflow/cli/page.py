"""A page of HTML that stands alone: one file, no script, nothing fetched; light and dark, as the reader's system is.

What goes into it is text by text escaped here; pictures (SVG) come finished from modules that escape theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from mergeflow import __version__

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5d6878; --line: #d5dae2; --paper: #ffffff; --back: #f5f6f8;
  --source: #e3edfb; --source-line: #6d9bd8; --step: #f1ecfb; --step-line: #9c82d4; --output: #e2f4e6;
  --output-line: #58a86c; --bar: #b9d0f2; --link: #1f5fbf; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --soft: #9aa5b5; --line: #3a4352; --paper: #1b212b;
  --back: #12161d; --source: #1d3252; --source-line: #5b8fd6; --step: #322850; --step-line: #9a82d6; --output: #1c3d27;
  --output-line: #57a96b; --bar: #2f4f80; --link: #84b4ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", "Noto Sans",
  "Noto Sans CJK JP", sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 24px 20px 48px; }
h1 { font-size: 26px; margin: 8px 0 2px; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 36px 0 10px; }
h3 { font-size: 15px; margin: 0 0 6px; overflow-wrap: anywhere; }
p { margin: 6px 0; }
a { color: var(--link); }
.soft { color: var(--soft); }
.wide { overflow-x: auto; background: var(--paper); border: 1px solid var(--line); border-radius: 8px; }
section.card { background: var(--paper); border: 1px solid var(--line); border-radius: 8px; padding: 14px 16px;
  margin: 12px 0; scroll-margin-top: 12px; }
section.card:target { outline: 2px solid var(--link); }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: 5px 12px; border-bottom: 1px solid var(--line); }
tr:last-child > td { border-bottom: 0; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
code, .code { font: 13px/1.5 ui-monospace, "DejaVu Sans Mono", "Noto Sans Mono CJK JP", monospace;
  overflow-wrap: anywhere; }
pre { margin: 0; padding: 12px 16px; white-space: pre-wrap; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 3px 16px; margin: 6px 0; }
dt { color: var(--soft); }
dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
.cells { display: flex; flex-wrap: wrap; gap: 4px; margin: 6px 0 10px; }
.cell { width: 66px; border: 1px solid var(--line); border-radius: 4px; padding: 2px 4px; text-align: center;
  font-size: 12px; line-height: 1.35; overflow: hidden; text-overflow: ellipsis; white-space: nowrap;
  background: linear-gradient(to top, var(--bar) calc(var(--share) * 100%), transparent 0); }
.cell b { display: block; font-weight: 500; color: var(--soft); overflow: hidden; text-overflow: ellipsis; }
svg.graph { display: block; margin: 4px; max-width: calc(100% - 8px); height: auto; }
svg:not(.graph) { display: block; max-width: 100%; height: auto; min-width: 640px; }
@media (prefers-color-scheme: dark) {
  svg .same rect, svg rect.same { fill: var(--line); } svg .same text { fill: var(--ink); } }
svg.graph text { font: 600 13px system-ui, "Segoe UI", "Noto Sans", "Noto Sans CJK JP", sans-serif; fill: var(--ink); }
svg.graph text.small { font-weight: 400; font-size: 12px; fill: var(--soft); }
svg.graph .source rect { fill: var(--source); stroke: var(--source-line); }
svg.graph .step rect { fill: var(--step); stroke: var(--step-line); }
svg.graph .output rect { fill: var(--output); stroke: var(--output-line); }
svg.graph .bold rect { stroke-width: 2.5; }
svg.graph .arrow { fill: none; stroke: var(--soft); stroke-opacity: .7; stroke-width: 1.3; }
svg.graph .tip { fill: var(--soft); }
footer { margin-top: 40px; color: var(--soft); font-size: 13px; }
@media print { body { background: none; } .wide { overflow: visible; } }
"""


@dataclass(slots=True)
class Page:
    """A page as it grows: a title, a line below it, and pieces of HTML."""

    title: str
    about: str = ""
    parts: list[str] = field(default_factory=list)

    def heading(self, text: str) -> None:
        self.parts.append(f"<h2>{escape(text)}</h2>")

    def text(self, text: str, style: str = "") -> None:
        self.parts.append(f"<p{_class(style)}>{escape(text)}</p>")

    def picture(self, svg: str) -> None:
        """Wide ones are scrolled in their own frame, not with the page."""
        self.parts.append(f'<div class="wide">{svg}</div>')

    def code(self, text: str) -> None:
        self.parts.append(f'<div class="wide"><pre class="code">{escape(text)}</pre></div>')

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = ()) -> None:
        """Columns in `numbers` are aligned on the right; those in which nothing stands are left out."""
        kept = [i for i in range(len(head)) if any(row[i] for row in rows)]
        lines = "".join(f"<th>{escape(head[i])}</th>" for i in kept)
        body = "".join(f"<tr>{''.join(_cell(row[i], i in numbers) for i in kept)}</tr>" for row in rows)
        self.parts.append(f'<div class="wide"><table><tr>{lines}</tr>{body}</table></div>')

    def card(self, anchor: str, title: str, facts: Sequence[tuple[str, str]], more: Sequence[str] = ()) -> None:
        """Facts that have no value are left out. `more` is HTML."""
        rows = "".join(f"<dt>{escape(name)}</dt><dd>{marked(value)}</dd>" for name, value in facts if value)
        inside = f"<h3>{escape(title)}</h3><dl>{rows}</dl>{''.join(more)}"
        self.parts.append(f'<section class="card" id="{escape(anchor)}">{inside}</section>')

    def html(self) -> str:
        about = f'<p class="soft">{escape(self.about)}</p>' if self.about else ""
        body = "\n".join(self.parts)
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(self.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
            f"<h1>{escape(self.title)}</h1>\n{about}\n{body}\n"
            f"<footer>Drawn by mergeflow {escape(__version__)}.</footer>\n</main>\n</body>\n</html>\n"
        )


def cells(values: Mapping[str, str]) -> str:
    """A small box for each block, filled as high as its number (from 0 to 1)."""
    return f'<div class="cells">{"".join(_cells(values))}</div>'


def _cells(values: Mapping[str, str]) -> Iterator[str]:
    for name, value in values.items():
        try:
            share = min(1.0, max(0.0, float(value)))
        except ValueError:
            share = 0.0
        told = escape(f"{name}: {value}")
        yield f'<div class="cell" style="--share:{share:g}" title="{told}"><b>{escape(name)}</b>{escape(value)}</div>'


def marked(text: str) -> str:
    """Digests and formulas in letters of one width: what begins with a backquote is code."""
    return f"<code>{escape(text[1:])}</code>" if text.startswith("`") else escape(text)


def _cell(text: str, number: bool) -> str:
    return f"<td{_class('number' if number else '')}>{marked(text)}</td>"


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""
