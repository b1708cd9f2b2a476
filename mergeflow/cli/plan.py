"""`mergeflow plan`: what a build would do, and how, for people (or as JSON)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import click

from mergeflow.cli import options
from mergeflow.cli.report import Screen
from mergeflow.cli.text import echo, kept_file, listed, plural, print_json, seconds, table
from mergeflow.tensors import human_bytes

if TYPE_CHECKING:
    from mergeflow.plan.plans import Plan

SCHEMA = "mergeflow/plan/1"
STEPS = 40  # shown without --all
OUTPUTS = 20  # of one entry with sweeps
FORMS = 4
SWEPT = 8  # values of a sweep
TOGETHER = 3  # other outputs of a pass
KERNELS = 6  # of a pass
KEPT = 3  # files of earlier builds
HOW = ("computed", "cast", "copied", "kept", "zero", "set")
BLOCK_LINE = 76  # characters of a line of blocks


@click.command()
@options.recipe_argument
@click.option("--all", "everything", is_flag=True, help=f"Show all steps, not only the first {STEPS}.")
@options.force_plan_option
@options.recipe_options
@options.locked_option
@options.machine_options
@options.folder_options
@options.json_option
@options.debug_option
def command(names: tuple[str, ...], everything: bool, as_json: bool, **given: Any) -> None:
    """Show what a build of RECIPE would do: sources, params, the normal form of each step, and for each output whether
    it would be built, why, how many of its tensors are computed, copied or kept of earlier builds, from how many bytes,
    together with which others, where and in how much memory.

    Sources that are new to this machine are read once, to know them by their content. Nothing is computed.
    """
    with Screen() as screen:
        project, outputs = options.open_project(names, screen, **given)
        with project:
            show(project.plan(outputs), screen, as_json=as_json, everything=everything)


def show(plan: Plan, screen: Screen, *, as_json: bool, everything: bool = False) -> None:
    from mergeflow.cli.describe import describe

    data = describe(plan, None if everything else STEPS)
    if as_json:
        print_json(SCHEMA, **data, warnings=screen.warnings)
    else:
        echo("\n".join(_lines(data, everything=everything)))


def _lines(data: dict[str, Any], *, everything: bool) -> Iterator[str]:
    yield "sources"
    yield from table(_sources(data), right=(2, 3))
    if data["params"] or data["profiles"] or data["sweeps"] or data["unused_params"]:
        yield from ("", "params")
        yield from table(_params(data))
    if data["unused_params"]:
        yield f"  used by no output: {listed(data['unused_params'])}"
    if data["steps"]:
        yield from ("", "steps")
        yield from table(_steps(data))
        if data["steps_left_out"]:
            yield f"  … and {data['steps_left_out']:,} more (--all shows them)"
    if data["unused_steps"]:
        yield f"  used by none of these outputs: {listed(data['unused_steps'])}"
    yield from ("", "outputs")
    yield from _outputs(data, None if everything else OUTPUTS)
    for note in data["notes"]:
        yield f"  note: {note}"
    yield from _store(data["store"])
    building = [o for o in data["outputs"] if o["build"]]
    if not building:
        yield "\nthere is nothing to build"
    elif len(data["outputs"]) > 1:
        read, wrote = sum(p["bytes_read"] for p in data["passes"]), sum(o["bytes_written"] for o in building)
        sizes = f"reads {human_bytes(read)}{_kept_bytes(building)}, writes {human_bytes(wrote)}"
        yield f"\n{len(building):,} of {len(data['outputs']):,} to build: {sizes}"


def _sources(data: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for s in data["sources"]:
        kind = "" if s["architecture"] == "unknown" else s["architecture"]
        what = ", ".join([*s["dtypes"], *filter(None, [kind]), *(["a difference"] if s["kind"] == "delta" else [])])
        yield s["name"], s["path"], plural(s["tensors"], "tensor"), human_bytes(s["bytes"]), what


def _params(data: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for name, values in data["sweeps"].items():
        shown = [text if label == text else f"{label or repr(label)} ({text})" for label, text in values.items()]
        yield name, f"= {listed(shown, SWEPT)}"
    for name, value in data["params"].items():
        yield name, f"= {value}"
    for name, profile in data["profiles"].items():
        for i, row in enumerate(profile["selectors"]):
            where = f"{row['selector']} ({plural(row['tensors'], 'tensor')})"
            if row["selector"] == "mbw" and profile["preset"]:
                where += f" = {profile['preset']}"
            yield "" if i else name, f"= {row['value']}", where
        yield from (("", "", line) for line in _blocks(profile["blocks"]))


def _blocks(blocks: dict[str, str]) -> Iterator[str]:
    """IN00 1  IN01 0.9 …; a new line where another group of blocks begins."""
    from mergeflow.plan.profiles import spans

    line: list[str] = []
    group = ""
    for block, exact in spans(blocks.items()):
        value = re.sub(r"-?[0-9]+/[0-9]+", lambda share: f"{float(Fraction(share[0])):.4g}", exact)
        here = block.split("-")[0].rstrip("0123456789")
        if line and (here != group or len("  ".join(line)) + len(block) + len(value) > BLOCK_LINE):
            yield "  ".join(line)
            line = []
        group = here
        line.append(f"{block} {value}")
    if line:
        yield "  ".join(line)


def _steps(data: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for step in data["steps"]:
        if step["same_as"]:
            yield step["name"], f"is {step['same_as']}"
        elif not step["forms"]:
            yield step["name"], "differs from tensor to tensor"
        else:
            for i, line in enumerate(step["forms"]):
                yield "" if i else step["name"], f"= {line['form']}" + (f"  ({line['where']})" if line["where"] else "")
            if step["more"]:
                yield "", f"= … for {step['more']:,} more"


def _outputs(data: dict[str, Any], most: int | None) -> Iterator[str]:
    """Each output; of those of one entry with sweeps the first to be built in full, of the others what differs. The
    first of a pass says what it is made together with."""
    seen: Counter[str] = Counter()
    told: set[str] = set()  # of which templates
    alone = {output["path"]: output["bytes_read"] for output in data["outputs"]}
    passes = {made["outputs"][0]: made for made in data["passes"]}
    for output in data["outputs"]:
        template = output["template"]
        seen[template] += 1
        if most is None or seen[template] <= most:
            yield from _output(output, brief=template in told)
            told |= {template} if output["build"] else set()
            made = passes.get(output["path"])
            if made is not None:
                yield from _kernels(made["placement"], KERNELS if most is not None else None)
            if made is not None and len(made["outputs"]) > 1:
                first, *others = made["outputs"]
                read, apart = human_bytes(made["bytes_read"]), human_bytes(sum(alone[o] for o in (first, *others)))
                yield f"         in one pass with {listed(others, TOGETHER)}: reads {read} once, apart {apart}"
    for template, count in seen.items():
        if most is not None and count > most:
            yield f"  … and {count - most:,} more of {template} (--all shows them)"


def _output(output: dict[str, Any], *, brief: bool) -> Iterator[str]:
    verb = "build" if output["build"] else "keep "
    yield f"  {verb}  {output['path']}: {output['reason']}"
    if output["sweep"]:
        here = (f"{name} = {label or repr(label)}" for name, label in output["sweep"].items())
        yield f"         where {', '.join(here)}"
    if not output["build"]:
        yield from (f"         note: {warning}" for warning in output["warnings"])
        return
    forms = output["forms"]
    for line in forms[:FORMS]:
        yield f"         = {line['form']}" + (f"  ({plural(line['tensors'], 'tensor')})" if len(forms) > 1 else "")
    if len(forms) > FORMS:
        yield f"         = … {len(forms) - FORMS:,} more forms"
    if output["policy"] != "exact":
        yield f"         policy {output['policy']}: step by step, each operation rounded in its tensors' own dtype"
    if not brief:
        yield from _how(output)
    elif output["kept"]:
        yield f"         {_counted(output)}"
    for file in output["kept"][:KEPT]:
        kept = f"{plural(file['tensors'], 'tensor')} ({human_bytes(file['bytes'])})"
        yield f"         keeps {kept} of {kept_file(file)}"
    if output["begun"]:
        yield f"         {plural(output['begun'], 'tensor')} begin from what the store has"
    if len(output["kept"]) > KEPT:
        yield f"         … and of {plural(len(output['kept']) - KEPT, 'more file')}"
    yield from (f"         note: {warning}" for warning in output["warnings"])


def _store(store: dict[str, Any]) -> Iterator[str]:
    """What is kept for other builds, or is not, and by which numbers."""
    if not store["makes"] and not store["declines"]:
        return
    yield from ("", "store")
    for made in store["makes"]:
        yield f"  stores {made['title']}: {human_bytes(made['bytes'])}, {made['reason']}"
        if place := made["placement"]:
            yield from (f"         {line}" for line in _where(place))
            yield from _kernels(place, KERNELS)
    for declined in store["declines"]:
        yield f"  does not store {declined['title']}: {human_bytes(declined['bytes'])}, {declined['reason']}"
    if rates := store["rates"]:
        yield f"  its disk reads {human_bytes(rates['read'])}/s and writes {human_bytes(rates['write'])}/s"


def _how(output: dict[str, Any]) -> Iterator[str]:
    """What is the same for all outputs of a sweep, or nearly."""
    kind = "a difference; " if output["kind"] == "delta" else ""
    yield f"         {kind}{_counted(output)}"
    read = human_bytes(output["bytes_read"]) + _kept_bytes([output])
    sizes = f"writes {human_bytes(output['bytes_written'])}, reads {read}"
    yield f"         {', '.join(output['dtypes'])}; {sizes}"
    yield from (f"         {line}" for line in _where(output["placement"]))


def _where(place: dict[str, Any]) -> Iterator[str]:
    """The device and how it is used; how long it should take, what bounds it, and what the runner-up is."""
    count = f" ({place['devices']} of them)" if place["devices"] > 1 else ""
    yield (
        f"on {place['device']}{count}, {place['strategy']}: {plural(place['workers'], 'worker')}, "
        f"{_tiles(place)} elements, at most {_memory(place)}"
    )
    if "bound" in place:
        other = f"; {place['runner_up']}" if place["runner_up"] else ""
        yield f"about {_briefly(place['seconds'])}, bound by {place['bound']}{other}"


def _tiles(place: dict[str, Any]) -> str:
    return f"tiles of {place['tile'] // 1024:,} Ki"


def _memory(place: dict[str, Any]) -> str:
    vram = f" and {human_bytes(place['vram'])} of each device's" if place["vram"] else ""
    return f"{human_bytes(place['peak'])} of memory{vram}"


def _briefly(time: float) -> str:
    return f"{time * 1000:.0f} ms" if time < 0.0995 else seconds(time)


def _kernels(place: dict[str, Any], most: int | None) -> Iterator[str]:
    """Each program of a pass, where there are several: of one alone all has been said."""
    kernels = place.get("kernels", [])
    if len(kernels) < 2:
        return
    for k in kernels[:most]:
        what = f"{k['kernel']} ({plural(k['tensors'], 'tensor')})"
        how = f"{k['device']}, {k['strategy']}, {_tiles(k)}, {_memory(k)}"
        yield f"         - {what}: {how}, {_briefly(k['seconds'])}, bound by {k['bound']}"
    if most is not None and len(kernels) > most:
        yield f"         - … and {len(kernels) - most:,} more kernels (--all shows them)"


def _counted(output: dict[str, Any]) -> str:
    counts = output["tensors"]
    how = [f"{counts[word]:,} {word}" for word in HOW if counts.get(word)]
    return f"{plural(sum(counts.values()), 'tensor')} as in {output['primary']}: {', '.join(how)}"


def _kept_bytes(outputs: Sequence[dict[str, Any]]) -> str:
    """What is read of earlier builds beside the sources, where anything is."""
    kept = sum(output["bytes_kept"] for output in outputs)
    return f" of sources and {human_bytes(kept)} of earlier builds" if kept else ""
