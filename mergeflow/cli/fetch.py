"""`mergeflow fetch`: bring the sources of a recipe to this machine, and check that they are what they must be."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click

from mergeflow.cli import failure, options
from mergeflow.cli.report import Screen
from mergeflow.cli.text import echo, paint, plural, print_json, table
from mergeflow.digest import shortened
from mergeflow.errors import MergeflowError, NotReproducible

if TYPE_CHECKING:
    from mergeflow.build.project import Project
    from mergeflow.provenance.lock import Lock

SCHEMA = "mergeflow/fetch/1"
HERE, FOUND, FETCHED, FAILED = "here", "found", "fetched", "failed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one source. `how`: here (at its path), found (by its content), fetched or failed, then with the error."""

    name: str
    how: str
    file: str
    digest: str | None
    error: str | None = None
    exit_code: int = 0


@click.command()
@click.argument("recipe", required=False)
@options.recipe_options
@options.offline_option
@options.json_option
@options.debug_option
def command(recipe: str | None, as_json: bool, offline: bool, **given: Any) -> None:
    """Download what RECIPE needs and is not on this machine, and check all of its sources.

    A source that is not at its path is looked for by its hashes, the recipe's or the lock's, in the model folders:
    those of MERGEFLOW_MODELS and of config.toml. What is not found and has an address is downloaded, into the folder
    MERGEFLOW_DOWNLOADS; a download that was interrupted goes on where it was. Tokens are taken from HF_TOKEN,
    CIVITAI_TOKEN and ~/.netrc.
    """
    from mergeflow.provenance import lock as locks

    with Screen() as screen:
        project, _ = options.open_project((recipe,) if recipe else (), screen, fetch=not offline, **given)
        with project:
            path = locks.lock_path(project.recipe.path) if project.recipe.path else None
            lock = locks.read(path) if path is not None and path.exists() else None
            outcomes = [_bring(project, i, lock, screen) for i in range(len(project.bound.sources))]
    if as_json:
        print_json(SCHEMA, sources=[asdict(outcome) for outcome in outcomes])
    else:
        echo("\n".join(table([(o.how, o.name, o.file) for o in outcomes], indent="", limit=60)))
        counts = Counter(outcome.how for outcome in outcomes)
        told = ", ".join(f"{counts[how]:,} {how}" for how in (HERE, FOUND, FETCHED, FAILED) if counts[how])
        echo(f"{plural(len(outcomes), 'source')}: {told}")
    codes = {outcome.exit_code for outcome in outcomes if outcome.error is not None}
    if codes:
        click.get_current_context().exit(codes.pop() if len(codes) == 1 else 1)


def _bring(project: Project, source: int, lock: Lock | None, screen: Screen) -> Outcome:
    """One source; what is wrong with it is told at once, so that the others are still brought."""
    sources = project.sources
    name, digest = project.bound.sources[source].name, None
    try:
        moved = sources.locate([source])
        digest = sources.facts(source).model
        locked = lock.sources.get(name) if lock is not None else None
        if locked is not None and locked.digest != digest:
            at, locked_as = project.bound.sources[source].path, shortened(locked.digest)
            raise NotReproducible(
                f"{at}: {name} is {shortened(digest)}, the lock says {locked_as}",
                hint="point at the locked file with --source, or accept this one with `mergeflow lock`",
            )
    except MergeflowError as error:
        screen.say(f"{paint('failed:', fg='red', bold=True)} {name}: {failure.shown(failure.judge(error))}")
        file = str(project.bound.sources[source].path)
        return Outcome(name, FAILED, file, digest, error.message, error.exit_code)
    how = FETCHED if source in sources.finder.fetched else FOUND if moved else HERE
    return Outcome(name, how, str(project.bound.sources[source].path), digest)
