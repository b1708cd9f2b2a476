"""What a user calls components, by their digests: known.toml in the folder of the configuration.

    "b3:5f0c…" = "kl-f8-anime2"

Written by `mergeflow check --remember`, or by hand; read by `check`. Nothing that is built depends on it.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

from mergeflow.arch import config_folder
from mergeflow.digest import parse_digest
from mergeflow.errors import Place, RecipeError, ResourceError

COMPONENTS = ("vae", "clip_l", "clip_g", "clip_h", "t5")


def file() -> Path:
    return config_folder() / "known.toml"


def read() -> Mapping[str, str]:
    """Names by printable digest; empty where there is no file.

    Raises:
        RecipeError: the file is not what it should be.
        ResourceError: it cannot be read.
    """
    path = file()
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ResourceError(f"{path} cannot be read: {error}") from error
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"not TOML: {error}", place=Place(str(path))) from error
    for digest, name in table.items():
        if not isinstance(name, str) or not _is_digest(digest):
            raise RecipeError(
                f"{digest} is no digest with a name", place=Place(str(path)), hint='each line is "b3:…" = "a name"'
            )
    return table


def add(name: str, digests: Iterable[str]) -> Path:
    """Add lines for digests that have no name yet, and return the file. One that has another name keeps it.

    Raises:
        RecipeError: a digest has another name, this one is none, or the file is not what it should be.
        ResourceError: the file cannot be written.
    """
    if not name.strip() or not name.isprintable():
        raise RecipeError(f"{name!r} is no name: it is one line of text")
    known, path, lines = read(), file(), []
    for digest in dict.fromkeys(digests):
        other = known.get(digest)
        if other is not None and other != name:
            raise RecipeError(
                f"{digest[:19]}… is called {other} already", place=Place(str(path)), hint="edit that file"
            )
        if other is None:
            lines.append(f"{json.dumps(digest)} = {json.dumps(name, ensure_ascii=False)}\n")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as out:  # also where the last line of what is there has no end
            out.seek(max(0, out.tell() - 1))
            ended = out.read() in (b"", b"\n")
            out.write(("" if ended else "\n").encode() + "".join(lines).encode())
    except OSError as error:
        raise ResourceError(f"{path} cannot be written: {error.strerror or error}") from error
    return path


def _is_digest(text: str) -> bool:
    try:
        parse_digest(text)
    except ValueError:
        return False
    return True
