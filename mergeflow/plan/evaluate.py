"""Running an expression's postfix code over a scope of names: numbers become exact, models become graph nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from mergeflow.errors import MergeflowError, Place, RecipeError, UnknownName, nearest
from mergeflow.ir.nodes import Scaled, combine
from mergeflow.ir.numbers import Number, Varying, decimal
from mergeflow.methods.registry import LISTS, Method, Parameter, Weighted, built_in, find
from mergeflow.recipe.expression import Call, Expression, Instr, spell
from mergeflow.recipe.tokens import is_plain_name


@dataclass(frozen=True, slots=True)
class Word:
    """A name that nothing in scope has: one of the words that a method's option takes, or else an error."""

    name: str
    unknown: Callable[[], MergeflowError]


Value = Number | Scaled | Weighted | list["Value"] | bool | Word
_WORDS: Mapping[str, Value] = {"true": True, "false": False}


def evaluate(expression: Expression, scope: Mapping[str, Value]) -> Value:
    """The value of an expression.

    Raises:
        RecipeError: a name or method that does not exist, or operands that do not go together; with the place.
    """
    return _known(evaluate_argument(expression, scope))


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
                stack.append(_negate(expression, instr, _known(stack.pop())))
            case "call":
                assert isinstance(instr.value, Call)
                stack.append(_call(expression, instr, instr.value, stack))
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
        raise RecipeError(f"a number is needed here, not {_what(value)}", place=expression.place(0))
    return value


def evaluate_model(expression: Expression, scope: Mapping[str, Value]) -> Scaled:
    value = evaluate(expression, scope)
    if not isinstance(value, Scaled):
        raise RecipeError(f"a model is needed here, not {_what(value)}", place=expression.place(0))
    return value


def call_method(name: str, arguments: Mapping[str, Value], place: Place) -> Scaled:
    """A method in its long form: every argument by name."""
    try:
        return _run(find(name), [], arguments)
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
    elif name in built_in():
        hint = f"{name} is a method, called as {built_in()[name].signature}"
    return UnknownName("source, param or step", name, scope, place=expression.place(instr.offset), hint=hint)


def _unquoted(text: str, at: int, scope: Mapping[str, Value]) -> str:
    """A name that is no plain word and stands without quotes around the character `at`; '' when none does."""
    for known in scope:
        if not is_plain_name(known):
            begin = text.find(known, max(0, at - len(known)), at + len(known))
            if begin <= at < begin + len(known):
                return known
    return ""


def _pop(stack: list[Value], n: int) -> list[Value]:
    items = stack[len(stack) - n :]
    del stack[len(stack) - n :]
    return items


def _pop_known(stack: list[Value], n: int) -> list[Value]:
    return [_known(value) for value in _pop(stack, n)]


def _known(value: Value) -> Value:
    if isinstance(value, Word):
        raise value.unknown()
    return value


def _negate(expression: Expression, instr: Instr, value: Value) -> Value:
    if isinstance(value, bool | list | Weighted | Word):
        raise _refuse(expression, instr, f"{_what(value)} cannot be negated")
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
                f"a model and {_what(odd)} cannot be added" if models else f"{_what(x)} cannot be added",
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
        raise _refuse(expression, instr, f"{_what(left)} cannot be multiplied by {_what(right)}")
    if isinstance(left, bool) or not isinstance(left, Fraction | Varying | Scaled):
        raise _refuse(expression, instr, f"{_what(left)} cannot be multiplied")
    return left * right


def _divide(expression: Expression, instr: Instr, left: Value, right: Value) -> Value:
    if isinstance(right, bool) or not isinstance(right, Fraction | Varying):
        raise _refuse(expression, instr, f"nothing can be divided by {_what(right)}", "divide by a number")
    if isinstance(left, bool) or not isinstance(left, Fraction | Varying | Scaled):
        raise _refuse(expression, instr, f"{_what(left)} cannot be divided")
    try:
        return left * (1 / right) if isinstance(left, Scaled) else left / right
    except ZeroDivisionError:
        raise _refuse(expression, instr, "division by zero") from None


def _weigh(expression: Expression, instr: Instr, left: Value, right: Value) -> Value:
    if isinstance(right, bool) or not isinstance(right, Fraction | Varying):
        raise _refuse(expression, instr, f"a weight is a number, not {_what(right)}")
    if isinstance(left, Scaled):
        return Weighted(left, right)
    raise _refuse(expression, instr, f"{_what(left)} cannot carry a weight; models can: a @ 0.5")


_BINARY: Mapping[str, Callable[[Expression, Instr, Value, Value], Value]] = {
    "mul": _multiply,
    "div": _divide,
    "weight": _weigh,
}


def _call(expression: Expression, instr: Instr, call: Call, stack: list[Value]) -> Value:
    values = _pop(stack, call.positional + len(call.keywords))
    positional, named = values[: call.positional], dict(zip(call.keywords, values[call.positional :], strict=True))
    if any(isinstance(value, Word) for value in values):
        _check_words(call.name, positional, named)
    try:
        return _run(find(call.name), positional, named)
    except MergeflowError as error:  # asked only now, because a place is found by walking through the text
        error.place = error.place or expression.place(instr.offset)
        raise


def _check_words(name: str, positional: Sequence[Value], named: Mapping[str, Value]) -> None:
    """A word that cannot be meant as an option's is an unknown name, whatever else is wrong with the call."""
    try:
        kinds: dict[str, str] = {p.name: p.kind for p in find(name).parameters}
    except UnknownName:
        kinds = {}
    taken = "choice" in kinds.values()
    for value in [*([] if taken else positional), *(v for key, v in named.items() if kinds.get(key) != "choice")]:
        _known(value)


def _run(method: Method, positional: list[Value], named: Mapping[str, Value]) -> Scaled:
    arguments = _bind(method, positional, named)
    try:
        return method.function(**arguments)
    except ZeroDivisionError:
        raise RecipeError(f"{method.name}: division by zero") from None


def _bind(method: Method, positional: list[Value], named: Mapping[str, Value]) -> dict[str, object]:
    by_name = {p.name: p for p in method.parameters}
    given: dict[str, Value] = {}
    rest = list(positional)
    for p in method.parameters:
        if not rest:
            break
        if p.kind in LISTS:  # average(a, b, c) as well as average([a, b, c])
            count = next((i for i, v in enumerate(rest) if not isinstance(v, Scaled | Weighted | list)), len(rest))
            given[p.name] = rest[:count]
            del rest[:count]
        else:
            given[p.name] = rest.pop(0)
    if rest:
        hint = method.signature
        if sum(isinstance(v, Fraction) for v in positional) > sum(p.kind == "Number" for p in method.parameters):
            hint += "; numbers are written with a point: 0.3"
        raise RecipeError(f"{method.name} takes at most {_count(len(method.parameters))}", hint=hint)
    for name, value in named.items():
        if name not in by_name:
            raise UnknownName(f"parameter of {method.name}", name, by_name, hint=method.signature)
        if name in given:
            raise RecipeError(f"{method.name} is given {name} twice", hint=method.signature)
        given[name] = value
    missing = [p.name for p in method.parameters if p.required and p.name not in given]
    if missing:
        listed = " and ".join([", ".join(missing[:-1]), missing[-1]] if missing[:-1] else missing)
        raise RecipeError(f"{method.name} needs {listed} as well", hint=method.signature)
    return {name: _accept(method, by_name[name], value) for name, value in given.items()}


def _accept(method: Method, parameter: Parameter, value: Value) -> object:
    """The value as the parameter's kind wants it."""
    kind = parameter.kind
    if kind == "choice":
        return _choose(method, parameter, value)
    value = _known(value)
    if kind in LISTS and isinstance(value, list) and value:
        items = [Weighted(item, None) if isinstance(item, Scaled) else item for item in _flat(value)]
        if items and all(isinstance(item, Weighted) for item in items):
            return items
    elif (
        (kind in ("Model", "Delta") and isinstance(value, Scaled))
        or (kind == "Number" and not isinstance(value, bool) and isinstance(value, Fraction | Varying))
        or (kind == "bool" and isinstance(value, bool))
    ):
        if parameter.range is not None and isinstance(value, Fraction) and not parameter.range.holds(value):
            message = f"{method.name}: {parameter.name} is {parameter.range}, not {decimal(value)}"
            raise RecipeError(message, hint=method.signature)
        return value
    wanted = {
        "Model": "a model",
        "Delta": "a difference of models, as in a - base",
        "Deltas": "a list of differences of models, as in [a - base, (b - base) @ 0.5]",
        "Models": "a list of models, as in [a, b @ 0.5]",
        "Number": "a number",
        "bool": "true or false",
    }
    raise RecipeError(f"{method.name}: {parameter.name} is {wanted[kind]}, not {_what(value)}", hint=method.signature)


def _choose(method: Method, parameter: Parameter, value: Value) -> str:
    """One of the words that an option takes."""
    if isinstance(value, Word) and value.name in parameter.choices:
        return value.name
    shown = value.name if isinstance(value, Word) else _what(value)
    close = nearest(value.name, parameter.choices) if isinstance(value, Word) else []
    raise RecipeError(
        f"{method.name}: {parameter.name} is {' or '.join(parameter.choices)}, not {shown}",
        hint=f"did you mean {close[0]}?" if close else method.signature,
    )


def _flat(values: Sequence[Value]) -> list[Value]:
    """A list of models, with those of the lists in it (a source may be a list) in their places."""
    flat: list[Value] = []
    stack = list(reversed(values))
    while stack:
        item = stack.pop()
        if isinstance(item, list):
            stack += reversed(item)
        else:
            flat.append(item)
    return flat


def _refuse(expression: Expression, instr: Instr, message: str, hint: str = "") -> RecipeError:
    return RecipeError(message, place=expression.place(instr.offset), hint=hint)


def _count(n: int) -> str:
    return "one argument" if n == 1 else f"{n} arguments"


def _what(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Fraction | Varying):
        return "a number"
    if isinstance(value, Scaled):
        return "a model"
    if isinstance(value, Word):
        return value.name
    if isinstance(value, Weighted):
        return "a weighted model (@ belongs in a list of models)"
    return "a list" if isinstance(value, list) and _flat(value) else "an empty list"
