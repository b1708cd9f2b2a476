"""From a recipe to one graph: its outputs, for every value of the sweeps that they depend on, and its assertions."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from fractions import Fraction
from itertools import chain

from mergeflow.errors import RecipeError
from mergeflow.ir.nodes import Named, Scaled, as_node
from mergeflow.ir.numbers import decimal
from mergeflow.plan.bound import Bound, Claim, SweepPoint
from mergeflow.plan.evaluate import evaluate, evaluate_model
from mergeflow.plan.names import Names, Scope, errors_at, names_in, with_options
from mergeflow.plan.sweeps import (
    MAX_OUTPUTS,
    check_number_of_outputs,
    check_template,
    count,
    file_name,
    label,
    metadata,
)
from mergeflow.plan.unused import check_unused
from mergeflow.plan.values import Value
from mergeflow.recipe import Comparison, Output, Recipe
from mergeflow.recipe.template import same_output
from mergeflow.recipe.tokens import clip

_COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq}


def bind(recipe: Recipe) -> Bound:
    """Resolve all names.

    Raises:
        RecipeError: an unknown name, a cycle, operands that do not go together, a numeric assertion that fails, outputs
            whose names do not fit their sweeps.
        MissingInput: another recipe that is not there.
    """
    bound = Bound(recipe, files=list(recipe.files))
    names = Names(bound, recipe, "", (recipe.path,) if recipe.path else ())
    depends = {path: names.sweeps_under(_names(output)) for path, output in recipe.outputs.items()}
    for path, output in recipe.outputs.items():
        check_template(output, depends[path], names.sweeps, recipe.params)
    check_number_of_outputs(recipe, {path: count(names.sweeps, on) for path, on in depends.items()})
    taken: dict[str, str] = {}
    for path, output in recipe.outputs.items():
        for scope in names.scopes(_names(output), depends[path]):
            _bind_output(bound, output, names, scope, taken)
    asserted: list[str] = []
    for comparison in recipe.asserts:
        used = names_in([comparison.left, *(right for _, right in comparison.rest)])
        asserted += used
        on = names.sweeps_under(used)
        if count(names.sweeps, on) > MAX_OUTPUTS:
            message = f"the assertion depends on more than {MAX_OUTPUTS:,} combinations of values"
            raise RecipeError(message, place=comparison.place(), hint="shorten the sweeps, or set one with --set")
        for scope in names.scopes(used, on):
            where = names.words(scope.choice)
            with errors_at(where):
                _bind_assert(bound, comparison, scope.values, where)
    bound.unused = names.unused([*chain.from_iterable(map(_names, recipe.outputs.values())), *asserted])
    check_unused(recipe, bound.unused)
    return bound


def _names(output: Output) -> list[str]:
    used = names_in([output.expr, *output.replace.values()])
    return [*used, output.like] if output.like else used


def _bind_output(bound: Bound, output: Output, names: Names, scope: Scope, taken: dict[str, str]) -> None:
    """An output at one point of its sweeps. `taken`: the paths so far, by what makes them one file."""
    point = _point(output, names, scope)
    path = file_name(output, point, scope.values)
    other = taken.setdefault(same_output(path), path)
    if other is not path:
        raise _same_name(bound, other, path, output, point)
    with errors_at(names.words(scope.choice)):
        model = evaluate_model(output.expr, scope.values)
        node = with_options(model, output.replace, output.like, scope.values, output.place)
    if output.metadata and names.sweeps:
        output = output.model_copy(update={"metadata": metadata(output, point, scope.values, names.sweeps)})
    bound.outputs[path] = (Named(path, node, output.expr.place(0)), output)
    bound.points[path] = point


def _point(output: Output, names: Names, scope: Scope) -> SweepPoint:
    params = {name: names.sweeps[name].sweep[i] for name, i in scope.choice.items()}
    labels = {name: label(name, param, scope.values[name]) for name, param in params.items()}
    numbers = {name: value for name, value in scope.swept.items() if isinstance(value, Fraction)}
    return SweepPoint(output.template.text, labels, params, numbers)


def _same_name(bound: Bound, other: str, path: str, output: Output, point: SweepPoint) -> RecipeError:
    first = bound.points[other]
    if first.template != point.template:
        line = bound.outputs[other][1].place.line
        return RecipeError(
            f"{clip(path)} is the same file as an output of line {line}", place=output.place, hint="rename one of them"
        )
    here, there = (", ".join(f"{name} = {text}" for name, text in p.labels.items()) for p in (point, first))
    return RecipeError(
        f"{clip(path)} is the name for {clip(there)} and for {clip(here)}",
        place=output.place,
        hint="more decimals tell them apart, as {s:.4f}; or labels, as { sweep: { soft: 0.2, hard: 0.8 } }",
    )


def _bind_assert(bound: Bound, comparison: Comparison, scope: Mapping[str, Value], where: str) -> None:
    """Numbers are compared here and now; models become claims, checked when the tensors are known."""
    left = comparison.left
    for op, right in comparison.rest:
        a, b = evaluate(left, scope), evaluate(right, scope)
        text = f"{clip(left.text.strip(), 60)} {op} {clip(right.text.strip(), 60)}"
        if isinstance(a, Scaled) and isinstance(b, Scaled):
            if op != "==":
                raise RecipeError(f"models can be equal or not, but not {op}", place=left.place(0))
            text += f" (where {where})" if where else ""
            bound.claims.append(Claim(as_node(a), as_node(b), text, left.place(0)))
        elif isinstance(a, Fraction) and isinstance(b, Fraction):
            if not _COMPARE[op](a, b):
                raise RecipeError(
                    f"the assertion does not hold: {text}",
                    place=left.place(0),
                    hint=f"left is {decimal(a)}, right is {decimal(b)}",
                )
        else:
            raise RecipeError("an assertion compares two models or two numbers", place=left.place(0))
        left = right
