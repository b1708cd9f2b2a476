"""Methods from packages that are not mergeflow: where they come from, what stands for their code, how they are loaded.

A plugin's code is the Python files and extension modules of its package, the outermost one, since a formula may call
whatever lies beside it; a module without a package is its own file.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeflow.errors import MergeflowError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "mergeflow.methods"
_SUFFIXES = (".py", *EXTENSION_SUFFIXES)
_THEIRS = "it is that package's error: repair or remove it; --debug shows where it is"


def files_of(module: str) -> list[Path]:
    """The files that hold a module's code, with those of its package; none where it was typed in by hand."""
    package = sys.modules.get(module.partition(".")[0])
    folders = [Path(folder) for folder in getattr(package, "__path__", ())]
    if folders:
        return sorted(path for folder in folders for path in folder.rglob("*") if path.name.endswith(_SUFFIXES))
    file = getattr(sys.modules.get(module), "__file__", None)
    return [Path(file)] if file is not None and Path(file).is_file() else []


def digest_of(module: str) -> str | None:
    """What stands for a plugin's code, wherever it is installed. None where there is no file of it."""
    files = files_of(module)
    if not files:
        return None
    top = files[0].parent if len(files) == 1 else _above(files)
    found = hashlib.sha256()
    for path in files:
        code = path.read_bytes()
        found.update(f"{path.relative_to(top).as_posix()}\n{len(code)}\n".encode() + code)
    return found.hexdigest()


def _above(files: Sequence[Path]) -> Path:
    """The innermost folder that all files lie in."""
    return next(folder for folder in files[0].parents if all(folder in path.parents for path in files))


def entry_points() -> Mapping[str, Sequence[EntryPoint]]:
    """What installed packages offer, by name. More than one under a name is a clash, an error once it is used."""
    from importlib import metadata  # slow to import, and most recipes never come here

    found: dict[str, list[EntryPoint]] = {}
    for point in metadata.entry_points(group=GROUP):
        if point.value not in (known.value for known in found.get(point.name, ())):  # a folder may be on the path twice
            found.setdefault(point.name, []).append(point)
    return dict(sorted(found.items()))


def load(name: str, points: Sequence[EntryPoint]) -> Callable[..., Any]:
    """Import the function that a package offers as a method.

    Raises:
        MergeflowError: several offer it, or it cannot be imported.
    """
    if len(points) > 1:
        origins = " and ".join(origin(point) for point in points)
        raise MergeflowError(f"several packages have a method called {name}: {origins}", hint="remove one of them")
    (point,) = points
    try:
        function: Callable[..., Any] = point.load()
    except MergeflowError as error:
        raise MergeflowError(
            f"the method {name} of {origin(point)} is not declared rightly: {error.message}", hint=error.hint
        ) from error
    except Exception as error:
        raise MergeflowError(
            f"the method {name} of {origin(point)} cannot be loaded: {type(error).__name__}: {error}",
            hint=_THEIRS,
        ) from error
    return function


def origin(point: EntryPoint) -> str:
    """The package and its version."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value.partition(":")[0]


@contextmanager
def answerable(doing: str) -> Iterator[None]:
    """What goes wrong in a plugin's code is that package's error, and no bug of mergeflow's. `doing`: what it was
    called for, as "at tensor x".

    Raises:
        MergeflowError: instead of what a plugin raised.
    """
    try:
        yield
    except (MergeflowError, MemoryError):
        raise
    except Exception as error:
        import traceback

        tops = {point.module.partition(".")[0]: point for points in entry_points().values() for point in points}
        for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
            point = tops.get(str(frame.f_globals.get("__name__")).partition(".")[0])
            if point is not None:
                where = f"{Path(frame.f_code.co_filename).name}, line {line}"
                raise MergeflowError(
                    f"{origin(point)} fails {doing}: {type(error).__name__}: {error} ({where})", hint=_THEIRS
                ) from error
        raise
