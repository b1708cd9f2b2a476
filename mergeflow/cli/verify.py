"""`mergeflow verify`: read files again, every byte, and compare them with what they claim and with a lock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergeflow.cli import options
from mergeflow.cli.report import Screen
from mergeflow.cli.text import echo, print_json, table

if TYPE_CHECKING:
    from mergeflow.build.verification import Again, Verdict
    from mergeflow.provenance.lock import Lock

_FOLDER = click.Path(file_okay=False, exists=True, path_type=Path)
SCHEMA = "mergeflow/verify/1"
CODES = {
    "ok": 0,
    "unknown": 2,
    "missing": 4,
    "not read": 7,
    "differs": 3,
    "not reproduced": 6,
    "damaged": 5,
}  # by how much they matter


@click.command(no_args_is_help=True)
@click.argument("files", nargs=-1, type=click.Path(path_type=Path), metavar="[FILE]...")
@click.option(
    "--recipe", type=click.Path(path_type=Path), help="Verify the outputs of a recipe; with its lock, sources too."
)
@click.option("--lock", "lock_file", type=click.Path(path_type=Path), help="Compare with this lock.")
@click.option("--rebuild", is_flag=True, help="Build each FILE again from its sources, and compare tensor by tensor.")
@click.option(
    "--source",
    "sources",
    multiple=True,
    type=options.Pair(),
    metavar="NAME=PATH",
    help="With --rebuild: the file of a source.",
)
@click.option(
    "--models",
    multiple=True,
    type=_FOLDER,
    metavar="FOLDER",
    help="With --rebuild: search this folder for sources, by content.",
)
@click.option("--output", metavar="OUTPUT", help="With --rebuild: the output of the recipe that FILE is.")
@click.option(
    "--scratch",
    type=_FOLDER,
    metavar="FOLDER",
    help="With --rebuild: where results go until they are compared. [default: beside FILE]",
)
@options.folder_options
@options.json_option
@options.debug_option
def command(
    files: tuple[Path, ...], recipe: Path | None, lock_file: Path | None, as_json: bool, rebuild: bool,
    sources: options.Pairs, models: tuple[Path, ...], output: str | None, scratch: Path | None, **given: Any,
) -> None:  # fmt: skip
    """Read each FILE again, every byte of it, and compare its digest with the one that it carries, and with a lock
    where there is one. A file made by mergeflow carries its digest; in a lock, a file is looked up by its name among
    the outputs, else by its content. Hashes that stand in it, or in a .sha256 or .provenance.json file beside it,
    are checked, too.

    With --rebuild the recipe is the one of --recipe, else the one inside FILE or beside it, else the graph in FILE. Its
    sources are found by what FILE says they are, whatever they are called by now: in the folders of --models, beside
    FILE, in the current folder, in this machine's model folders.

    \b
    Exit codes: 0  every file is what it claims to be and what the lock says
                2  a file claims nothing and no lock says anything of it: nothing was verified
                3  a file differs from the lock
                4  a file or a source is missing
                5  a file is not what it claims to be, or is damaged
                6  its recipe and sources do not give the file again
                7  a file cannot be read
    Where several hold, the first of 5, 6, 3, 7, 4, 2.
    """
    if not files and recipe is None:
        raise click.UsageError("name files, or a recipe with --recipe")
    if named := next((f for f in files if options.is_recipe(f.name)), None):
        raise click.UsageError(f"{named} is a recipe: mergeflow verify --recipe {named}")
    for name, asked in (("--source", sources), ("--models", models), ("--output", output), ("--scratch", scratch)):
        if asked and not rebuild:
            raise click.UsageError(f"{name} is for building again: add --rebuild")
    from mergeflow.build.machine import budget
    from mergeflow.provenance import lock as locks
    from mergeflow.sources.memo import Memo, default_folder

    with Screen(brief=True) as screen, closing(Memo(default_folder(), screen.warn)) as memo:
        again = None
        if rebuild:
            from mergeflow.build.rebuild import Rebuilder
            from mergeflow.build.verification import Again

            folders, paths = [*models], {name: Path(path) for name, path in sources}
            rebuilder = Rebuilder(options.settings(**given), memo, screen, folders=folders, given=paths,
                                  scratch=scratch, workers=budget(1).cores)  # fmt: skip
            again = Again(rebuilder, recipe, output)
        lock = locks.read(lock_file) if lock_file else None
        if recipe is not None and not files:
            verdicts = list(_recipe(recipe, lock, screen, again, given))
        else:
            verdicts = [_check(file, expected_of(lock, file), screen, again=again) for file in files]
            if recipe is not None and again is None:
                verdicts = [*_recipe(recipe, lock, screen, None, given), *verdicts]
    if as_json:
        print_json(SCHEMA, files=[asdict(verdict) for verdict in verdicts])
    else:
        echo("\n".join(table([(v.verdict, v.file, v.why) for v in verdicts], indent="", limit=60)))
        for hint in dict.fromkeys(v.hint for v in verdicts if v.hint):
            echo(f"  hint: {hint}")
    worst = max((v.verdict for v in verdicts), key=list(CODES).index)
    click.get_current_context().exit(CODES[worst])


def _recipe(
    recipe: Path, lock: Lock | None, screen: Screen, again: Again | None, given: dict[str, Any]
) -> Iterator[Verdict]:
    """The outputs of a recipe; and its sources, where a lock says what they must be."""
    from mergeflow.build.targets import file_of
    from mergeflow.provenance import lock as locks

    project, _ = options.open_project((str(recipe),), screen, **given)
    with project:
        if lock is None and project.lock_file().exists():
            lock = locks.read(project.lock_file())
        if lock is not None:
            for number, source in enumerate(list(project.bound.sources)):
                locked = lock.sources.get(source.name)
                yield _check(project.sources.path_of(number), {locked.digest: source.name} if locked else {}, screen)
        for path in project.bound.outputs:
            output = lock.outputs.get(path) if lock else None
            expected = {output.digest: path} if output and output.digest else {}
            file = file_of(project.bound, path, project.settings.output_root)
            asked = again and replace(again, output=path)
            yield _check(file, expected, screen, shown=path, again=asked)


def expected_of(lock: Lock | None, file: Path) -> dict[str, str]:
    """The digests that a lock allows a file, and whose they are: an output's of the same name, else all."""
    if lock is None:
        return {}
    outputs = {path: o.digest for path, o in lock.outputs.items() if o.digest}
    named = {digest: path for path, digest in outputs.items() if Path(path).name == file.name}
    sources = {s.digest: name for name, s in lock.sources.items()}
    return named or {**sources, **{digest: path for path, digest in outputs.items()}}


def _check(
    file: Path, expected: dict[str, str], screen: Screen, *, shown: str = "", again: Again | None = None
) -> Verdict:
    from mergeflow.build.machine import budget
    from mergeflow.build.verification import check

    return check(file, expected, screen, shown=shown, workers=budget(1).cores, again=again)
