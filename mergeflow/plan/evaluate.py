"""Running an expression's postfix code over a scope of names: numbers become exact, models become graph nodes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

from mergeflow.errors import MergeflowError, Place, RecipeError, UnknownName
from mergeflow.ir.nodes import Scaled, combine
from mergeflow.ir.numbers import Number, Varying
from mergeflow.methods.registry import Weighted, built_in
from mergeflow.plan.calls import call, check_words
from mergeflow.plan.values import Value, Word, described, known
from mergeflow.recipe.expression import Call, Expression, Instr, spell
from mergeflow.recipe.tokens import clip, is_plain_name

_ELSEWHERE = {  # what other tools, and people, call methods
    "mean": "average", "avg": "average", "sum": "average", "merge": "weighted_sum", "mix": "weighted_sum",
    "blend": "weighted_sum", "lerp": "weighted_sum", "interpolate": "weighted_sum", "addifference": "add_difference",
    "add": "add_difference", "sub": "subtract", "diff": "subtract", "max": "magmax",
}  # fmt: skip
_WORDS: Mapping[str, Value] = {"true": True, "false": False}


def evaluate(expression: Expression, scope: Mapping[str, Value]) -> Value:
    """The value of an expression.

    Raises:
        RecipeError: a name or method that does not exist, or operands that do not go together; with the place.
    """
    return known(evaluate_argument(expression, scope))


def evaluate_argument(expression: Expression, scope: Mapping[str, Value]) -> Value:
    """The same where a method's option may stand: a name that nothing has is a Word."""
    stack: list[Value] = []
    for instr in expression.code:
        match instr.op:
            case "number":
                assert isinstance(instr.value, Fraction)
                stack.append(instr.value)
            case "name":
                stack.append(_look_up(expression, instr, scope))
            case "list":
                assert isinstance(instr.value, int)
                stack.append(_pop_known(stack, instr.value))
            case "neg":
                stack.append(_negate(expression, instr, known(stack.pop())))
            case "call":
                assert isinstance(instr.value, Call)
                stack.append(_call(expression, instr, instr.value, stack, scope))
            case "sum":
                assert isinstance(instr.value, tuple)
                stack.append(_sum(expression, instr, _pop_known(stack, len(instr.value)), instr.value))
            case "mul" | "div" | "weight":
                left, right = _pop_known(stack, 2)
                stack.append(_BINARY[instr.op](expression, instr, left, right))
    (result,) = stack
    return result


def evaluate_number(expression: Expression, scope: Mapping[str, Value]) -> Number:
    value = evaluate(expression, scope)
    if isinstance(value, bool) or not isinstance(value, Fraction | Varying):
        raise RecipeError(f"a number is needed here, not {described(value)}", place=expression.place(0))
    return value


def evaluate_model(expression: Expression, scope: Mapping[str, Value]) -> Scaled:
    value = evaluate(expression, scope)
    if not isinstance(value, Scaled):
        raise RecipeError(f"a model is needed here, not {described(value)}", place=expression.place(0))
    return value


def call_method(name: str, arguments: Mapping[str, Value], place: Place) -> Scaled:
    """A method in its long form: every argument by name."""
    try:
        return call(name, [], arguments)
    except MergeflowError as error:
        error.place = error.place or place
        raise


def _look_up(expression: Expression, instr: Instr, scope: Mapping[str, Value]) -> Value:
    name = str(instr.value)
    found = scope.get(name)
    if found is not None:
        return found
    if name in _WORDS:
        return _WORDS[name]
    if _unquoted(expression.text, instr.offset, scope):
        raise _unknown(expression, instr, name, scope)
    return Word(name, lambda: _unknown(expression, instr, name, scope))


def _unknown(expression: Expression, instr: Instr, name: str, scope: Mapping[str, Value]) -> MergeflowError:
    hint = ""
    digits = name[: len(name) - len(name.lstrip("0123456789"))]
    if digits and name[len(digits) :] in scope:
        hint = f"or {digits} * {name[len(digits) :]}?"
    elif whole := _unquoted(expression.text, instr.offset, scope):
        place = expression.place(instr.offset)
        return RecipeError(
            f"{whole} is one name, but is read as several", place=place, hint=f"quote it: {spell(whole)}"
        )
    elif not scope:
        hint = f"a model has a line under sources: {clip(name)}: FILE"
    elif name in built_in():
        hint = f"{name} is a method, called as {built_in()[name].signature}"
    return UnknownName("source, param or step", name, scope, place=expression.place(instr.offset), hint=hint)


def _unquoted(text: str, at: int, scope: Mapping[str, Value]) -> str:
    """A name that is no plain word and stands without quotes around the character `at`; '' when none does."""
    for name in scope:
        if not is_plain_name(name):
            begin = text.find(name, max(0, at - len(name)), at + len(name))
            if begin <= at < begin + len(name):
                return name
    return ""


def _pop(stack: list[Value], n: int) -> list[Value]:
    items = stack[len(stack) - n :]
    del stack[len(stack) - n :]
    return items


def _pop_known(stack: list[Value], n: int) -> list[Value]:
    return [known(value) for value in _pop(stack, n)]


def _negate(expression: Expression, instr: Instr, value: Value) -> Value:
    if isinstance(value, bool | list | Weighted | Word):
        raise _refuse(expression, instr, f"{described(value)} cannot be negated")
    return -value


def _sum(expression: Expression, instr: Instr, items: Sequence[Value], signs: tuple[int, ...]) -> Value:
    signed = [_negate(expression, instr, x) if s < 0 else x for x, s in zip(items, signs, strict=True)]
    models = [x for x in signed if isinstance(x, Scaled)]
    if len(models) == len(signed):
        return combine(models)
    total: Number = Fraction(0)
    for x in signed:
        if isinstance(x, bool) or not isinstance(x, Fraction | Varying):
            odd = next((y for y in signed if not isinstance(y, Scaled)), x) if models else x
            raise _refuse(
                expression,
                instr,
                f"a model and {described(odd)} cannot be added" if models else f"{described(x)} cannot be added",
                "numbers scale models: a * 0.3" if models else "",
            )
        total = total + x
    if models:
        raise _refuse(expression, instr, "a model and a number cannot be added", "numbers scale models: a * 0.3")
    return total


def _multiply(expression: Expression, instr: Instr, left: Value, right: Value) -> Value:
    if isinstance(left, Scaled) and isinstance(right, Scaled):
        raise _refuse(
            expression,
            instr,
            "two models cannot be multiplied",
            "a model times a number is scaled: a * 0.3; a difference is added: a + (b - c) * 0.3",
        )
    if isinstance(right, Scaled):
        left, right = right, left
    if isinstance(right, bool) or not isinstance(right, Fraction | Varying):
        raise _refuse(expression, instr, f"{described(left)} cannot be multiplied by {described(right)}")
    if isinstance(left, bool) or not isinstance(left, Fraction | Varying | Scaled):
        raise _refuse(expression, instr, f"{described(left)} cannot be multiplied")
    return left * right


def _divide(expression: Expression, instr: Instr, left: Value, right: Value) -> Value:
    if isinstance(right, bool) or not isinstance(right, Fraction | Varying):
        raise _refuse(expression, instr, f"nothing can be divided by {described(right)}", "divide by a number")
    if isinstance(left, bool) or not isinstance(left, Fraction | Varying | Scaled):
        raise _refuse(expression, instr, f"{described(left)} cannot be divided")
    try:
        return left * (1 / right) if isinstance(left, Scaled) else left / right
    except ZeroDivisionError:
        raise _refuse(expression, instr, "division by zero") from None


def _weigh(expression: Expression, instr: Instr, left: Value, right: Value) -> Value:
    if isinstance(right, bool) or not isinstance(right, Fraction | Varying):
        raise _refuse(expression, instr, f"a weight is a number, not {described(right)}")
    if isinstance(left, Scaled):
        return Weighted(left, right)
    raise _refuse(expression, instr, f"{described(left)} cannot carry a weight; models can: a @ 0.5")


_BINARY: Mapping[str, Callable[[Expression, Instr, Value, Value], Value]] = {
    "mul": _multiply,
    "div": _divide,
    "weight": _weigh,
}


def _call(expression: Expression, instr: Instr, written: Call, stack: list[Value], scope: Mapping[str, Value]) -> Value:
    values = _pop(stack, written.positional + len(written.keywords))
    positional, named = (
        values[: written.positional],
        dict(zip(written.keywords, values[written.positional :], strict=True)),
    )
    if any(isinstance(value, Word) for value in values):
        check_words(written.name, positional, named)
    try:
        return call(written.name, positional, named)
    except MergeflowError as error:  # asked only now, because a place is found by walking through the text
        error.place = error.place or expression.place(instr.offset)
        if isinstance(error, UnknownName) and error.message.startswith("no method"):
            error.hint = _method_meant(written.name, expression.text[: instr.offset], scope) or error.hint
        raise


def _method_meant(name: str, before: str, scope: Mapping[str, Value]) -> str:
    """What was meant by a call of something that is no method, where more is known than how it is spelt."""
    if name in scope:
        return f"{name} is no method; a product is written {name} * (…)"
    broken = re.search(r"(\w+)\s*-\s*$", before)
    if broken and (whole := f"{broken[1]}_{name}") in built_in():
        return f"did you mean {whole}?"
    if (other := _ELSEWHERE.get(name.casefold())) is not None:
        return f"did you mean {built_in()[other].signature}? `mergeflow methods` lists them"
    return ""


def _refuse(expression: Expression, instr: Instr, message: str, hint: str = "") -> RecipeError:
    return RecipeError(message, place=expression.place(instr.offset), hint=hint)
