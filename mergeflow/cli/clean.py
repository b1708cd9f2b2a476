"""`mergeflow clean`: remove built outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mergeflow.cli import options
from mergeflow.cli.report import Screen
from mergeflow.cli.text import echo, plural, print_json
from mergeflow.tensors import human_bytes

SCHEMA = "mergeflow/clean/1"


@click.command()
@options.recipe_argument
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be removed, remove nothing.")
@click.option("--force", is_flag=True, help="Remove files that mergeflow did not write or that were changed, too.")
@options.folder_options
@options.json_option
@options.debug_option
def command(names: tuple[str, ...], dry_run: bool, force: bool, as_json: bool, **given: Any) -> None:
    """Remove the outputs of RECIPE, or those named, with the recipes beside them. A file that mergeflow did not write,
    or that was changed since, stays.
    """
    removed: list[Path] = []
    kept: list[Path] = []
    freed = 0
    with Screen() as screen:
        project, outputs = options.open_project(names, screen, force=force, **given)
        with project:
            sizes = {path: path.stat().st_size for path, _ in project.clean(outputs, dry_run=True)}
            for path, ours in project.clean(outputs, dry_run=dry_run):
                (removed if ours else kept).append(path)
                freed += sizes.get(path, 0) if ours else 0
    if as_json:
        print_json(SCHEMA, removed=list(map(str, removed)), kept=list(map(str, kept)), bytes=freed, dry_run=dry_run)
        return
    for path in kept:
        screen.warn(f"{_near(path)} is not what mergeflow built there: it stays (--force removes it)")
    for path in removed:
        echo(f"  {'would remove' if dry_run else 'removed'} {_near(path)}")
    if removed:
        echo(f"{plural(len(removed), 'file')}, {human_bytes(freed)}")
    elif not kept:
        echo("there is nothing to remove")


def _near(path: Path) -> str:
    here = Path.cwd().resolve()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
