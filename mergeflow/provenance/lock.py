"""The lock of a recipe: which files its sources are, and what its outputs must be. `mix.yaml` has `mix.lock`.

A small sorted YAML file without local paths and times, so that it can be committed and reviewed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from mergeflow.digest import NUMERICS, shortened
from mergeflow.errors import IntegrityError, MissingInput, NotReproducible
from mergeflow.formats.parts import write_text_file

_ANEW = "restore it; or remove it, and `mergeflow lock` writes it anew"
_WRONG = {"extra_forbidden": "means nothing there", "missing": "is missing"}
_REFERENCE, _TWICE = _FOUND = ("a reference to another place", "a key that was there before")
_HEAD = "# The lock of a mergeflow recipe: digests of its sources and of what it makes. Written by `mergeflow lock`.\n"


class LockedSource(BaseModel):
    """`digest` is of the tensors, whatever the container, under the names that the recipe sees; `sha256` of the file,
    by which it is found elsewhere (a model in several files has none). `file` is what the recipe calls it, without its
    folders. `url` is the address in the recipe, `resolved` that of this very content where the site has one. The rest
    is for readers of a review."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    digest: str
    sha256: str | None = None
    size: int
    tensors: int
    dtypes: str | None = None
    architecture: str | None = None
    file: str | None = None
    url: str | None = None
    resolved: str | None = None


class LockedOutput(BaseModel):
    """`key` says what is to be computed, `digest` what came of it (None before the first build), `sha256` which file
    that is, where it is one."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    key: str
    digest: str | None = None
    sha256: str | None = None


class Lock(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    lock: int = 1
    numerics: int = NUMERICS
    sources: dict[str, LockedSource] = {}
    outputs: dict[str, LockedOutput] = {}


class _Loader(yaml.SafeLoader):
    """Without what no lock has and a hostile one would: references, of which a few lines make more than memory holds;
    and keys that are there twice, of which YAML takes the later without a word."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, _REFERENCE, mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, _TWICE, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def lock_path(recipe: Path) -> Path:
    return recipe.with_suffix(".lock")


def dump(lock: Lock) -> str:
    document = lock.model_dump(exclude_none=True)
    return _HEAD + yaml.safe_dump(document, sort_keys=True, allow_unicode=True, width=120)


def write(lock: Lock, path: Path) -> None:
    write_text_file(path, dump(lock))


def read(path: Path) -> Lock:
    """Raises MissingInput when there is none, IntegrityError when it is not a lock of this version."""
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506  # a safe one
    except FileNotFoundError:
        raise MissingInput(f"{path}: there is no lock", hint="`mergeflow lock` writes it") from None
    except OSError as error:
        raise IntegrityError(f"{path}: cannot be read: {error.strerror or error}", hint=_ANEW) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = f"line {mark.line + 1}" if mark is not None else "it"
        found = getattr(error, "problem", None)
        why = f"has {found}" if found in _FOUND else "is not YAML"
        raise IntegrityError(f"{path}: not a lock: {what} {why}", hint=_ANEW) from None
    except (ValueError, RecursionError):  # no text; or numbers and dates that are none
        raise IntegrityError(f"{path}: not a lock: it is not text that could be one", hint=_ANEW) from None
    if not isinstance(document, dict):
        raise IntegrityError(f"{path}: not a lock: it has no keys", hint=_ANEW)
    version = document.get("lock", 1)
    if version != 1:
        raise IntegrityError(
            f"{path}: a lock of version {str(version)[:20]}, this mergeflow reads version 1",
            hint="a newer mergeflow reads it",
        )
    try:
        lock = Lock.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])[:80]
        what = _WRONG.get(first["type"], "has no valid value")
        raise IntegrityError(f"{path}: not a lock: {where} {what}", hint=_ANEW) from None
    return lock


def drift(lock: Lock, sources: Mapping[str, str], keys: Mapping[str, str]) -> list[str]:
    """What no longer is as locked, a line each. `sources`: name → model digest; `keys`: output → file key."""
    lines = []
    if lock.numerics != NUMERICS:
        lines.append(f"the lock is of numerics version {lock.numerics}, this mergeflow has {NUMERICS}")
    for name, digest in sorted(sources.items()):
        locked = lock.sources.get(name)
        if locked is None:
            lines.append(f"source {name} is not in the lock")
        elif locked.digest != digest:
            lines.append(f"source {name} is {shortened(digest)}, the lock says {shortened(locked.digest)}")
    for path, key in sorted(keys.items()):
        output = lock.outputs.get(path)
        if output is None:
            lines.append(f"output {path} is not in the lock")
        elif output.key != key and not lines:
            lines.append(f"output {path} would be something else: its recipe has changed since it was locked")
    return lines


def check_result(lock: Lock, path: str, digest: str) -> None:
    """Raises NotReproducible when an output is not what the lock says it must be."""
    locked = lock.outputs.get(path)
    if locked is not None and locked.digest is not None and locked.digest != digest:
        raise NotReproducible(
            f"{path}: the result is {shortened(digest)}, the lock says {shortened(locked.digest)}",
            hint="the same inputs gave other bytes: please report this with both machines' details",
        )
