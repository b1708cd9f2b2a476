"""`mergeflow build`: make the outputs that are out of date."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergeflow.cli import failure, options
from mergeflow.cli.report import Screen
from mergeflow.cli.text import echo, paint, plural, print_json, seconds
from mergeflow.tensors import human_bytes

if TYPE_CHECKING:
    from mergeflow.build.project import Project
    from mergeflow.build.quick import Asked
    from mergeflow.build.settings import BuildResult, BuiltOutput

SCHEMA = "mergeflow/build/1"


@click.command()
@options.recipe_argument
@options.dry_run_option
@click.option("-k", "--keep-going", is_flag=True, help="After a failure, make the other outputs all the same.")
@options.force_option
@options.recipe_options
@options.locked_option
@options.offline_option
@click.option(
    "--depfile",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a Makefile's rule of what the outputs are made of.",
)
@options.machine_options
@options.folder_options
@options.json_option
@options.debug_option
def command(
    names: tuple[str, ...],
    dry_run: bool,
    offline: bool,
    depfile: Path | None,
    as_json: bool,
    params: options.Pairs,
    sources: options.Pairs,
    **given: Any,
) -> None:
    """Make the outputs of RECIPE that are out of date: all of them, or those named.

    RECIPE is recipe.yaml when no file that ends in .yaml or .yml is named. What is up to date is left alone; a file
    that mergeflow did not write, or that was changed since, is not overwritten without --force. Sources that are not on
    this machine are downloaded, where the recipe or its lock has an address.
    """
    from mergeflow.build.depfile import is_of
    from mergeflow.build.quick import Asked, unchanged
    from mergeflow.build.settings import BuildResult

    began = time.monotonic()
    recipe, outputs = options.find(names)
    settings = options.settings(fetch=not (offline or dry_run), **given)
    asked = Asked(recipe, outputs, dict(params), dict(sources))
    if depfile is not None and not dry_run and not is_of(depfile, asked.digest(settings)):
        done = None  # what the outputs are made of is known once they are planned
    else:
        done = None if dry_run else unchanged(asked, settings)
    with Screen() as screen:
        if done is not None:
            tell(BuildResult(done), screen, began, as_json=as_json)
            return
        with options.load(recipe, screen, settings, params, sources) as project:
            run(project, outputs, screen, began, dry_run=dry_run, as_json=as_json, asked=asked, depfile=depfile)


def run(
    project: Project,
    outputs: Sequence[str],
    screen: Screen,
    began: float,
    *,
    dry_run: bool,
    as_json: bool,
    asked: Asked | None = None,
    depfile: Path | None = None,
) -> None:
    """Build and say what came of it; with `dry_run`, show the plan."""
    if dry_run:
        from mergeflow.cli.plan import show

        show(project.plan(outputs), screen, as_json=as_json)
    else:
        result = project.build(outputs, asked=asked)
        if depfile is not None and asked is not None and not result.failed:
            from mergeflow.build.depfile import write

            write(depfile, project, [output.target for output in result.outputs], asked.digest(project.settings))
        tell(result, screen, began, as_json=as_json)


def tell(result: BuildResult, screen: Screen, began: float, *, as_json: bool) -> None:
    """The result on stdout; where outputs failed, why on stderr, and an exit code."""
    took = time.monotonic() - began
    for output in result.outputs:
        if output.error is not None:
            text = failure.shown(failure.judge(output.error))
            text = text.removeprefix(f"{output.target}: ")  # what failed is said here
            screen.say(f"{paint('failed:', fg='red', bold=True)} {output.path}: {text}")
    if as_json:
        made = [_entry(output) for output in result.outputs]
        stored = [kept._asdict() for kept in result.stored]
        more = {"seconds": round(took, 3), "bytes_saved": saved(result.outputs), "failed": result.failed}
        print_json(SCHEMA, outputs=made, stored=stored, warnings=screen.warnings, **more)
    else:
        echo(summary(result, took))
    if result.failed:
        codes = {output.error.exit_code for output in result.outputs if output.error is not None}
        click.get_current_context().exit(codes.pop() if len(codes) == 1 else 1)


def summary(result: BuildResult, took: float) -> str:
    """The whole build in one line."""
    outputs = result.outputs
    built = [o for o in outputs if o.built]
    failed = sum(o.error is not None for o in outputs)
    current = len(outputs) - len(built) - failed
    if not built and not failed:
        if current == 1:
            return f"{outputs[0].path} is up to date"
        return f"all {plural(current, 'output')} are up to date"
    what = built[0].path if len(built) == 1 else plural(len(built), "output")
    parts = [f"built {what}"]
    if current:
        parts.append(f"{current:,} up to date")
    if failed:
        parts.append(f"{failed:,} failed")
    wrote = human_bytes(sum(o.nbytes for o in built))
    read = human_bytes(sum(o.bytes_read for o in built) + sum(kept.bytes_read for kept in result.stored))
    done = (
        [*_done(built), f"stored {human_bytes(sum(s.nbytes for s in result.stored))}"]
        if result.stored
        else _done(built)
    )
    less = f" ({human_bytes(spared)} saved)" if (spared := saved(built)) else ""
    return f"{', '.join(parts)}: {', '.join(done)}, wrote {wrote}, read {read}{less}, {seconds(took)}"


def saved(outputs: Sequence[BuiltOutput]) -> int:
    """The bytes of sources that had not to be read: for what was kept of earlier builds, and what outputs shared."""
    built = [output for output in outputs if output.built]
    return max(0, sum(output.tally.bytes_alone - output.bytes_read for output in built))


def _done(built: Sequence[BuiltOutput]) -> Iterator[str]:
    """computed 38 tensors, copied 5, kept 1,093 (2.0 GB)"""
    counts = [(verb, sum(n)) for verb, n in (
        ("computed", [o.tally.computed for o in built]),
        ("copied", [o.tally.copied for o in built]),
        ("kept", [o.tally.reused for o in built]),
    ) if sum(n)]  # fmt: skip
    kept = human_bytes(sum(o.tally.bytes_reused for o in built))
    for i, (verb, n) in enumerate(counts):
        yield f"{verb} {f'{n:,}' if i else plural(n, 'tensor')}" + (f" ({kept})" if verb == "kept" else "")


def _entry(output: BuiltOutput) -> dict[str, object]:
    entry: dict[str, object] = {
        "path": output.path,
        "file": str(output.target),
        "built": output.built,
        "reason": output.reason,
        "bytes": output.nbytes,
        "bytes_read": output.bytes_read,
        "bytes_kept": output.tally.bytes_reused,
        "tensors": {"computed": output.tally.computed, "copied": output.tally.copied, "kept": output.tally.reused},
        "digest": output.digest or None,
    }
    if output.error is not None:
        entry["error"] = {"message": output.error.message, "exit_code": output.error.exit_code}
    return entry
