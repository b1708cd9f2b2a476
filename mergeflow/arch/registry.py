"""The architectures there are, by name; each data file is read when it is first asked for.

A data file is checked as it is read, by hand: a validation library would cost more time than all files together.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mergeflow.arch.base import BUFFERS, Architecture
from mergeflow.errors import IntegrityError, UnknownName

DATA = Path(__file__).parent / "data"
PARTS = ("network", "layout", "text_encoder", "vae")  # what a rule may look at, from the surest to the weakest
ANY = -1


@dataclass(frozen=True, slots=True)
class Rule:
    """A sign by which a header shows its architecture: tensors it has, and tensors it must not have.

    In a shape, ANY stands for any size; no shape at all (None) for any shape.
    """

    part: str
    why: str
    has: tuple[tuple[str, tuple[int, ...] | None], ...]
    lacks: tuple[str, ...]

    def fits(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        there = all(tensor in shapes and _same(shapes[tensor], pattern) for tensor, pattern in self.has)
        return there and not any(tensor in shapes for tensor in self.lacks)


def names() -> tuple[str, ...]:
    """The architectures that a recipe may name, in alphabetical order."""
    return tuple(_files())


def get(name: str) -> Architecture:
    return load(name)[0]


@cache
def load(name: str) -> tuple[Architecture, tuple[Rule, ...]]:
    """An architecture and the rules that detect it."""
    path = _files().get(name)
    if path is None:
        raise UnknownName("architecture", name, names(), hint=f"known: {', '.join(names())}")
    try:
        return parse(name, tomllib.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, KeyError) as error:
        raise IntegrityError(f"{path} does not describe an architecture: {error}") from error


def parse(name: str, data: dict[str, Any]) -> tuple[Architecture, tuple[Rule, ...]]:
    """What a data file says. ValueError, TypeError or KeyError where it does not follow data/README.md."""
    _only(data, "title", "components", "groups", "buffers", "detect")
    components = {component: _texts(globs) for component, globs in data["components"].items()}
    groups = {group: _texts(members) for group, members in data.get("groups", {}).items()}
    for group, members in groups.items():
        if group in components or not components.keys() >= set(members):
            raise ValueError(f"group {group} shadows a component or names one that is not there")
    buffers = _texts(data.get("buffers", []))
    if bad := [b for b in buffers if "*" in b[1:]]:
        raise ValueError(f"a buffer is a whole name or * and an ending, not {bad[0]}")
    architecture = Architecture(name, data["title"], components, groups, BUFFERS + buffers)
    return architecture, tuple(_rule(rule) for rule in data["detect"])


def _rule(data: dict[str, Any]) -> Rule:
    _only(data, "part", "why", "has", "lacks")
    if data["part"] not in PARTS:
        raise ValueError(f"part is one of {', '.join(PARTS)}, not {data['part']}")
    has = tuple((tensor, None if shape == "*" else tuple(map(int, shape))) for tensor, shape in data["has"].items())
    if not has:
        raise ValueError("a rule without a tensor fits every file")
    return Rule(data["part"], data["why"], has, _texts(data.get("lacks", [])))


def _only(data: dict[str, Any], *known: str) -> None:
    if unknown := data.keys() - set(known):
        raise ValueError(f"{min(unknown)} means nothing here; known: {', '.join(known)}")


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise TypeError(f"expected a list of texts, not {value!r}")
    return tuple(value)


def _same(shape: tuple[int, ...], pattern: tuple[int, ...] | None) -> bool:
    if pattern is None:
        return True
    return len(shape) == len(pattern) and all(p in (ANY, n) for n, p in zip(shape, pattern, strict=True))


@cache
def _files() -> dict[str, Path]:
    return {path.stem: path for path in sorted(DATA.glob("*.toml"), key=lambda path: path.stem)}
