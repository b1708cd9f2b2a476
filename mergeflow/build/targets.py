"""Where outputs go: under the output root, never onto an input, never onto each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from mergeflow.errors import RecipeError, ResourceError, UnknownName
from mergeflow.plan.bind import Bound


def choose(bound: Bound, wanted: Iterable[str]) -> list[str]:
    """The outputs to make: those named (by path, or by file name where that is enough), or all."""
    names = list(wanted)
    if not bound.outputs:
        raise RecipeError("the recipe has no outputs", hint="add outputs: { mix.safetensors: a + (b - c) * 0.3 }")
    if not names:
        return list(bound.outputs)
    chosen = []
    for name in names:
        matches = [p for p in bound.outputs if name in (p, p.rsplit("/", 1)[-1])]
        if len(matches) != 1:
            raise UnknownName("output", name, bound.outputs)
        chosen += matches
    return chosen


def targets(bound: Bound, outputs: Iterable[str], root: Path, inputs: Mapping[str, Path]) -> dict[str, Path]:
    """The file of each output.

    Raises:
        RecipeError: outside the root, equal to an input, or to another output.
        ResourceError: the folder cannot be written to.
    """
    base = root.resolve()
    taken = {path.resolve(): name for name, path in inputs.items()}
    result: dict[str, Path] = {}
    used: dict[str, str] = {}
    for path in outputs:
        place = bound.outputs[path][1].place
        target = root / path
        real = target.resolve()
        if not real.is_relative_to(base):
            raise RecipeError(
                f"{path} would be written outside {base}",
                place=place,
                hint="outputs stay under the output root; --output-root FOLDER moves it",
            )
        if real in taken:
            raise RecipeError(f"{path} is also the source {taken[real]}: it would overwrite its own input", place=place)
        folded = str(real).casefold()  # two names that differ in case are one file on Windows and macOS
        if folded in used:
            raise RecipeError(f"{path} and {used[folded]} are the same file", place=place)
        used[folded] = path
        if real.is_dir():
            raise ResourceError(f"{target}: is a folder")
        _check_writable(real)
        result[path] = real
    return result


def _check_writable(target: Path) -> None:
    import os

    folder = target.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise ResourceError(f"{target}: {folder} is not a folder")
    if not os.access(folder, os.W_OK):
        raise ResourceError(f"{target}: the folder {folder} cannot be written to")
