"""`mergeflow diff`: how two models differ, as a table and as a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergeflow.cli import options
from mergeflow.cli.report import Screen
from mergeflow.cli.text import echo, plural, print_json, table

if TYPE_CHECKING:
    from mergeflow.build.compare import Compared, Comparison, Sums, Tally

SCHEMA = "mergeflow/diff/1"
COLUMNS = ("same", "changed", "added", "removed", "cosine", "difference")


@click.command(no_args_is_help=True)
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--tensors", is_flag=True, help="List the tensors that differ too, the most different first.")
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.svg",
              help="Draw the blocks, darker the more they differ.")  # fmt: skip
@options.json_option
@options.debug_option
def command(a: Path, b: Path, tensors: bool, picture: Path | None, as_json: bool) -> None:
    """Compare the models A and B by component and block: how many tensors are the same, changed, added (only in B) and
    removed (only in A); of those that changed, the cosine between A and B, and the size of B - A relative to A.

    Tensors that are equal are told by their digests and not read.

    \b
    Exit codes: 0  all tensors are the same (metadata and container are not compared)
                3  they differ
    """
    if picture is not None and picture.suffix.lower() != ".svg":
        raise click.UsageError(f"{picture}: pictures are drawn as SVG: name it {picture.stem}.svg")
    from mergeflow.build.compare import compare
    from mergeflow.build.machine import budget
    from mergeflow.sources.identify import identify
    from mergeflow.sources.memo import Memo, default_folder

    with Screen(brief=True) as screen, closing(Memo(default_folder(), screen.warn)) as memo:
        cores = budget(1).cores
        one, other = (identify(file, memo, screen, workers=cores) for file in (a, b))
        result = compare(one, other, report=screen, workers=cores)
        for note in result.notes:
            screen.warn(note)
        if picture is not None:
            _draw(picture, a, b, result)
            screen.say(f"  drawn  {picture}")
    if as_json:
        print_json(SCHEMA, a=str(a), b=str(b), equal=result.equal, **_told(result, tensors))
    else:
        echo(f"{a} → {b}: {_summary(result)}")
        echo("\n".join(_lines(result, tensors)))
    click.get_current_context().exit(0 if result.equal else 3)


def _draw(picture: Path, a: Path, b: Path, result: Comparison) -> None:
    from mergeflow.cli.picture import svg
    from mergeflow.formats.parts import write_text_file

    write_text_file(picture, svg(f"{a.name} → {b.name}", result.blocks()))


def _summary(result: Comparison) -> str:
    if result.equal:
        return f"{plural(len(result.tensors), 'tensor')}, all the same"
    return ", ".join(f"{n:,} {state}" for state, n in result.whole().counts.items() if n)


def _lines(result: Comparison, tensors: bool) -> Iterator[str]:
    if result.equal:
        return
    blocks = result.blocks()
    rows: list[tuple[str, ...]] = [("", *COLUMNS)]
    for component, tally in result.components().items():
        own = [(block, t) for (c, block), t in blocks.items() if c == component]
        if component or len(result.components()) > 1:
            rows.append((component or "(none)", *_cells(tally)))
        if len(own) > 1 and tally.counts["same"] < sum(tally.counts.values()):
            rows += [(f"  {block}", *_cells(t)) for block, t in own]
    rows.append(("all", *_cells(result.whole())))
    yield from table(rows, right=range(1, 1 + len(COLUMNS)))
    if tensors:
        from mergeflow.build.compare import farthest

        yield from ("", "tensors")
        yield from table([_row(t) for t in farthest(result.tensors)], right=(1, 2))


def _cells(tally: Tally) -> tuple[str, ...]:
    counts = (f"{n:,}" if n else "·" for n in tally.counts.values())
    return (*counts, _cosine(tally.sums.cosine), _relative(tally.sums.relative))


def _row(t: Compared) -> tuple[str, ...]:
    return t.state, _cosine(t.sums.cosine), _relative(t.sums.relative), t.name + (f" ({t.why})" if t.why else "")


def _cosine(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


def _relative(value: float | None) -> str:
    from mergeflow.cli.picture import percent

    return "" if value is None else percent(value)


def _told(result: Comparison, tensors: bool) -> dict[str, Any]:
    told: dict[str, Any] = {
        "architecture": result.architecture.name,
        "notes": list(result.notes),
        "whole": _numbers(result.whole()),
        "components": {name or "(none)": _numbers(t) for name, t in result.components().items()},
        "blocks": [
            {"component": component or "(none)", "block": block, **_numbers(t)}
            for (component, block), t in result.blocks().items()
        ],
    }
    if tensors:
        told["tensors"] = [
            {"name": t.name, "component": t.component, "block": t.block, "state": t.state, "why": t.why,
             **_measures(t.sums)}
            for t in result.tensors
        ]  # fmt: skip
    return told


def _numbers(tally: Tally) -> dict[str, Any]:
    return {**tally.counts, **_measures(tally.sums)}


def _measures(sums: Sums) -> dict[str, float | None]:
    relative = sums.relative
    return {"cosine": sums.cosine, "difference": relative if relative is None or math.isfinite(relative) else None}
