"""A recipe's text as it may be passed on: without the folders of the machine that it was written on.

Paths that begin at the root, at a drive or at a home folder name people and machines, and nobody else has them. Where a
recipe has such paths, their file names are left of them in every text that leaves with a result.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

import yaml

from mergeflow.recipe.model import Recipe, Source

_ROOTED = re.compile(r"^(?:[/\\~]|[A-Za-z]:[\\/]|file:)")
_BUILT_WITH = "# built with "


def file_name(path: str) -> str:
    """The last part of a path of any system."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def is_rooted(path: str) -> bool:
    return _ROOTED.match(path) is not None


def shared_text(recipe: Recipe) -> str:
    rooted = {path for path in _paths(recipe) if is_rooted(path)}
    return _cut_down(recipe.text, tuple(sorted(rooted, key=lambda path: (-len(path), path)))) if rooted else recipe.text


@lru_cache(maxsize=8)  # each output of a recipe asks for it
def _cut_down(text: str, paths: Sequence[str]) -> str:
    """The text with the file names of these paths in their place, wherever and however it has them."""
    for path in paths:
        for written in dict.fromkeys((path, path.replace("'", "''"), path.replace("\\", "\\\\"))):  # as YAML has it
            text = text.replace(written, file_name(path))
    scalars = [token for token in yaml.scan(text) if isinstance(token, yaml.ScalarToken)]
    for scalar in reversed(scalars):  # with other escapes, or over several lines
        value = scalar.value
        for path in paths:
            value = value.replace(path, file_name(path))
        if value != scalar.value:
            start, end = scalar.start_mark.index, scalar.end_mark.index
            quoted = "'" + value.replace("'", "''") + "'" + "\n" * text[start:end].endswith("\n")
            text = text[:start] + quoted + text[end:]
    return text


def text_with_overrides(recipe: Recipe) -> str:
    """The text, below a comment for each thing that the command line changed: enough to build the same again."""
    lines = "".join(f"{_BUILT_WITH}{' '.join(line.splitlines())}\n" for line in shared_overrides(recipe))
    return f"{lines}{shared_text(recipe)}"


def without_overrides(text: str) -> tuple[str, dict[str, str]]:
    """Such a text without those comments, and what they say, by name."""
    found: dict[str, str] = {}
    while text.startswith(_BUILT_WITH):
        line, _, text = text.partition("\n")
        name, _, value = line.removeprefix(_BUILT_WITH).partition("=")
        found[name] = value
    return text, found


def shared_overrides(recipe: Recipe) -> list[str]:
    """What the command line changed, one `name=value` each; of files that it gave, only their names."""
    lines = []
    for line in recipe.overrides:
        name, _, value = line.partition("=")
        lines.append(f"{name}={file_name(value)}" if name in recipe.sources else line)
    return lines


def _paths(recipe: Recipe) -> Iterator[str]:
    yield from (*recipe.include, *recipe.outputs, recipe.arch or "")
    stack: list[Source] = [*recipe.sources.values(), *recipe.replaced]
    while stack:
        source = stack.pop()
        stack += source.many
        yield from (path for path in (source.path, source.recipe, source.arch) if path)
