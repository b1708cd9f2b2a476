"""A Makefile's rule of what outputs were made of, for `include`: the recipe with all that it includes, and the files of
the sources. Each input has an empty rule too, so that make goes on when one is gone."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mergeflow.errors import RecipeError

if TYPE_CHECKING:
    from mergeflow.build.project import Project

_TITLE = "# mergeflow depfile"
_NO_WAY = re.compile(r"[\n|;=]|\(.*\)$", re.DOTALL)  # what GNU make reads as its own however it is written


def is_of(file: Path, digest: str) -> bool:
    """Whether a file is the depfile of this very build, as `Asked.digest` has it, and need not be written again.

    Raises:
        RecipeError: it is something else, and would be overwritten.
    """
    try:
        with file.open(encoding="utf-8", errors="replace") as lines:
            first = lines.readline().strip()
    except OSError:
        return False
    if first and not first.startswith(_TITLE):
        raise RecipeError(f"{file} is no depfile of mergeflow, and is not overwritten", hint="name another --depfile")
    return first == f"{_TITLE} {digest}"


def write(file: Path, project: Project, targets: Sequence[Path], digest: str) -> None:
    """Write the rule of a finished build.

    Raises:
        RecipeError: a path that no Makefile can hold.
    """
    from mergeflow.formats.parts import write_text_file

    inputs = [*project.bound.files, *(path for found in project.sources.known().values() for path in found.files)]
    names = sorted({_near(path) for path in inputs})
    write_text_file(file, text(sorted({_near(path) for path in targets}), names, digest))


def text(targets: Iterable[str], inputs: Iterable[str], digest: str = "") -> str:
    """The text of the rule, with paths as make reads them."""
    made, given = list(targets), list(inputs)
    lines = [f"{_TITLE} {digest}".rstrip()]
    lines.append(f"{' '.join(escaped(path, target=True) for path in made)}: \\")
    lines.append(" \\\n".join(f"  {escaped(path)}" for path in given))
    lines += [f"\n{escaped(path, target=True)}:" for path in given]
    return "\n".join(lines) + "\n"


def escaped(path: str, *, target: bool = False) -> str:
    """A path in a rule.

    Raises:
        RecipeError: it holds what make has no way to write.
    """
    if found := _NO_WAY.search(path):
        what = "a line break" if "\n" in found[0] else found[0]
        raise RecipeError(
            f"the path {path!r} cannot stand in a Makefile: it has {what}",
            hint="rename the file, or leave --depfile out",
        )
    quoted = re.sub(r"(\\*)([ \t#])", lambda m: f"{m[1] * 2}\\{m[2]}", path.replace("$", "$$"))
    quoted = re.sub(r"[*?\[\]:]", lambda m: f"\\{m[0]}", quoted)
    if target:
        quoted = quoted.replace("%", "\\%")
    return f"./{quoted}" if quoted[:1] in ("~", "-") else quoted


def _near(path: Path) -> str:
    """As make is told: from the current folder where the file lies in it, whole otherwise."""
    whole, here = os.path.abspath(path), str(Path.cwd())  # noqa: PTH100  # links stay links
    near = os.path.relpath(whole, here) if Path(whole).is_relative_to(here) else whole
    return Path(near).as_posix()
