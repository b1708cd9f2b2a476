"""From the text of an expression to tokens: numbers as exact fractions, names in NFKC, operators in ASCII.

Full-width and typographic twins (× − （ ） 、 and the like) are replaced one character for one, so that every offset
stays the offset in the text as it was typed. What no token begins with is answered here, with the correction.
"""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

from mergeflow.errors import RecipeError
from mergeflow.recipe.places import Anchor

NUMBER, NAME, QUOTED, END = "number", "name", "quoted", "end"
COMPARISONS = frozenset({"==", "<", "<=", ">", ">="})
MAX_DIGITS = 40
MAX_EXPONENT = 400  # magnitudes from here on are refused

_TWINS = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}  # full-width ASCII
_TWINS |= {ord(k): ord(v) for k, v in {"×": "*", "−": "-", "–": "-", "÷": "/", "、": ",", "\u3000": " "}.items()}
_TOKEN = re.compile(
    r"""(?: \s++ | \#[^\n]*+ )*+ (?:
      ( \*\* | [=<>!]= | [-+*/@(),=<>\[\]] )
    | ( (?: [0-9]++ (?:\.[0-9]++)?+ | (?<!\w)\.[0-9]++ ) (?: [eE][-+]?+[0-9]++ )?+ (?! [\w.] | [^\x00-\x7f\s] ) )
    | ( (?: \w | [^\x00-\x7f\s] )++ )
    | ( '[^'\n]*+' | "[^"\n]*+" )
    | ( . )
    | \Z )""",
    re.VERBOSE | re.DOTALL,
)
_OPERATOR, _NUMBER, _NAME, _QUOTED = 1, 2, 3, 4  # the groups of _TOKEN; the fifth is a character that begins no token
_RUN = re.compile(r"[^\s()+*/,@=\[\]]+")  # what was probably meant as one name or number
_PRODUCT = re.compile(r"([0-9]+(?:\.[0-9]+)?)([^\W\d]\w*)")  # 0.5a
_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
_HEX = re.compile(r"0[xX][0-9a-fA-F]+")


class Token(NamedTuple):
    kind: str  # NUMBER, NAME, QUOTED, END, or the operator itself
    value: str | Fraction
    offset: int
    end: int


class Tokens:
    """The tokens of a text, in columns: a sum of 100,000 terms has twice as many."""

    __slots__ = ("ends", "kinds", "starts", "values")

    def __init__(self) -> None:
        self.kinds: list[str] = []
        self.values: list[str | Fraction] = []
        self.starts: list[int] = []
        self.ends: list[int] = []

    def __len__(self) -> int:
        return len(self.kinds)

    def __getitem__(self, at: int) -> Token:
        return Token(self.kinds[at], self.values[at], self.starts[at], self.ends[at])

    def append(self, kind: str, value: str | Fraction, start: int, end: int) -> None:
        self.kinds.append(kind)
        self.values.append(value)
        self.starts.append(start)
        self.ends.append(end)


def tokenize(text: str, anchor: Anchor) -> Tokens:
    """All tokens of `text`, the last one END."""
    plain = text if text.isascii() else text.translate(_TWINS)
    tokens = Tokens()
    kinds, values, starts, ends = tokens.kinds, tokens.values, tokens.starts, tokens.ends
    seen: dict[str, tuple[str, str | Fraction]] = {}  # numbers and names that were read before
    for match in _TOKEN.finditer(plain):
        group = match.lastindex
        if group is None:
            break
        start, end = match.span(group)
        typed = match[group]
        if group == _OPERATOR:
            kinds.append(typed)
            values.append(typed)
        elif group in (_NUMBER, _NAME):
            found = seen.get(typed)
            if found is None:
                if group == _NUMBER:
                    found = NUMBER, _number(typed, anchor, start)
                else:
                    found = NAME, _plain_name(typed, plain, start, anchor)
                seen[typed] = found
            kinds.append(found[0])
            values.append(found[1])
        elif group == _QUOTED:
            kinds.append(QUOTED)
            values.append(_quoted_name(text[start + 1 : end - 1], anchor, start))
        else:
            raise _stray(plain, start, tokens, anchor)
        starts.append(start)
        ends.append(end)
    tokens.append(END, "", len(text), len(text))
    return tokens


def normal_name(name: str) -> str:
    """The one spelling of a name: what looks alike is alike (NFKC)."""
    return name if name.isascii() else unicodedata.normalize("NFKC", name)


def is_plain_name(name: str) -> bool:
    """Whether `name` may stand in an expression without quotes."""
    return (
        bool(name)
        and all(_in_name(c) for c in name)
        and any(c.isalpha() for c in name)
        and not _HEX.fullmatch(name)
        and not re.fullmatch(r"[0-9]+[eE][0-9]+", name)
        and unicodedata.is_normalized("NFKC", name)
    )


def is_number(text: str) -> bool:
    """Whether `text` is one number as expressions write them, with or without a sign."""
    return bool(re.fullmatch(r"\s*[-+]?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?\s*", text))


def clip(text: str, width: int = 40) -> str:
    """`text` short enough for a message."""
    return text if len(text) <= width else text[: width - 1] + "…"


def _in_name(char: str) -> bool:
    return char.isalnum() or char == "_" or unicodedata.category(char)[0] == "M"


def _plain_name(typed: str, text: str, start: int, anchor: Anchor) -> str:
    if typed.isascii():
        if typed.isidentifier() and typed.strip("_0123456789"):
            return typed
    else:
        bad = next((i for i, c in enumerate(typed) if not _in_name(c)), None)
        if bad is not None:
            raise _stray_character(typed[bad], anchor, start + bad)
    name = normal_name(typed)
    if any(c.isalpha() for c in name) and not _HEX.fullmatch(name) and all(map(_in_name, name)):
        return name
    raise _not_a_number(_run(text, start), anchor, start)


def _quoted_name(inside: str, anchor: Anchor, start: int) -> str:
    name = normal_name(inside)
    if not name.strip():
        raise RecipeError("there is no name between these quotes", place=anchor.place(start))
    if not name.isprintable():
        raise RecipeError("a quoted name holds a character that cannot be printed", place=anchor.place(start))
    return name


def _number(typed: str, anchor: Anchor, start: int) -> Fraction:
    mantissa, _, power = typed.lower().partition("e")
    whole, _, part = mantissa.partition(".")
    if len(whole) + len(part) > MAX_DIGITS:
        message = f"a number has at most {MAX_DIGITS} digits, this one has {len(whole) + len(part)}"
        raise RecipeError(message, place=anchor.place(start))
    if len(power) > 8 or abs(int(power or 0)) >= MAX_EXPONENT:
        message = f"{clip(typed)} is out of range: the power of ten must stay below {MAX_EXPONENT}"
        raise RecipeError(message, place=anchor.place(start))
    exponent = int(power or 0) - len(part)
    digits = int(whole + part)
    return Fraction(digits * 10**exponent) if exponent >= 0 else Fraction(digits, 10**-exponent)


def _run(text: str, at: int) -> str:
    """The unbroken run of characters around `at`, so that a message can show it whole."""
    begin = max(0, at - 60)
    for match in _RUN.finditer(text, begin, at + 60):
        if match.end() > at:
            return match[0] if match.start() <= at else ""
    return ""


def _not_a_number(run: str, anchor: Anchor, at: int) -> RecipeError:
    place = anchor.place(at)
    if _HEX.fullmatch(run):
        return RecipeError(f"{clip(run)}: numbers are decimal", place=place, hint=_decimal_hint(run))
    if re.fullmatch(r"[0-9][0-9_.]*", run) and "_" in run:
        plain = run.replace("_", "")
        return RecipeError(f"{clip(run)}: digits are not grouped with _", place=place, hint=f"write {clip(plain)}")
    if re.fullmatch(r"[0-9]+\.", run):
        return RecipeError(f"{clip(run)} ends in a point", place=place, hint=f"write {clip(run)}0 or {clip(run[:-1])}")
    if "." in run and any(c.isalpha() for c in run):
        return _needs_quotes(run, place_anchor=anchor, at=at)
    return RecipeError(
        f"{clip(run)} is neither a number nor a name", place=place, hint="a number is written like 0.3, 12 or 1e-3"
    )


def _decimal_hint(run: str) -> str:
    return f"write {int(run, 16)}" if len(run) <= 12 else ""


def _needs_quotes(run: str, *, place_anchor: Anchor, at: int) -> RecipeError:
    name = clip(run.strip("'\""), 60)
    left, minus, right = name.partition("-")
    reads = f'{name} reads as "{left}" minus "{right}"' if minus and left and right else f"{name} is not a plain word"
    hint = f"if that is one name, quote it: '{name}'"
    if name.casefold().endswith(_FILES):
        hint = f"a file gets a name first, as a source; {hint}"
    elif product := _PRODUCT.fullmatch(name):
        hint = f"a product is written out: {product[1]} * {product[2]}; {hint}"
    return RecipeError(reads, place=place_anchor.place(at), hint=hint)


def _stray(text: str, at: int, before: Tokens, anchor: Anchor) -> RecipeError:
    """The answer to a character that begins no token."""
    char = text[at]
    last = before[-1] if len(before) else None
    if char == "%" and last and last.kind == NUMBER:
        typed = text[last.offset : last.end]
        share = format((Decimal(typed) / 100).normalize(), "f") if len(typed) <= MAX_DIGITS else "a decimal"
        return RecipeError(
            f"{clip(typed)}% is not a number here", place=anchor.place(last.offset), hint=f"write {share}"
        )
    if char == ".":
        run = _run(text, at)
        if last and last.kind == NAME and last.end == at:
            return _needs_quotes(run, place_anchor=anchor, at=_run_start(text, at))
        return _not_a_number(run, anchor, at)
    if char in "'\"":
        return RecipeError("this quote is not closed", place=anchor.place(at), hint=f"end the name with {char}")
    if char == ":" and (bracket := _open_bracket(before)) >= 0:
        return RecipeError(
            "layer slices like [0:16] are not in this version of mergeflow",
            place=anchor.place(bracket),
            hint="use a profile: a param with a number per block",
        )
    return _stray_character(char, anchor, at)


def _run_start(text: str, at: int) -> int:
    for match in _RUN.finditer(text, max(0, at - 60), at + 60):
        if match.end() > at:
            return match.start()
    return at


def _open_bracket(before: Tokens) -> int:
    """Where the innermost [ that is still open stands, or -1."""
    depth = 0
    for kind, start in zip(reversed(before.kinds), reversed(before.starts), strict=True):
        depth += (kind == "[") - (kind == "]")
        if depth > 0:
            return start
    return -1


_STRAY_HINTS = {
    "^": "there are no powers in expressions: write x * x",
    "{": "lists are written with [ ], weights with @: [a @ 0.5, b @ 0.5]",
    "}": "lists are written with [ ], weights with @: [a @ 0.5, b @ 0.5]",
    "%": "a share is written as a decimal: 0.3",
    ":": "arguments are given with =: weighted_sum(a, b, m=0.3)",
    ";": "arguments are separated by commas; an expression ends where its line does",
    "\\": "a path belongs in sources:, the expression uses the source's name",
    "·": "multiplication is written * or ×",
    "⋅": "multiplication is written * or ×",
    "∗": "multiplication is written * or ×",
    "•": "multiplication is written * or ×",
    "—": "minus is written -",
    "‐": "minus is written -",
    "‑": "minus is written -",
}
_STRAY_HINTS |= dict.fromkeys("“”„‟‘’‚«»「」『』", "names are quoted with straight quotes: 'a name'")


def _stray_character(char: str, anchor: Anchor, at: int) -> RecipeError:
    shown = char if char.isprintable() else f"U+{ord(char):04X}"
    hint = _STRAY_HINTS.get(char, "a name with other characters than letters, digits and _ is quoted: 'a name'")
    return RecipeError(f"{shown} means nothing in an expression", place=anchor.place(at), hint=hint)
