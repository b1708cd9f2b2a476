"""Calling a method by its name: which of the values given is which of its parameters, and whether it may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

from mergeflow.errors import RecipeError, UnknownName, nearest
from mergeflow.ir.nodes import Scaled
from mergeflow.ir.numbers import Varying, decimal
from mergeflow.methods.plugins import answerable
from mergeflow.methods.registry import LISTS, Method, Parameter, Weighted, find
from mergeflow.plan.values import Value, Word, described, flattened, known


def call(name: str, positional: Sequence[Value], named: Mapping[str, Value]) -> Scaled:
    """What a method makes of these arguments.

    Raises:
        UnknownName: there is no such method, or it has no such parameter.
        RecipeError: arguments that it does not take; without a place.
    """
    method = find(name)
    arguments = _bind(method, positional, named)
    try:
        with answerable(f"in {method.name}"):
            return method.function(**arguments)
    except ZeroDivisionError:
        raise RecipeError(f"{method.name}: division by zero") from None


def check_words(name: str, positional: Sequence[Value], named: Mapping[str, Value]) -> None:
    """A word that cannot be meant as an option's is an unknown name, whatever else is wrong with the call."""
    try:
        kinds: dict[str, str] = {p.name: p.kind for p in find(name).parameters}
    except UnknownName:
        kinds = {}
    taken = "choice" in kinds.values()
    for value in [*([] if taken else positional), *(v for key, v in named.items() if kinds.get(key) != "choice")]:
        known(value)


def _bind(method: Method, positional: Sequence[Value], named: Mapping[str, Value]) -> dict[str, object]:
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
    value = known(value)
    if kind in LISTS and isinstance(value, list) and value:
        items = [Weighted(item, None) if isinstance(item, Scaled) else item for item in flattened(value)]
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
    raise RecipeError(
        f"{method.name}: {parameter.name} is {wanted[kind]}, not {described(value)}", hint=method.signature
    )


def _choose(method: Method, parameter: Parameter, value: Value) -> str:
    """One of the words that an option takes."""
    if isinstance(value, Word) and value.name in parameter.choices:
        return value.name
    shown = value.name if isinstance(value, Word) else described(value)
    close = nearest(value.name, parameter.choices) if isinstance(value, Word) else []
    raise RecipeError(
        f"{method.name}: {parameter.name} is {' or '.join(parameter.choices)}, not {shown}",
        hint=f"did you mean {close[0]}?" if close else method.signature,
    )


def _count(n: int) -> str:
    return "one argument" if n == 1 else f"{n} arguments"
