"""A recipe in the making: what an importer has understood so far, and what it had to leave out or change."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import PurePosixPath
from typing import NamedTuple

from mergeflow.methods.registry import built_in
from mergeflow.recipe.command import quote
from mergeflow.recipe.tokens import is_plain_name

Locate = Callable[[str], str]  # a file as typed where the foreign recipe is run -> as seen from the recipe of ours
Value = str | Mapping[str, "Value"] | Sequence["Value"]
_TAKEN = frozenset({"true", "false", "expr", "method", "round", "keep", "like", "replace", "note"})
_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
_UNPRINTABLE = re.compile("[^\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_FLOW = 90  # characters of a mapping that stays on one line
MOST_DIGITS = 40  # of a number in a recipe


class Imported(NamedTuple):
    """A recipe's text, what it was made from in words, and a line for everything that was lost or approximated."""

    text: str
    origin: str
    losses: tuple[str, ...]


class Draft:
    """Sources, params, steps and outputs in order, under names that are plain words and used once."""

    def __init__(self, origin: str, locate: Locate = lambda path: path) -> None:
        self.origin, self.locate = origin, locate
        self.top: dict[str, Value] = {}  # name:, description:, …
        self.sources: dict[str, Value] = {}
        self.params: dict[str, Value] = {}
        self.steps: dict[str, Value] = {}
        self.outputs: dict[str, Value] = {}
        self.options: dict[str, Value] = {}
        self._losses: dict[str, None] = {}
        self._known: dict[str, str] = {}  # a source's identity -> its name

    def lose(self, what: str) -> None:
        """One line about what the recipe has not, or has otherwise; said once."""
        self._losses.setdefault(one_line(what))

    def fresh(self, wish: str) -> str:
        """A name that nothing here has yet, as near to the wish as a plain word can be."""
        base = re.sub(r"\W+", "_", wish).strip("_")[:60] or "model"
        base = base if is_plain_name(base) and base not in _TAKEN and base not in built_in() else f"m_{base}"
        name, n = base, 2
        while name in self.sources or name in self.params or name in self.steps:
            name, n = f"{base}_{n}", n + 1
        return name

    def source(self, identity: str, wish: str, value: Value) -> str:
        """The name of a source; one that was given before keeps its first name."""
        if identity not in self._known:
            name = self._known[identity] = self.fresh(wish)
            self.sources[name] = value
        return self._known[identity]

    def file(self, path: str) -> str:
        """A source that is known by its path."""
        return self.source(path, stem(path), self.locate(path))

    def param(self, wish: str, value: Value) -> str:
        """The name of a param with this value; equal ones are one."""
        for name, known in self.params.items():
            if known == value:
                return name
        name = self.fresh(wish)
        self.params[name] = value
        return name

    def step(self, wish: str, value: Value) -> str:
        name = self.fresh(wish)
        self.steps[name] = value
        return name

    def output(self, path: str, value: Value) -> str:
        """The path of an output: under the output root, ending in what can be written, used once."""
        where = PurePosixPath(one_line(path).replace("\\", "/")).name or "merged"
        if not where.lower().endswith(_SUFFIXES):
            where += ".safetensors"
        base, dot, suffix = where.rpartition(".")
        where, n = escape_template(where), 2
        while where.casefold() in {known.casefold() for known in self.outputs}:
            where, n = escape_template(f"{base}-{n}{dot}{suffix}"), n + 1
        self.outputs[where] = value
        return where

    def finish(self) -> Imported:
        lines = [f"# From {one_line(self.origin)}."]
        lines += [f"# Not as there: {loss}" for loss in self._losses]
        lines.append("mergeflow: 1")
        document: dict[str, Value] = {**self.top}
        sections = ("sources", "params", "steps", "outputs", "options")
        document |= {key: getattr(self, key) for key in sections if getattr(self, key)}
        for key, value in document.items():
            lines += _entry(key, value, 0)
        return Imported("\n".join(lines) + "\n", self.origin, tuple(self._losses))


def one_line(text: str) -> str:
    """Text as one line that YAML and terminals take."""
    return _UNPRINTABLE.sub(" ", text).strip()


def stem(path: str) -> str:
    """A file's name without folders and the suffix of a model file."""
    name = PurePosixPath(path.replace("\\", "/")).name
    lower = name.lower()
    return next((name[: -len(s)] for s in _SUFFIXES if lower.endswith(s)), name)


def escape_template(path: str) -> str:
    return path.replace("{", "{{").replace("}", "}}")


def spelled(value: Fraction) -> str:
    """A number as the language reads it back exactly; as a quotient where no decimal is exact."""
    n, d = abs(value.numerator), value.denominator
    twos = (d & -d).bit_length() - 1
    fives, rest = 0, d >> twos
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    digits = max(twos, fives)
    sign = "-" if value < 0 else ""
    whole = str(n * 10**digits // d) if rest == 1 else ""
    if rest != 1 or len(whole) > MOST_DIGITS or digits > MOST_DIGITS:
        return f"({sign}{n}/{d})" if d != 1 else f"{sign}{n}"
    whole = whole.rjust(digits + 1, "0")
    return sign + (f"{whole[:-digits]}.{whole[-digits:]}" if digits else whole)


def _scalar(text: str) -> str:
    if "\n" in text or _UNPRINTABLE.search(text):
        kept = "\n".join(one_line(line) for line in text.splitlines())
        return json.dumps(kept, ensure_ascii=False)
    return quote(text)


def _flow(value: Value) -> str:
    if isinstance(value, str):
        return _scalar(value)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{quote(key)}: {_flow(inner)}" for key, inner in value.items()) + " }"
    return "[" + ", ".join(map(_flow, value)) + "]"


def _entry(key: str, value: Value, depth: int) -> list[str]:
    """A key and its value, on one line where that is short; sections of the recipe never are."""
    indent = "  " * depth
    head = f"{indent}{quote(key)}:"
    if isinstance(value, str):
        return [f"{head} {_scalar(value)}"]
    flow = _flow(value)
    if isinstance(value, Mapping) and (depth == 0 or len(head) + len(flow) > _FLOW) and value:
        lines = [head]
        for name, inner in value.items():
            lines += _entry(name, inner, depth + 1)
        return lines
    return [f"{head} {flow}"]
