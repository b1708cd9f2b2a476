"""The grammar of expressions, read with a stack of its own into postfix code.

    expr   = term { ("+" | "-") term }          term = factor { ("*" | "/") factor }
    factor = ("-" | "+") factor | atom          atom = NUMBER | NAME | QUOTED | call | "(" expr ")"
    call   = NAME "(" [ arg { "," arg } [","] ] ")"          arg = [ NAME "=" ] value
    value  = expr [ "@" factor ] | "[" [ value { "," value } [","] ] "]"

Nesting is bounded by memory only, and a chain of sums is one instruction. What does not fit the grammar is answered
with the place and, where it can be guessed, the correction.
"""

from __future__ import annotations

from typing import cast

from mergeflow.errors import RecipeError
from mergeflow.recipe.places import Anchor
from mergeflow.recipe.postfix import Call, Instr, Op, Operand
from mergeflow.recipe.tokens import COMPARISONS, END, NAME, NUMBER, QUOTED, Token, clip, tokenize

_COMPARES = (
    "{} compares, which only a line of assert: does, and outside of brackets",
    "for example assert: [final == a + b - c]",
)
_NO_OPERATOR = {kind: (_COMPARES[0].format(kind), _COMPARES[1]) for kind in (*sorted(COMPARISONS), "!=")}
_NO_OPERATOR["**"] = ("there are no powers in expressions", "write x * x")
_SPELT_OUT = {"and": "+", "plus": "+", "minus": "-", "times": "*", "over": "/", "of": "*"}
_NO_OPERATOR["="] = ("= gives an argument of a call its value", "for example weighted_sum(a, b, m=0.3)")


class _Frame:
    """An open bracket (or the whole text): the chain of terms read so far at its level."""

    __slots__ = (
        "done", "keyword", "keywords", "kind", "name", "neg", "neg_at", "offset", "op", "op_at", "positional", "signs",
        "sum_at", "weight_at",
    )  # fmt: skip

    def __init__(self, kind: str, offset: int, name: str = "") -> None:
        self.kind = kind  # top, value, paren, call, list
        self.offset = offset
        self.name = name  # of a call
        self.positional = 0  # arguments or items so far
        self.keywords: list[str] = []
        self.keyword = False  # the value being read is a keyword's
        self.begin_value()

    def begin_value(self) -> None:
        self.signs: list[int] = []
        self.sum_at = 0
        self.op: Op | None = None  # a mul or div that waits for its right side
        self.op_at = 0
        self.neg = False
        self.neg_at = -1  # -1: no sign was typed
        self.weight_at = -1  # where @ stands, while its weight is read
        self.done = False  # after a weight or a list only a comma or the bracket's end may follow

    @property
    def fresh(self) -> bool:
        """Nothing of the current value has been read."""
        return not self.signs and not self.waits

    @property
    def waits(self) -> bool:
        """Something waits for the factor that is being read."""
        return self.op is not None or self.neg_at >= 0 or self.weight_at >= 0

    @property
    def takes_values(self) -> bool:
        return self.kind in ("call", "list", "value")


class Parser:
    def __init__(self, text: str, anchor: Anchor, kind: str) -> None:
        self.text = text
        self.anchor = anchor
        self.tokens = tokenize(text, anchor)
        self.code: list[Instr] = []
        self.frames: list[_Frame] = []
        self.frame = _Frame(kind, 0)

    def parse(self) -> tuple[Instr, ...]:
        kinds, starts = self.tokens.kinds, self.tokens.starts
        if kinds[0] == END:
            raise self.error("the expression is empty", 0)
        at, wants_operand = 0, True
        while True:
            kind, frame = kinds[at], self.frame
            if wants_operand:
                at, wants_operand = self.operand(at, kind)
            elif kind == END:
                break
            elif kind in ("+", "-") and not frame.done:
                if not frame.signs:
                    frame.signs.append(1)
                    frame.sum_at = starts[at]
                frame.signs.append(1 if kind == "+" else -1)
                at, wants_operand = at + 1, True
            elif kind in ("*", "/") and not frame.done:
                frame.op = "mul" if kind == "*" else "div"
                frame.op_at = starts[at]
                at, wants_operand = at + 1, True
            else:
                wants_operand = self.operator(at)
                at += 1
        if self.frames:
            raise self.error("this bracket is not closed", self.frame.offset)
        self.finish_value(len(self.text))
        return tuple(self.code)

    def operand(self, at: int, kind: str) -> tuple[int, bool]:
        """Read from token `at` where an operand may begin: the next token's index, and whether one is still wanted."""
        start, frame = self.tokens.starts[at], self.frame
        if kind == NAME and self.tokens.kinds[at + 1] in ("(", "="):
            opened = self.call_or_keyword(at)
            if opened:
                return at + 2, True
        if kind in (NAME, NUMBER, QUOTED):
            value = self.tokens.values[at]
            self.code.append(Instr("number" if kind == NUMBER else "name", value, start))
            if frame.waits:
                self.finish_factor()
            return at + 1, False
        if kind == "(":
            self.open(_Frame("paren", start))
        elif kind in ("-", "+"):
            frame.neg ^= kind == "-"
            frame.neg_at = start if frame.neg_at < 0 else frame.neg_at
        elif kind == "[" and frame.takes_values and frame.fresh:
            self.open(_Frame("list", start))
        elif kind in (")", "]") and frame.kind in ("call", "list") and frame.fresh and not frame.keyword:
            self.close(self.tokens[at], after_value=False)
            return at + 1, False
        else:
            raise self.no_operand(at, self.tokens[at])
        return at + 1, True

    def call_or_keyword(self, at: int) -> bool:
        """Whether the name at `at` begins a call, or an argument with a name; both take the next token too."""
        token, after, frame = self.tokens[at], self.tokens[at + 1], self.frame
        if after.kind == "(":
            if after.offset == token.end:
                self.open(_Frame("call", token.offset, cast("str", token.value)))
            return after.offset == token.end
        if frame.kind != "call" or not frame.fresh or frame.keyword:
            return False
        if token.value in frame.keywords:
            raise self.error(f"{token.value} is given twice", token.offset)
        frame.keywords.append(cast("str", token.value))
        frame.keyword = True
        return True

    def operator(self, at: int) -> bool:
        """Read what follows an operand, other than + - * /; whether an operand is wanted next."""
        token, frame = self.tokens[at], self.frame
        if token.kind in (")", "]"):
            self.close(token, after_value=True)
            return False
        if token.kind == "," and frame.kind in ("call", "list"):
            self.refuse_decimal_comma(at)
            self.finish_value(token.offset)
            frame.begin_value()
        elif frame.done and token.kind in ("+", "-", "*", "/", "@"):
            raise self.error(
                "nothing can be done to a list or after a weight",
                token.offset,
                "put the weight in brackets: x @ (1 - k)",
            )
        elif token.kind == "@" and frame.takes_values:
            self.finish_sum()
            frame.weight_at = token.offset
        else:
            raise self.no_operator(at, token)
        return True

    def finish_factor(self) -> None:
        """A factor is complete: apply the sign, the multiplication or the weight that waited for it."""
        frame = self.frame
        if frame.neg_at >= 0:
            if frame.neg:
                self.emit("neg", None, frame.neg_at)
            frame.neg, frame.neg_at = False, -1
        if frame.op is not None:
            self.emit(frame.op, None, frame.op_at)
            frame.op = None
        elif frame.weight_at >= 0:
            self.emit("weight", None, frame.weight_at)
            frame.done = True

    def finish_sum(self) -> None:
        frame = self.frame
        if frame.signs:
            self.emit("sum", tuple(frame.signs), frame.sum_at)
            frame.signs = []

    def finish_value(self, at: int) -> None:
        self.finish_sum()
        frame = self.frame
        if frame.keyword:
            frame.keyword = False
        elif frame.keywords:
            raise self.error("a plain argument stands after one with a name", at, "put it before them")
        else:
            frame.positional += 1

    def open(self, frame: _Frame) -> None:
        self.frames.append(self.frame)
        self.frame = frame

    def close(self, token: Token, *, after_value: bool) -> None:
        frame = self.frame
        if not self.frames:
            raise self.error(f"this {token.kind} closes nothing", token.offset)
        wanted = "]" if frame.kind == "list" else ")"
        if token.kind != wanted:
            opened = self.anchor.place(frame.offset)
            raise self.error(
                f"{token.kind} stands where {wanted} is needed (opened at {opened.line}:{opened.column})", token.offset
            )
        if after_value:
            self.finish_value(token.offset)
        self.frame = self.frames.pop()
        if frame.kind == "list":
            self.emit("list", frame.positional, frame.offset)
            self.frame.done = True
            return
        if frame.kind == "call":
            self.emit("call", Call(frame.name, frame.positional, tuple(frame.keywords)), frame.offset)
        self.finish_factor()

    def emit(self, op: Op, value: Operand, offset: int) -> None:
        self.code.append(Instr(op, value, offset))

    def error(self, message: str, offset: int, hint: str = "") -> RecipeError:
        return RecipeError(message, place=self.anchor.place(offset), hint=hint)

    def typed(self, token: Token) -> str:
        return clip(self.text[token.offset : token.end])

    def no_operand(self, at: int, token: Token) -> RecipeError:
        """The answer to a token that stands where a value should."""
        before = self.tokens[at - 1] if at else None
        if token.kind == END:
            assert before is not None
            if before.kind in ("(", "["):
                return self.error("this bracket is not closed", before.offset)
            return self.error(f"a value is missing after {before.kind}", before.offset)
        if token.kind in _NO_OPERATOR:
            return self.error(_NO_OPERATOR[token.kind][0], token.offset, _NO_OPERATOR[token.kind][1])
        if token.kind == "[":
            return self.error("a list can only be an argument of a call", token.offset, "for example average([b, c])")
        if token.kind in (")", "]") and before is not None and before.kind in ("(", "["):
            return self.error("there is nothing between these brackets", before.offset)
        if token.kind in (")", "]") and not self.frames:
            return self.error(f"this {token.kind} closes nothing", token.offset)
        return self.error(f"a value is missing before {token.kind}", token.offset)

    def no_operator(self, at: int, token: Token) -> RecipeError:
        """The answer to a token that stands where an operator should."""
        before, kind = self.tokens[at - 1], token.kind
        if kind in _NO_OPERATOR:
            return self.error(_NO_OPERATOR[token.kind][0], token.offset, _NO_OPERATOR[token.kind][1])
        if kind == ",":
            return self.comma(before, token, self.tokens[at + 1])
        if kind == "@":
            return self.error(
                "a weight (@) stands in a list or an argument only",
                token.offset,
                "for example linear([a @ 0.7, b @ 0.3])",
            )
        if kind == "[":
            return self.error(
                "layer slices like [0:16] are not in this version of mergeflow",
                token.offset,
                "use a profile: a param with a number per block",
            )
        return self.two_values(at, before, token)

    def refuse_decimal_comma(self, at: int) -> None:
        """f(a, 0,3) would be a call with 0 and with 3: numbers that are written so are meant as one."""
        if not self.tokens.kinds[at - 1] == self.tokens.kinds[at + 1] == NUMBER:
            return
        before, comma, after = (self.tokens[i] for i in (at - 1, at, at + 1))
        left, right = self.typed(before), self.typed(after)
        apart = before.end < comma.offset or comma.end < after.offset or not (left + right).isdecimal()
        if not apart and ((left == "0" and right not in "01") or right[0] == "0" != right):
            hint = f"write {left}.{right}; or {left}, {right}, if they are two"
            raise self.error(f"{left},{right} is not a number here", before.offset, hint)

    def comma(self, before: Token, token: Token, after: Token) -> RecipeError:
        if before.kind == after.kind == NUMBER and before.end == token.offset and token.end == after.offset:
            left, right = self.typed(before), self.typed(after)
            return self.error(f"{left},{right} is not a number here", before.offset, f"write {left}.{right}")
        hint = "leave it out" if after.kind == END else "several models are merged by a method: average(a, b)"
        return self.error("a comma stands between arguments or list items only", token.offset, hint)

    def two_values(self, at: int, before: Token, token: Token) -> RecipeError:
        left, right = self.typed(before), self.typed(token)
        if token.kind == "(":
            rest = self.text[token.offset : token.offset + 40].split("\n")[0]
            inner = rest[: rest.index(")") + 1] if ")" in rest else "(…)"
            hint = f"write {left} * {inner}" if before.kind not in (")", "]") else f"write ) * {inner}"
            if before.kind == NAME:
                hint += "; a call has no space before its bracket"
            return self.error(f"there is no operator between {left} and this bracket", token.offset, hint)
        if right in ("x", "X") and self.tokens[at + 1].kind in (NAME, NUMBER, QUOTED, "("):
            factor = self.typed(self.tokens[at + 1])
            hint = f"write {left} * {factor}" if factor != "(" and left != ")" else "write *"
            return self.error(f"{right} is a name, not an operator", token.offset, hint)
        hint = ""
        if right.casefold() in _SPELT_OUT:
            hint = f"write {_SPELT_OUT[right.casefold()]} in place of {right}"
        elif before.kind == token.kind == NAME:
            among = self.frame.kind in ("call", "list")
            other = "arguments are separated by commas" if among else "a call has brackets: average(a, b)"
            hint = f"if that is one name, quote it: '{left} {right}'; {other}"
        elif NUMBER in (before.kind, token.kind) and before.kind != ")":
            hint = f"multiplication is written out: {left} * {right}"
        return self.error(f"there is no operator between {left} and {right}", token.offset, hint)
