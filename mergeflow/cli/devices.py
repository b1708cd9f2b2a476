"""`mergeflow devices`: what merges can be computed on, how much memory they may take, and how fast that is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from mergeflow.cli import options
from mergeflow.cli.text import echo, plural, print_json, table
from mergeflow.tensors import human_bytes

if TYPE_CHECKING:
    from mergeflow.plan.outlook import Accelerator, Machine

SCHEMA = "mergeflow/devices/1"


@click.command()
@click.option(
    "--measure",
    is_flag=True,
    help="Measure the accelerators, and how fast the disk of this folder writes, and remember it.",
)
@options.machine_options
@options.json_option
@options.debug_option
def command(measure: bool, as_json: bool, **given: Any) -> None:
    """Show the devices of this machine: what a build may use of them, and the rates by which `--device auto` chooses.

    The rates of the machine itself are measured when they are first asked for, those of accelerators and of writing to
    the disk by --measure, which imports torch where there is an accelerator, and writes 256 MB for a moment: until then
    what hardware of the kind does at least is taken.
    """
    from mergeflow.build import speeds
    from mergeflow.build.machine import budget
    from mergeflow.plan.accelerated import usable
    from mergeflow.sources.memo import default_folder

    settings = options.settings(**given)
    memo = default_folder()
    folder = settings.output_root
    if measure:
        speeds.measure_writing(memo, folder)
        for there in speeds.machine(memo, settings.device, ()).accelerators:
            speeds.measure_accelerator(memo, there)
    machine = speeds.machine(memo, settings.device, (), folder)
    allowed = budget(settings.memory, settings.vram)
    data = {
        "cpu": {"cores": settings.jobs or allowed.cores, "memory": allowed.memory, **_rates(machine)},
        "accelerators": [_told(there, usable(there, settings.vram)) for there in machine.accelerators],
    }
    if as_json:
        print_json(SCHEMA, **data)
    else:
        echo("\n".join(_lines(data)))


def _rates(machine: Machine) -> dict[str, float]:
    """Bytes per second of one core, and of its sums: elements of terms per second; bytes per second that the disk of
    the outputs writes."""
    rates = machine.speeds
    return {"copies": rates.copy, "hashes": rates.hash, "terms": 1e9 / rates.term, "writes": rates.write}


def _told(there: Accelerator, usable: int) -> dict[str, Any]:
    return {
        "name": there.name,
        "models": list(there.models),
        "free": list(there.free),
        "total": list(there.total),
        "usable": usable,
        "up": there.up,
        "down": there.down,
        "terms": 1e9 / there.term,
        "start_seconds": there.start,
        "host": there.host,
        "context": there.context,
        "measured": there.measured,
    }


def _lines(data: dict[str, Any]) -> Iterator[str]:
    cpu = data["cpu"]
    yield f"cpu  {plural(cpu['cores'], 'core')}, {human_bytes(cpu['memory'])} of memory for a build"
    yield (
        f"     each copies {human_bytes(cpu['copies'])}/s, hashes {human_bytes(cpu['hashes'])}/s and adds up "
        f"{cpu['terms'] / 1e9:.1f} billion numbers/s; the disk of this folder writes {human_bytes(cpu['writes'])}/s"
    )
    for there in data["accelerators"]:
        yield there["name"]
        rows = zip(there["models"], there["free"], there["total"], strict=True)
        yield from table([(model, f"{human_bytes(free)} of {human_bytes(total)} free") for model, free, total in rows])
        how = "measured" if there["measured"] else "not measured yet: `mergeflow devices --measure`"
        yield f"     a build may use {human_bytes(there['usable'])} of each"
        yield (
            f"     copies {human_bytes(there['up'])}/s to it and {human_bytes(there['down'])}/s from it, adds up "
            f"{there['terms'] / 1e9:.0f} billion numbers/s, ready after {there['start_seconds']:.1f} s ({how})"
        )
        yield (
            f"     being awake takes {human_bytes(there['context'])} of its memory and {human_bytes(there['host'])} of "
            f"the machine's"
        )
    if not data["accelerators"]:
        yield "no accelerator that torch could use is to be seen here"
