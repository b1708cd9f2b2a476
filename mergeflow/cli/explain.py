"""`mergeflow explain`: why an output would be built, or not; and what its key is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mergeflow.cli import options
from mergeflow.cli.report import Screen
from mergeflow.cli.text import print_json, table

if TYPE_CHECKING:
    from mergeflow.plan.planner import OutputPlan, Plan

SCHEMA = "mergeflow/explain/1"


@click.command()
@options.recipe_argument
@click.option("--key", is_flag=True, help="Print the text that the key of one output is the hash of.")
@click.option("--tensor", metavar="NAME", help="With --key: of one of its tensors.")
@options.recipe_options
@options.locked_option
@options.folder_options
@options.json_option
@options.debug_option
def command(names: tuple[str, ...], key: bool, tensor: str | None, as_json: bool, **given: Any) -> None:
    """Say of each output of RECIPE whether it would be built, and why.

    With --key, stdout is exactly the text whose BLAKE3 hash the key is.
    """
    if tensor and not key:
        raise click.UsageError("--tensor goes with --key")
    with Screen() as screen:
        project, outputs = options.open_project(names, screen, **given)
        with project:
            plan = project.plan(outputs)
    if key and len(plan.outputs) > 1:
        raise click.UsageError(f"--key is of one output: name one of {', '.join(o.path for o in plan.outputs)}")
    if as_json:
        entries = [_entry(plan, output, key, tensor) for output in plan.outputs]
        print_json(SCHEMA, outputs=entries, warnings=screen.warnings)
    elif key:
        text, its_key = preimage(plan, plan.outputs[0], tensor)
        click.echo(text, nl=False)
        click.echo(f"its key is {its_key}", err=True)
    else:
        rows = [("build" if o.build else "keep", o.path, o.reason) for o in plan.outputs]
        click.echo("\n".join(table(rows, indent="")))


def preimage(plan: Plan, output: OutputPlan, tensor: str | None) -> tuple[str, str]:
    """The text behind the key of an output, or of one of its tensors; and the key."""
    from mergeflow.plan.embed import file_preimage
    from mergeflow.plan.planner import tensor_preimage

    if tensor is None:
        return file_preimage(list(output.works), output.layout), output.key
    text = tensor_preimage(plan, output, tensor)
    return text, next(work.key for work in output.works if work.name == tensor)


def _entry(plan: Plan, output: OutputPlan, key: bool, tensor: str | None) -> dict[str, Any]:
    entry = {"path": output.path, "file": str(output.target), "build": output.build, "reason": output.reason}
    entry["key"] = output.key
    if key:
        entry["preimage"], entry["key"] = preimage(plan, output, tensor)
    return entry
