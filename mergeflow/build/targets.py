"""Where outputs go: under the output root, never onto an input, never onto each other."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from mergeflow.errors import Place, RecipeError, ResourceError, UnknownName
from mergeflow.formats.sharded import index_of
from mergeflow.plan.bound import Bound


def choose(bound: Bound, wanted: Iterable[str]) -> list[str]:
    """The outputs to make: all, or those named by path (or file name where that is enough; all of a sweep by the name
    that is in the recipe)."""
    names = list(wanted)
    if not bound.outputs:
        file = bound.recipe.path
        raise RecipeError(
            "the recipe has no outputs",
            place=Place(str(file)) if file else None,
            hint="add outputs: { mix.safetensors: a + (b - c) * 0.3 }",
        )
    if not names:
        return list(bound.outputs)
    chosen: dict[str, None] = {}
    for name in names:
        matches = _named(bound, name)
        if not matches:
            templates = list(dict.fromkeys(point.template for point in bound.points.values()))
            shown = ", ".join(templates[:5]) + (", …" if len(templates) > 5 else "")
            stem = [path for path in bound.outputs if PurePosixPath(path).stem == PurePosixPath(name).stem]
            meant = f"did you mean {stem[0]}?" if len(stem) == 1 else ""
            raise UnknownName("output", name, () if meant else bound.outputs, hint=meant or f"the recipe makes {shown}")
        chosen |= dict.fromkeys(matches)
    return list(chosen)


def _named(bound: Bound, name: str) -> list[str]:
    """The outputs that a name means: one, or all of an entry with sweeps, which is named as in the recipe. A file name
    without its folders will do where only one has it."""
    for last in (str, _file_name):
        found = {path: [path] for path in bound.outputs if last(path) == name}
        for path, point in bound.points.items():
            if point.labels and last(point.template) == name:
                found.setdefault(point.template, []).append(path)
        if len(found) == 1:
            return next(iter(found.values()))
    return []


def _file_name(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def file_of(bound: Bound, path: str, root: Path) -> Path:
    """The file that an output is known by: its index, where it is written in shards."""
    target = root / path
    return index_of(target) if bound.outputs[path][1].shard_size else target


def targets(bound: Bound, outputs: Iterable[str], root: Path, inputs: Mapping[str, Path]) -> dict[str, Path]:
    """The file of each output.

    Raises:
        RecipeError: outside the root, equal to an input, or to another output.
        ResourceError: the folder cannot be written to.
    """
    base = _real(root)
    taken: dict[str, list[tuple[str, Path]]] = {}
    for name, source in inputs.items():
        taken.setdefault(str(_real(source)).casefold(), []).append((name, source))
    result: dict[str, Path] = {}
    used: dict[str, str] = {}
    for path in outputs:
        place = bound.outputs[path][1].place
        if os.name != "nt" and re.match(r"[A-Za-z]:[\\/]|\\\\", path):
            raise RecipeError(
                f"{path} is a path of Windows, and this is not Windows",
                place=place,
                hint="write it relative to the output root, with /, as in models/mix.safetensors",
            )
        real = _real(file_of(bound, path, root))
        if not real.is_relative_to(base):
            raise RecipeError(
                f"{path} would be written outside {base}",
                place=place,
                hint="outputs stay under the output root; --output-root FOLDER moves it",
            )
        folded = str(real).casefold()  # two names that differ in case are one file on Windows and macOS
        same = next((name for name, source in taken.get(folded, ()) if _same_file(real, source)), None)
        if same is not None:
            raise RecipeError(
                f"{path} is also the source {same}: it would overwrite its own input",
                place=place,
                hint="give the output another path",
            )
        if folded in used:
            raise RecipeError(f"{path} and {used[folded]} are the same file", place=place, hint="rename one of them")
        used[folded] = path
        if real.is_dir():
            raise ResourceError(
                f"{path} is a folder there", place=place, hint="remove it, or give the output another path"
            )
        _check_writable(path, real, place)
        result[path] = real
    _check_none_is_below_another(used, bound)
    return result


def _check_none_is_below_another(used: Mapping[str, str], bound: Bound) -> None:
    """`used`: the outputs by their files, in lower case."""
    for folded, path in used.items():
        above = next((used[str(p)] for p in Path(folded).parents if str(p) in used), None)
        if above is not None:
            raise RecipeError(
                f"{path} lies below {above}, which is a file",
                place=bound.outputs[path][1].place,
                hint="rename one of them",
            )


def _real(path: Path) -> Path:
    """Absolute, links followed; unlike Path.resolve, links that lead in circles are no error here."""
    return Path(os.path.realpath(path))


def _same_file(target: Path, source: Path) -> bool:
    """Whether paths that differ at most in case are one file: here, or (where there is none yet) on some system."""
    if target == _real(source):
        return True
    try:
        return target.samefile(source)
    except OSError:
        return False


def _check_writable(path: str, target: Path, place: Place) -> None:
    folder = next((above for above in target.parents if above.exists()), None)
    if folder is None:
        raise ResourceError(
            f"{path} cannot be made: there is no {target.anchor}", place=place, hint="choose another --output-root"
        )
    if not folder.is_dir():
        raise ResourceError(
            f"{path} cannot be made: {folder} is a file, not a folder", place=place, hint="give the output another path"
        )
    if not os.access(folder, os.W_OK):
        raise ResourceError(
            f"{path} cannot be made: the folder {folder} cannot be written to",
            place=place,
            hint="change its permissions, or choose another --output-root",
        )
