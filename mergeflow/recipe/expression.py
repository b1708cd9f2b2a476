"""Expressions as the rest of the recipe sees them: `lewd + (gape - nai) * 1.0` with its code and its place.

Nothing here knows what names mean: kinds, degrees and unknown names are found where expressions are resolved.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, cast

from mergeflow.errors import Place, RecipeError
from mergeflow.recipe.parser import Parser
from mergeflow.recipe.places import Anchor, Shifted, SourceText
from mergeflow.recipe.postfix import Call, Instr
from mergeflow.recipe.tokens import COMPARISONS, END, is_plain_name, tokenize

Relation = Literal["==", "<", "<=", ">", ">="]


@dataclass(frozen=True, slots=True)
class Expression:
    """An expression as typed, with its code. Equal when text and code are."""

    text: str
    code: tuple[Instr, ...]
    anchor: Anchor = field(repr=False, compare=False)

    def place(self, offset: int = 0) -> Place:
        """Where the character `offset` of the text stands in the recipe."""
        return self.anchor.place(offset)

    @property
    def names(self) -> tuple[str, ...]:
        """The names it refers to, each once, in order of appearance; not those of calls and keywords."""
        return tuple(dict.fromkeys(cast("str", i.value) for i in self.code if i.op == "name"))

    @property
    def is_number(self) -> bool:
        """Whether it is a single number, possibly negated."""
        return self.code[0].op == "number" and all(i.op == "neg" for i in self.code[1:])


@dataclass(frozen=True, slots=True)
class Comparison:
    """`left` and what it is compared with, in order: 0 <= m <= 1 has two entries in `rest`."""

    left: Expression
    rest: tuple[tuple[Relation, Expression], ...]

    def place(self) -> Place:
        return self.left.place(0)


def parse(text: str, anchor: Anchor | None = None) -> Expression:
    """Read an expression; RecipeError says where it stops being one."""
    anchor = anchor or SourceText("", text)
    return Expression(text, Parser(text, anchor, "top").parse(), anchor)


def parse_value(text: str, anchor: Anchor | None = None) -> Expression:
    """Read what may stand as an argument of a call: an expression, one with a weight (`x @ 0.5`), or a list."""
    anchor = anchor or SourceText("", text)
    return Expression(text, Parser(text, anchor, "value").parse(), anchor)


def parse_comparison(text: str, anchor: Anchor | None = None) -> Comparison:
    """Read `expr == expr`, `0 <= m <= 1` and the like."""
    anchor = anchor or SourceText("", text)
    operands: list[Expression] = []
    relations: list[Relation] = []
    depth = begin = 0
    tokens = tokenize(text, anchor)
    for token in map(tokens.__getitem__, range(len(tokens))):
        depth += (token.kind in ("(", "[")) - (token.kind in (")", "]"))
        if token.kind == END or (token.kind in COMPARISONS and depth <= 0):
            operands.append(_slice(text, begin, token.offset, anchor))
            begin = token.end
            if token.kind != END:
                relations.append(cast("Relation", token.kind))
        elif token.kind in ("=", "!=") and depth <= 0:
            hint = "write == for equal" if token.kind == "=" else "== < <= > >= are there"
            raise RecipeError(f"{token.kind} is not a comparison", place=anchor.place(token.offset), hint=hint)
    if not relations:
        raise RecipeError(
            "an assertion compares two expressions", place=anchor.place(0), hint="for example: final == a + b - c"
        )
    return Comparison(operands[0], tuple(zip(relations, operands[1:], strict=True)))


def spell(name: str) -> str:
    """How a name is written in an expression: as it is when it is a plain word, in quotes when not."""
    if is_plain_name(name):
        return name
    return f'"{name}"' if "'" in name else f"'{name}'"


def _slice(text: str, begin: int, end: int, anchor: Anchor) -> Expression:
    piece = text[begin:end]
    lead = len(piece) - len(piece.lstrip())
    return parse(piece.strip(), Shifted(anchor, begin + lead))


__all__ = ["Call", "Comparison", "Expression", "Instr", "Relation", "parse", "parse_comparison", "parse_value", "spell"]
