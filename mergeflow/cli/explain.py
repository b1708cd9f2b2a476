"""`mergeflow explain`: why an output would be built, or not; which of its tensors; and what its key is made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from mergeflow.cli import options
from mergeflow.cli.report import Screen
from mergeflow.cli.text import echo, kept_file, listed, plural, print_json, table
from mergeflow.tensors import human_bytes

if TYPE_CHECKING:
    from mergeflow.plan.plans import OutputPlan, Plan

SCHEMA = "mergeflow/explain/1"
NAMES = 3  # of tensors, without --tensors
BLOCKS = 8


@click.command()
@options.recipe_argument
@click.option("--tensors", is_flag=True, help="List all tensors that would be computed.")
@click.option("--key", is_flag=True, help="Print the text that the key of one output is the hash of.")
@click.option("--tensor", metavar="NAME", help="With --key: of one of its tensors.")
@options.recipe_options
@options.locked_option
@options.folder_options
@options.json_option
@options.debug_option
def command(names: tuple[str, ...], tensors: bool, key: bool, tensor: str | None, as_json: bool, **given: Any) -> None:
    """Say of each output of RECIPE whether it would be built, and why; which tensors would be computed, and what would
    be kept of earlier builds.

    With --key, stdout is exactly the text whose BLAKE3 hash the key is.
    """
    if tensor and not key:
        raise click.UsageError("--tensor goes with --key")
    if tensors and key:
        raise click.UsageError("--tensors and --key are two questions: ask one of them")
    with Screen() as screen:
        project, outputs = options.open_project(names, screen, **given)
        with project:
            plan = project.plan(outputs)
    if key and len(plan.outputs) > 1:
        raise click.UsageError(f"--key is of one output: name one of {', '.join(o.path for o in plan.outputs)}")
    if as_json:
        entries = [_entry(plan, output, key, tensor, tensors) for output in plan.outputs]
        print_json(SCHEMA, outputs=entries, warnings=screen.warnings)
    elif key:
        text, its_key = preimage(plan, plan.outputs[0], tensor)
        echo(text, nl=False)
        echo(f"its key is {its_key}", err=True)
    else:
        echo("\n".join(_lines(plan, tensors)))


def preimage(plan: Plan, output: OutputPlan, tensor: str | None) -> tuple[str, str]:
    """The text behind the key of an output, or of one of its tensors; and the key."""
    from mergeflow.plan.embed import file_preimage
    from mergeflow.plan.planner import tensor_preimage

    if tensor is None:
        return file_preimage(list(output.works), output.layout), output.key
    text = tensor_preimage(plan, output, tensor)
    return text, next(work.key for work in output.works if work.name == tensor)


def _lines(plan: Plan, everything: bool) -> Iterator[str]:
    rows = table([("build" if o.build else "keep", o.path, o.reason) for o in plan.outputs], indent="")
    for row, output in zip(rows, plan.outputs, strict=True):
        yield row
        if output.build:
            yield from _tensors(_work(plan, output), everything)


def _tensors(work: dict[str, Any], everything: bool) -> Iterator[str]:
    """What would be done, tensor by tensor; of an output that is made from nothing, only how much."""
    computed, kept, copied = work["computed"], work["kept"], work["copied"]
    names, count = computed["names"], computed["count"]
    counted = f"computes {count:,} of {plural(work['tensors'], 'tensor')}" + (f", copies {copied:,}" if copied else "")
    where = listed([f"{block} {n:,}" for block, n in computed["blocks"].items()], BLOCKS) if kept else ""
    yield f"       {counted}" + (f"; computed are {where}" if where else "")
    shown = count if everything else NAMES if kept else 0
    yield from (f"         {name}" for name in names[:shown])
    if kept and count > shown:
        yield f"         … and {count - shown:,} more (--tensors lists them)"
    for file in kept:
        yield f"       keeps {file['tensors']:,} ({human_bytes(file['bytes'])}) of {kept_file(file)}"
    if work["begun"]:
        yield f"       begins {work['begun']:,} from what the store has ({human_bytes(work['bytes_begun'])})"


def _work(plan: Plan, output: OutputPlan) -> dict[str, Any]:
    """What would be done for an output: how many tensors are computed, which (by block, where blocks are known and not
    all of them are), what is kept of which files, and what is copied from sources."""
    from mergeflow.cli.describe import kept_files
    from mergeflow.plan.account import CAST, COMPUTED, COPIED, account

    counts = account(plan, output)
    names = [work.name for work, how in zip(output.works, counts.how, strict=True) if how in (COMPUTED, CAST)]
    architecture = output.resolved.architecture
    blocks = Counter(block for name in names if (block := architecture.block(name)) is not None)
    return {
        "tensors": len(output.works),
        "computed": {
            "count": len(names),
            "blocks": {block: blocks[block] for block in architecture.layout.sorted(blocks)},
            "names": names,
        },
        "begun": counts.begun,
        "bytes_begun": counts.bytes_begun,
        "kept": kept_files(counts),
        "copied": counts.how.count(COPIED),
    }


def _entry(plan: Plan, output: OutputPlan, key: bool, tensor: str | None, everything: bool) -> dict[str, Any]:
    entry = {"path": output.path, "file": str(output.target), "build": output.build, "reason": output.reason}
    entry["key"] = output.key
    if output.build and not key:
        entry["work"] = work = _work(plan, output)
        if not everything:
            del work["computed"]["names"]
    if key:
        entry["preimage"], entry["key"] = preimage(plan, output, tensor)
    return entry
