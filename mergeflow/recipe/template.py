"""Names of outputs: paths below the output root, in which `{s}` stands for the value of the sweep s.

    build/mix-{s}.safetensors      build/{x}/mix-{s:.2f}.safetensors      {{ and }} are { and }

`{s:.2f}` has two decimals, `{s:05.2f}` leading zeros up to five characters. These few forms are read here, by hand:
a recipe is anybody's text, and str.format would let it look into objects.
"""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

from mergeflow.errors import RecipeError
from mergeflow.recipe import later, nodes
from mergeflow.recipe.fields import path_text
from mergeflow.recipe.outputs import SUFFIXES, unsuitable
from mergeflow.recipe.places import Anchor, SourceText
from mergeflow.recipe.tokens import clip, normal_name

MAX_STEM = 220  # file names end at 255 bytes, and what is beside an output adds up to 27
_PIECE = re.compile(r"(\{\{|\}\})|\{([^{}]*)\}|([{}])|([^{}]+)")
_FORMAT = re.compile(r"(?:0([1-9][0-9]?))?\.([0-9]{1,2})f")
_IN_TEXT = re.compile(r"\{([^{}:]+)(?::([^{}]*))?\}")
_NOT_IN_NAMES = frozenset('<>:"/\\|?*')

Fail = Callable[[str, str], RecipeError]


class Format(NamedTuple):
    """How a number is written: with `decimals`, padded with zeros to `width` characters."""

    width: int
    decimals: int

    def text(self, value: Fraction) -> str:
        """The nearest such decimal; of two equally near the one whose last digit is even."""
        digits = str(abs(rounded := round(value * 10**self.decimals))).rjust(self.decimals + 1, "0")
        sign = "-" if rounded < 0 else ""
        whole = len(digits) - self.decimals
        text = f"{digits[:whole]}.{digits[whole:]}" if self.decimals else digits
        return sign + text.rjust(self.width - len(sign), "0")


class Placeholder(NamedTuple):
    """`{name}` or `{name:format}`, `offset` characters into the text."""

    name: str
    format: Format | None
    offset: int


@dataclass(frozen=True, slots=True)
class Template:
    """A name with placeholders, as typed and in pieces."""

    text: str
    pieces: tuple[str | Placeholder, ...]
    anchor: Anchor = field(default=SourceText("", ""), repr=False, compare=False)

    @property
    def placeholders(self) -> tuple[Placeholder, ...]:
        return tuple(piece for piece in self.pieces if isinstance(piece, Placeholder))

    def filled(self, show: Callable[[Placeholder], str]) -> str:
        return "".join(piece if isinstance(piece, str) else show(piece) for piece in self.pieces)


def read_template(key: nodes.Scalar) -> Template:
    """The name of an output, as the key of its entry; it stays below the folder that it is taken from."""
    text = path_text(key, "the path of an output")
    template = Template(text, tuple(_pieces(text, key)), key)
    check_path(template.filled(lambda _: "0"), key.error)
    return template


def _pieces(text: str, key: nodes.Scalar) -> list[str | Placeholder]:
    found: list[str | Placeholder] = []
    for match in _PIECE.finditer(text):
        doubled, inside, single, plain = match.groups()
        if single:
            raise RecipeError(
                f"this {single} has no partner" if single == "{" else "this } closes nothing",
                place=key.place(match.start()),
                hint="{s} stands for the value of the sweep s; {{ and }} are the characters themselves",
            )
        if inside is None:
            found.append(doubled[0] if doubled else plain)
            continue
        name, colon, spec = inside.partition(":")
        if not name.strip():
            message = "there is no name between these braces"
            raise RecipeError(message, place=key.place(match.start()), hint="{s} stands for the value of the sweep s")
        form = read_format(spec) if colon else None
        if colon and form is None:
            raise RecipeError(
                f"{{{clip(inside)}}}: {clip(spec) or 'nothing'} is no way to write a number",
                place=key.place(match.start()),
                hint=f"{{{name}:.2f}} has two decimals, {{{name}:05.2f}} leading zeros to five characters",
            )
        found.append(Placeholder(normal_name(name.strip()), form, match.start()))
    return found


def read_format(spec: str) -> Format | None:
    """`.2f` or `05.2f`; None for anything else."""
    match = _FORMAT.fullmatch(spec)
    return Format(int(match[1] or 0), int(match[2])) if match else None


def fill_text(text: str, sweeps: Container[str], show: Callable[[Placeholder], str]) -> str:
    """Free text with the values of sweeps in it. Other braces stay: prompts and JSON are full of them."""

    def value(match: re.Match[str]) -> str:
        name, spec = normal_name(match[1].strip()), match[2]
        form = read_format(spec) if spec is not None else None
        if name not in sweeps or (spec is not None and form is None):
            return match[0]
        return show(Placeholder(name, form, match.start()))

    return _IN_TEXT.sub(value, text)


def unfit_for_a_name(text: str) -> str:
    """What keeps a text out of file names: a character that some system has no place for; '' when nothing does."""
    bad = next((c for c in text if c in _NOT_IN_NAMES or not c.isprintable()), "")
    return bad if bad.isprintable() else f"U+{ord(bad):04X}"


def check_path(path: str, fail: Fail) -> None:
    """Refuse what is no path of a model file below the output root. `fail` makes the error."""
    if path.endswith("/"):
        raise fail(
            later.not_yet("an output that is a folder"),
            f"name a file: {clip(path)}model.safetensors; with shard_size: it becomes several",
        )
    if ".." in path.replace("\\", "/").split("/"):
        raise fail("an output path has no ..", "paths are taken from the output root (--output-root)")
    stem, suffix = posixpath.splitext(posixpath.basename(path.replace("\\", "/")))
    if suffix.lower() not in SUFFIXES:
        raise fail(*unsuitable(stem, suffix))
    if len(stem.encode()) > MAX_STEM:
        raise fail(f"the name of an output has at most {MAX_STEM} bytes before {suffix}", "")


def same_output(path: str) -> str:
    """What two paths share that are one file on some system."""
    return unicodedata.normalize("NFC", posixpath.normpath(path.replace("\\", "/"))).casefold()
