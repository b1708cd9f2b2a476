"""Sweeps: which names depend on which, all choices of their values, and the names of the outputs for each.

A choice says for some sweeps, in the order of the recipe, which of their values is meant. Whatever depends on no sweep
is bound once and shared by all outputs; the rest once for each choice among the sweeps that it depends on.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import product
from math import prod

import networkx as nx

from mergeflow.errors import Place, RecipeError, UnknownName
from mergeflow.ir.nodes import Scaled
from mergeflow.ir.numbers import decimal
from mergeflow.plan.bound import SweepPoint
from mergeflow.plan.values import Value
from mergeflow.recipe import Output, Param, Recipe
from mergeflow.recipe.template import Placeholder, check_path, fill_text, unfit_for_a_name
from mergeflow.recipe.tokens import clip

MAX_OUTPUTS = 10_000  # of one recipe

Choice = Mapping[str, int]


def swept(recipe: Recipe) -> dict[str, Param]:
    return {name: param for name, param in recipe.params.items() if param.sweep}


def dependence(graph: nx.DiGraph[str], sweeps: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """For each name that depends on sweeps, which, in the order of the recipe. Edges lead from what is used."""
    found: dict[str, list[str]] = {}
    for sweep in sweeps:
        for name in (sweep, *nx.descendants(graph, sweep)):
            found.setdefault(name, []).append(sweep)
    return {name: tuple(on) for name, on in found.items()}


def choices(sweeps: Mapping[str, Param], names: Sequence[str]) -> Iterator[dict[str, int]]:
    """All combinations of the values of these sweeps, the last one moving fastest."""
    for indices in product(*(range(len(sweeps[name].sweep)) for name in names)):
        yield dict(zip(names, indices, strict=True))


def count(sweeps: Mapping[str, Param], names: Iterable[str]) -> int:
    return prod(len(sweeps[name].sweep) for name in names)


def words(sweeps: Mapping[str, Param], choice: Choice) -> str:
    """A choice as a person would say it."""
    return ", ".join(f"{clip(name)} = {clip(_typed(sweeps[name].sweep[i]))}" for name, i in choice.items())


def _typed(value: Param) -> str:
    if value.label is not None:
        return value.label or "''"
    assert value.value is not None
    return value.value.text.strip()


def label(sweep: str, given: Param, value: Value) -> str:
    """What a value of a sweep is called.

    Raises:
        RecipeError: it is no number and no name, and has no label; or it is nothing that a sweep runs over.
    """
    if given.label is not None:
        return given.label
    if isinstance(value, Fraction):
        return decimal(value)
    assert given.value is not None
    names = given.value.names
    if len(given.value.code) == 1 and names:
        return names[0]
    raise RecipeError(
        f"this value of the sweep {clip(sweep)} needs a label, for the name of the output",
        place=given.place,
        hint=f"write {{ sweep: {{ soft: {clip(given.value.text.strip())} }} }}",
    )


def check_values(sweep: str, given: Sequence[Param], values: Sequence[Value]) -> None:
    """A sweep runs over numbers or over models, and each of its values once."""
    models = [isinstance(value, Scaled) for value in values]
    if len(set(models)) > 1:
        odd = given[models.index(not models[0])]
        raise RecipeError(
            f"the sweep {clip(sweep)} mixes numbers and models", place=odd.place, hint="make it two sweeps"
        )
    seen: dict[str, Param] = {}
    for one, value in zip(given, values, strict=True):
        name = label(sweep, one, value)
        if name in seen:
            raise RecipeError(f"the sweep {clip(sweep)} has the value {clip(name)} twice", place=one.place)
        seen[name] = one


# -- outputs -------------------------------------------------------------------------------------------------------


def check_template(output: Output, depends: Sequence[str], sweeps: Mapping[str, Param], params: Container[str]) -> None:
    """The name of an output and its expression use the same sweeps.

    Raises:
        RecipeError: a placeholder that is no sweep, or a sweep that only one of the two uses.
    """
    template = output.template
    for placeholder in template.placeholders:
        name, place = placeholder.name, template.anchor.place(placeholder.offset)
        if name not in params:
            hint = "" if sweeps else "params: { s: { sweep: [0, 0.5, 1] } } makes one; {{ and }} are plain braces"
            raise UnknownName("sweep", name, sweeps, place=place, hint=hint)
        if name not in sweeps:
            raise RecipeError(
                f"{clip(name)} is not a sweep, and a name holds the values of sweeps",
                place=place,
                hint=f"write its value into the name, or {clip(name)}: {{ sweep: [0, 0.5, 1] }} under params:",
            )
        if name not in depends:
            raise RecipeError(
                f"the name has a place for the sweep {clip(name)}, but the output does not depend on it",
                place=place,
                hint=f"take it out of the name: {_count(sweeps, name)} would be one and the same",
            )
    in_name = {placeholder.name for placeholder in template.placeholders}
    missing = [name for name in depends if name not in in_name and len(sweeps[name].sweep) > 1]
    if missing:
        stem, dot, suffix = template.text.rpartition(".")
        fixed = stem + "".join(f"-{{{name}}}" for name in missing) + dot + suffix
        raise RecipeError(
            f"{clip(template.text)} depends on the sweep {clip(missing[0])}, and its {_count(sweeps, missing[0])} "
            "need a name each",
            place=output.place,
            hint=f"write {fixed}",
        )


def _count(sweeps: Mapping[str, Param], name: str) -> str:
    return f"{len(sweeps[name].sweep):,} files"


def check_number_of_outputs(recipe: Recipe, counts: Mapping[str, int]) -> None:
    """`counts`: how many files each entry of outputs: stands for."""
    total = 0
    for path, files in counts.items():
        total += files
        if total > MAX_OUTPUTS:
            raise RecipeError(
                f"{clip(path)} stands for {files:,} files; a recipe makes at most {MAX_OUTPUTS:,} in all",
                place=recipe.outputs[path].place,
                hint="shorten the sweeps, or set one with --set",
            )


def file_name(output: Output, point: SweepPoint, values: Mapping[str, Value]) -> str:
    """The path of an output at a point; `values` are those of the sweeps.

    Raises:
        RecipeError: a value that cannot be in a name, or a name that is no output's.
    """

    def show(placeholder: Placeholder) -> str:
        text = _shown(placeholder, point, values, lambda: output.template.anchor.place(placeholder.offset))
        if bad := unfit_for_a_name(text):
            given = point.params[placeholder.name]
            raise RecipeError(
                f"{clip(text)} holds {bad}, which cannot be in the name of a file",
                place=given.place,
                hint=f"give it a label: {{ sweep: {{ name: {clip(_typed(given))} }} }}",
            )
        return text

    path = output.template.filled(show)
    if output.template.placeholders:
        check_path(path, lambda message, hint: RecipeError(f"{clip(path)}: {message}", place=output.place, hint=hint))
    return path


def metadata(
    output: Output, point: SweepPoint, values: Mapping[str, Value], sweeps: Mapping[str, Param]
) -> dict[str, str]:
    """The entries of `metadata:`, with the values of sweeps where they have a place for them."""

    def show(placeholder: Placeholder) -> str:
        if placeholder.name not in point.labels:
            raise RecipeError(
                f"metadata: {{{clip(placeholder.name)}}} is a sweep's value, and the output's name has no place for it",
                place=output.place,
                hint="what is in the name can be in the metadata",
            )
        return _shown(placeholder, point, values, lambda: output.place)

    return {key: fill_text(text, sweeps, show) for key, text in output.metadata.items()}


def _shown(placeholder: Placeholder, point: SweepPoint, values: Mapping[str, Value], place: Callable[[], Place]) -> str:
    name, value = placeholder.name, values[placeholder.name]
    if placeholder.format is None:
        text = point.labels[name]
        if point.params[name].label is None and isinstance(value, Fraction) and not _is_exact(text, value):
            raise RecipeError(
                f"the sweep {clip(name)} has the value {clip(text)}, which is no short decimal",
                place=place(),
                hint=f"{{{name}:.3f}} rounds it, in the name only; or give it a label",
            )
        return text
    if not isinstance(value, Fraction):
        raise RecipeError(
            f"{clip(name)} stands for {'models' if isinstance(value, Scaled) else 'profiles'} here, "
            "which have no decimals",
            place=place(),
            hint=f"write {{{name}}}",
        )
    return placeholder.format.text(value)


def _is_exact(text: str, value: Fraction) -> bool:
    return "/" not in text and Fraction(text) == value
