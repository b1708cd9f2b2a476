"""What files came from, drawn: as a tree of text, as a graph, as a page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from mergeflow.cli.layered import layered_svg
from mergeflow.cli.page import Page, cells
from mergeflow.cli.picture import svg
from mergeflow.cli.text import listed, plural
from mergeflow.digest import shortened
from mergeflow.provenance.drawing import OUTPUT, SOURCE, STEP, Box, Drawing
from mergeflow.tensors import human_bytes

if TYPE_CHECKING:
    from mergeflow.build.compare import Comparison
    from mergeflow.build.lineage import Ancestor, Lineage

Changes = Callable[["Ancestor"], "Comparison | None"]


def tree(lineage: Lineage) -> Iterator[str]:
    """A line for each file below the one that it went into; what was shown already is not shown again."""
    shown: set[str] = set()
    for root in lineage.roots:
        stack = [(root, "", "")]
        while stack:
            key, lead, below = stack.pop()
            file = lineage.files[key]
            again = key in shown and bool(file.parents)
            shown.add(key)
            yield f"{lead}{file.title}, as above" if again else f"{lead}{_line(lineage, file)}"
            parents = () if again else file.parents
            for i, parent in reversed(list(enumerate(parents))):
                last = i == len(parents) - 1
                stack.append((parent, f"{below}{'└─ ' if last else '├─ '}", f"{below}{'   ' if last else '│  '}"))


def _line(lineage: Lineage, file: Ancestor) -> str:
    facts = [shortened(file.digest) if file.digest and file.path else ""]
    if file.making is not None:
        more = len(file.making.others)
        also = f"  (and {plural(more, 'other form')})" if more else ""
        facts.append(f"= {file.making.text(lineage.name)}{also}")
    elif file.path is None:
        facts.append("(not to be found here)")
    facts.append(f"({file.problem})" if file.problem else "")
    return "  ".join([file.title, *filter(None, facts)])


def drawing(lineage: Lineage) -> Drawing:
    """The files that were asked for are outputs, those that are made of others steps, all others sources."""
    boxes, arrows = [], []
    for key, file in lineage.files.items():
        kind = OUTPUT if key in lineage.roots else STEP if file.parents else SOURCE
        note = file.making.text(lineage.name) if file.making else file.digest and shortened(file.digest)
        note = note if file.path is not None else "not to be found here"
        boxes.append(Box(key, kind, f"{file.title}\n{note}" if note else file.title, key in lineage.roots))
        arrows += [(parent, key, "") for parent in file.parents if parent in lineage.files]
    return Drawing(boxes, arrows)


def described(lineage: Lineage) -> list[dict[str, Any]]:
    """For JSON: every file with what it is made of."""
    return [
        {
            "name": file.title,
            "digest": file.digest or None,
            "found": file.path is not None,
            "asked": key in lineage.roots,
            "made_of": list(file.parents),
            "form": file.making.text(lineage.name) if file.making else None,
            "numerics": file.making.numerics if file.making else None,
            "architecture": file.architecture.name if file.architecture else None,
            "bytes": file.nbytes or None,
            "problem": file.problem or None,
        }
        for key, file in lineage.files.items()
    ]


def lineage_page(lineage: Lineage, changes: Changes) -> str:
    """`changes` compares a file with its first model, or gives None where that is not asked for or not possible."""
    made = sum(bool(file.parents) for file in lineage.files.values())
    last = [file for file in lineage.files.values() if not file.parents]
    lost = sum(file.path is None for file in last)
    about = f"{plural(made, 'merge')} of {plural(len(last), 'model')}"
    about += f", {lost:,} of which {'is' if lost == 1 else 'are'} not to be found here" if lost else ""
    page = Page(listed([lineage.files[key].title for key in lineage.roots], 3), f"Where it comes from: {about}.")
    links = {key: f"n{i}" for i, key in enumerate(lineage.files)}
    page.picture(layered_svg(drawing(lineage), links))
    page.text("As the files themselves say; `mergeflow verify` checks it.".replace("`", ""), "soft")
    page.heading("Files")
    for key, file in lineage.files.items():
        page.card(links[key], file.title, _facts(lineage, file), list(_pictures(lineage, file, changes)))
    return page.html()


def _facts(lineage: Lineage, file: Ancestor) -> list[tuple[str, str]]:
    making = file.making
    forms = []
    if making is not None:
        forms = [("is", f"`{making.text(lineage.name)}")]
        for number, names in list(making.others.items())[:12]:
            forms.append((plural(len(names), "tensor"), f"`{making.text(lineage.name, number)}"))
    return [
        *forms,
        ("first model", lineage.name(making.primary) if making is not None else ""),
        ("digest", f"`{file.digest}" if file.digest else ""),
        ("called", file.called if file.path is not None and file.called != file.title else ""),
        ("size", human_bytes(file.nbytes) if file.nbytes else ""),
        ("architecture", file.architecture.title if file.architecture else ""),
        ("tensors", f"{len(file.tensors):,}" if file.tensors else ""),
        *(sorted(making.settings.items()) if making is not None else []),
        ("numerics", f"version {making.numerics}" if making is not None else ""),
        ("not found", "it is in none of the folders that were searched" if file.path is None else ""),
        ("problem", file.problem),
    ]


def _pictures(lineage: Lineage, file: Ancestor, changes: Changes) -> Iterator[str]:
    from html import escape

    from mergeflow.build.lineage import shares_by_block

    for digest, row in shares_by_block(file).items():
        yield f'<p class="soft">Share of {escape(lineage.name(digest))}, block by block:</p>{cells(row)}'
    comparison = changes(file)
    if comparison is not None:
        yield '<p class="soft">How much each block differs from its first model:</p><div class="wide">'
        yield f"{svg(file.title, comparison.blocks(), inline=True)}</div>"
