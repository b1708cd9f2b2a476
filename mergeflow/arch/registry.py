"""The architectures there are, by name; each data file is read when it is first asked for.

Ours are in data/. A user's own are `NAME.toml` in the folder `architectures` of the user's configuration, and what
MERGEFLOW_ARCH lists (files and folders, parted as in PATH). They can add to ours and not change them: nobody's sd1 is
another than everybody's. And a recipe may name a file of its own, `arch: ./mine.toml`; it is data, and nothing in it is
executed.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from mergeflow.arch.base import Architecture
from mergeflow.arch.definition import DefinitionError, Rule, parse
from mergeflow.arch.fields import locate
from mergeflow.errors import IntegrityError, MissingInput, Place, RecipeError, UnknownName

DATA = Path(__file__).parent / "data"
VARIABLE = "MERGEFLOW_ARCH"
CONFIG_VARIABLE = "MERGEFLOW_CONFIG"
SUFFIX = ".toml"
LARGEST = 1 << 20  # bytes: ours have 4,000
_HINT = "docs/architectures.md says what such a file holds"


def names() -> tuple[str, ...]:
    """The architectures that are part of mergeflow, in alphabetical order."""
    return tuple(_ours())


def user_names() -> tuple[str, ...]:
    """Those that the user of this machine has added.

    Raises:
        RecipeError: two of them, or one of them and one of ours, have one name.
    """
    return tuple(user_files())


def get(name: str) -> Architecture:
    return load(name)[0]


def find(name_or_path: str) -> Architecture:
    """What a recipe's `arch:` says: by name, or by the path of a file (whatever ends in .toml).

    Raises:
        UnknownName, MissingInput, RecipeError: see `load` and `load_file`.
    """
    return load_file(name_or_path) if is_path(name_or_path) else get(name_or_path)


def is_path(name: str) -> bool:
    return name.endswith(SUFFIX)


def is_ours(name: str) -> bool:
    return name in _ours()


def load(name: str) -> tuple[Architecture, tuple[Rule, ...]]:
    """An architecture and the rules that detect it.

    Raises:
        UnknownName: there is none of this name.
        RecipeError: it is a user's, and its file does not follow the format.
    """
    if name in _ours():
        return _load_ours(name)
    path = user_files().get(name)
    if path is None:
        known = (*names(), *user_names())
        raise UnknownName("architecture", name, known, hint=f"known: {', '.join(known)}")
    return read(path)


def load_file(path: Path | str) -> Architecture:
    """An architecture of the user's own, called what its file is called. It is not detected, but named by recipes.

    Raises:
        MissingInput: there is no such file.
        RecipeError: it does not follow data/README.md; the message names the field, and the line where there is one.
    """
    return read(Path(path))[0]


def read(path: Path) -> tuple[Architecture, tuple[Rule, ...]]:
    """As load_file, with the rules that detect it."""
    place = Place(str(path))
    if is_ours(path.stem):
        raise RecipeError(f"there is an architecture called {path.stem} already", place=place, hint="rename the file")
    text = _text(path, place)
    try:
        return parse(path.stem, _tables(text))
    except tomllib.TOMLDecodeError as error:
        at = re.search(r"line ([0-9]+), column ([0-9]+)", str(error))
        if at:
            place = Place(str(path), int(at[1]), int(at[2]))
        raise RecipeError(f"not TOML: {error}", place=place, hint=_HINT) from error
    except DefinitionError as error:
        place = Place(str(path), *locate(text, error.field))
        raise RecipeError(str(error), place=place, hint=_HINT) from error


def user_files() -> Mapping[str, Path]:
    """The user's own, by name.

    Raises:
        RecipeError: two have one name.
    """
    found: dict[str, Path] = {}
    usual, *others = user_places()
    listed = [path for place in others for path in (_in_folder(place) if place.is_dir() else [place])]
    for path in (*_in_folder(usual), *listed):
        other = found.setdefault(path.stem, path)
        if not (path == other or (path.exists() and other.exists() and path.samefile(other))):
            raise RecipeError(
                f"two architectures are called {path.stem}: {other} and {path}",
                hint=f"rename one, or leave it out of {VARIABLE}",
            )
    return dict(sorted(found.items()))


def _in_folder(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{SUFFIX}")) if folder.is_dir() else []


def user_digest() -> str:
    """Of all files of the user's: what is remembered of a header holds as long as they are what they were."""
    from mergeflow.digest import hash_bytes

    there = {name: path for name, path in user_files().items() if path.is_file()}
    texts = [f"{name} {hash_bytes(path.read_bytes()).hex()}\n" for name, path in there.items()]
    return hash_bytes("".join(texts).encode()).hex() if texts else ""


def config_folder() -> Path:
    """Where the user's own data files are: MERGEFLOW_CONFIG, or the user's configuration folder."""
    if chosen := os.environ.get(CONFIG_VARIABLE):
        return Path(chosen)
    import platformdirs

    return Path(platformdirs.user_config_dir("mergeflow", appauthor=False))


def user_places() -> tuple[Path, ...]:
    """Where a user's own may be, there or not: the folder of the configuration, and what MERGEFLOW_ARCH lists."""
    listed = os.environ.get(VARIABLE, "").split(os.pathsep)
    return (config_folder() / "architectures", *(Path(entry) for entry in listed if entry))


@cache
def _load_ours(name: str) -> tuple[Architecture, tuple[Rule, ...]]:
    path = _ours()[name]
    try:
        return parse(name, tomllib.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise IntegrityError(f"{path} does not describe an architecture: {error}") from error


@cache
def _ours() -> Mapping[str, Path]:
    return {path.stem: path for path in sorted(DATA.glob(f"*{SUFFIX}"), key=lambda path: path.stem)}


def _text(path: Path, place: Place) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
        raise MissingInput(f"{path}: {reason}") from error
    if len(data) > LARGEST:
        raise RecipeError("the file is larger than 1 MB, too large for an architecture", place=place)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RecipeError(f"not UTF-8: byte {data[error.start]:#04x}", place=Place(str(path), line, 1)) from error


def _tables(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise DefinitionError("title", "tables are nested far deeper than any of the format") from None
