"""Options that several commands share, and opening a project with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mergeflow.cli import complete
from mergeflow.events import Reporter

if TYPE_CHECKING:
    _ParamType = click.ParamType[tuple[str, str]]
    from mergeflow.build.project import Project
    from mergeflow.build.settings import Settings
else:
    _ParamType = click.ParamType

F = TypeVar("F", bound=Callable[..., Any])
Pairs = tuple[tuple[str, str], ...]


class Pair(_ParamType):
    """NAME=VALUE, split at the first =."""

    name = "NAME=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        name, equals, text = str(value).partition("=")
        if not equals or not name.strip():
            self.fail(f"{value!r} has no name and value: write it as {self.name}", param, ctx)
        return name.strip(), text


def _apply(options: Sequence[Callable[[F], F]], function: F) -> F:
    for option in reversed(options):
        function = option(function)
    return function


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
debug_option = click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
locked_option = click.option("--locked", is_flag=True, help="Refuse sources and results that differ from the lock.")
offline_option = click.option("--offline", is_flag=True, help="Download nothing; say what is missing.")
recipe_argument = click.argument("names", nargs=-1, metavar="[RECIPE] [OUTPUT]...", shell_complete=complete.outputs)
force_option = click.option("--force", is_flag=True, help="Build what is up to date, overwrite what is not ours.")
force_plan_option = click.option("--force", is_flag=True, help="Plan a build with --force: all is made anew.")
dry_run_option = click.option("-n", "--dry-run", is_flag=True, help="Print the plan, build nothing.")


def recipe_options(function: F) -> F:
    """What changes the recipe: --set and --source."""
    options = (
        click.option(
            "--set",
            "params",
            multiple=True,
            type=Pair(),
            shell_complete=complete.params,
            help="Set a param: m=0.25, k.unet=0.5.",
        ),
        click.option(
            "--source",
            "sources",
            multiple=True,
            type=Pair(),
            metavar="NAME=PATH",
            shell_complete=complete.sources,
            help="Use another file; relative to the current folder.",
        ),
    )
    return _apply(options, function)


def cache_option(function: F) -> F:
    folder = click.Path(file_okay=False, path_type=Path)
    return click.option(
        "--cache",
        type=folder,
        metavar="FOLDER",
        help="Where built outputs are recorded. [default: cache/ in the output root]",
    )(function)


def folder_options(function: F) -> F:
    folder = click.Path(file_okay=False, path_type=Path)
    option = click.option(
        "--output-root", type=folder, metavar="FOLDER", help="What output paths are relative to. [default: .]"
    )
    return option(cache_option(function))


def machine_options(function: F) -> F:
    """What is the machine's business: --jobs, --device, --memory, --vram."""
    options = (
        click.option("-j", "--jobs", type=click.IntRange(min=1), metavar="N", help="Threads. [default: all cores]"),
        click.option(
            "--device",
            metavar="DEVICE",
            default="auto",
            help="Where to compute: cpu, cuda (all cards), cuda:1, mps. [default: auto, which takes the least time]",
        ),
        click.option("--memory", metavar="AMOUNT", help="Most memory to use, as 4GB. [default: half of what is free]"),
        click.option(
            "--vram", metavar="AMOUNT", help="Most memory to use of each accelerator. [default: 80 % of what is free]"
        ),
    )
    return _apply(options, function)


def settings(
    *,
    output_root: Path | None = None,
    cache: Path | None = None,
    locked: bool = False,
    fetch: bool = False,
    jobs: int | None = None,
    device: str = "auto",
    memory: str | None = None,
    vram: str | None = None,
    force: bool = False,
    keep_going: bool = False,
) -> Settings:
    """Options of the command line as settings of a run."""
    from mergeflow.build.settings import Settings, check_device

    return Settings(
        output_root=output_root or Path.cwd(),
        cache=cache,
        jobs=jobs,
        memory=_bytes(memory) if memory else None,
        vram=_bytes(vram) if vram else None,
        device=check_device(device),
        force=force,
        keep_going=keep_going,
        locked=locked,
        fetch=fetch,
    )


def _bytes(amount: str) -> int:
    from mergeflow.build.machine import parse_memory

    return parse_memory(amount)


def is_recipe(name: str) -> bool:
    return name.lower().endswith((".yaml", ".yml"))


def find(names: Sequence[str]) -> tuple[Path, tuple[str, ...]]:
    """The recipe and the outputs that the arguments name: a first one that ends in .yaml is the recipe, else it is
    recipe.yaml and all are outputs."""
    if names and is_recipe(names[0]):
        return Path(names[0]), tuple(names[1:])
    usual = Path("recipe.yaml")
    if not usual.is_file():  # asked here too, because what can say more takes long to import
        from mergeflow.recipe import find_recipe

        usual = find_recipe(Path())
    return usual, tuple(names)


def open_project(
    names: Sequence[str], report: Reporter, *, params: Pairs = (), sources: Pairs = (), **given: Any
) -> tuple[Project, tuple[str, ...]]:
    """The project of the recipe that is named, and the outputs that are wanted of it (none: all)."""
    path, outputs = find(names)
    return load(path, report, settings(**given), params, sources), outputs


def load(path: Path, report: Reporter, chosen: Settings, params: Pairs = (), sources: Pairs = ()) -> Project:
    from mergeflow.build.api import load as load_project

    return load_project(path, set=dict(params), sources=dict(sources), settings=chosen, report=report)
