"""The Python API: `mergeflow.load(path).build()`, `mergeflow.merge("a + (b - c) * 0.3", a=…, b=…, c=…, out=…)`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from mergeflow.build.project import Project
from mergeflow.build.settings import BuildResult, Settings
from mergeflow.events import Reporter, silent
from mergeflow.recipe import from_command
from mergeflow.recipe import load as load_recipe
from mergeflow.recipe.origins import scheme_of

PathLike = str | os.PathLike[str]


def load(
    path: PathLike,
    *,
    set: Mapping[str, object] | None = None,  # the word of the language and the command
    sources: Mapping[str, PathLike] | None = None,
    settings: Settings | None = None,
    report: Reporter = silent,
) -> Project:
    """A recipe file as a project that can be planned and built.

    Args:
        path: the recipe.
        set: params to override, as `--set` does: {"m": 0.25, "k.vae": 0}.
        sources: files to use in place of those that the recipe names.
        settings: output root, memory, jobs and the like.
        report: told what happens (`mergeflow.events`); it is called from several threads.

    Raises:
        MergeflowError: the recipe cannot be read or does not mean anything.
    """
    overrides = {name: str(value) for name, value in (set or {}).items()}
    files = {name: os.fspath(file) for name, file in (sources or {}).items()}
    return Project(load_recipe(Path(path), overrides, files), settings, report)


def merge(
    expression: str,
    /,
    *,
    out: PathLike,
    dtype: str | None = None,
    settings: Settings | None = None,
    report: Reporter = silent,
    **names: PathLike | float,
) -> BuildResult:
    """One merge without a recipe file: `names` are the expression's models (paths) and numbers.

    Models may be addresses too, which are downloaded if `settings` has `fetch`. Numbers are taken as Python prints them
    (0.1 is exactly one tenth). `out` may be anywhere, and records lie beside it; where `settings` names an output root,
    `out` is below that one, and records lie there.

    Raises:
        MergeflowError: as a build of the same recipe would.
    """
    target = Path(out).resolve()
    settings = settings or Settings(output_root=target.parent)
    root = settings.output_root.resolve()
    if not target.is_relative_to(root) and root == Path.cwd():  # which is what Settings say where nobody chose one
        root = target.parent
    settings = replace(settings, output_root=root)
    texts = {name: _text(value) for name, value in names.items()}
    relative = target.relative_to(root) if target.is_relative_to(root) else target
    with Project(from_command(expression, texts, relative.as_posix(), dtype), settings, report) as project:
        return project.build()


def _text(value: PathLike | float) -> str:
    """A name's value as the command line would have it; paths from the current folder."""
    if isinstance(value, int | float):
        return str(value)
    path = os.fspath(value)
    return path if scheme_of(path) else os.path.abspath(path)  # noqa: PTH100  # links stay links
