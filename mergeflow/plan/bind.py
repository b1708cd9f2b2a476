"""From a recipe's names to one graph: every source numbered, every param a number, every step a node.

A source that is another recipe's step is bound in its own scope and becomes a node like any other, so that linear
steps fuse through the boundary and only real files are sources.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import networkx as nx

from mergeflow.arch import presets
from mergeflow.errors import MissingInput, Place, RecipeError, UnknownName
from mergeflow.ir.nodes import Like, Load, Named, Node, Replace, Round, Scaled, as_node
from mergeflow.ir.numbers import ONE, Number, decimal, profile
from mergeflow.plan.evaluate import Value, call_method, evaluate, evaluate_model, evaluate_number
from mergeflow.recipe import Recipe, load
from mergeflow.recipe.expression import Comparison, Expression
from mergeflow.recipe.model import BlockList, Output, Param, Source, Step
from mergeflow.recipe.tokens import clip

_DEEPEST = 32
_COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq}


@dataclass(frozen=True, slots=True)
class SourceRef:
    """A file that the recipe reads. `name` is what the recipe calls it (`aom2/nai` inside another recipe)."""

    name: str
    path: Path
    declared: Source


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of a profile: one number for all that the selector holds for, or a gradient of several."""

    selector: str
    numbers: tuple[Fraction, ...]
    place: Place


@dataclass(frozen=True, slots=True)
class Profile:
    """A param that differs from tensor to tensor: its lines in no order, the preset or list by blocks beneath them, and
    what holds elsewhere."""

    name: str
    entries: tuple[Entry, ...]
    listed: BlockList | None
    default: Fraction | None
    place: Place

    @property
    def sample(self) -> Fraction:
        """Some value of it, for what must not depend on values. 0 is in almost every list and preset."""
        if self.default is not None:
            return self.default
        return self.entries[0].numbers[0] if self.entries else Fraction(0)


@dataclass(frozen=True, slots=True)
class Claim:
    """A line of `assert:` about models: two nodes whose normal forms must be equal."""

    left: Node
    right: Node
    text: str
    place: Place


@dataclass(slots=True)
class Bound:
    """A recipe with all its names resolved. `numbers` and `profiles` are its params, nested ones under `name/…`."""

    recipe: Recipe
    sources: list[SourceRef] = field(default_factory=list)
    numbers: dict[str, Fraction] = field(default_factory=dict)
    profiles: dict[str, Profile] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)  # steps and sources by name, of the recipe itself
    steps: dict[str, Node] = field(default_factory=dict)
    outputs: dict[str, tuple[Node, Output]] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)  # every recipe file that was read


def bind(recipe: Recipe) -> Bound:
    """Resolve all names.

    Raises:
        RecipeError: an unknown name, a cycle, operands that do not go together, a numeric assertion that fails.
        MissingInput: another recipe that is not there.
    """
    bound = Bound(recipe, files=list(recipe.files))
    scope = _bind_scope(bound, recipe, "", (recipe.path,) if recipe.path else ())
    for path, output in recipe.outputs.items():
        node = _with_options(evaluate_model(output.expr, scope), output.replace, output.like, scope, output.place)
        bound.outputs[path] = (Named(path, node, output.expr.place(0)), output)
    for comparison in recipe.asserts:
        _bind_assert(bound, comparison, scope)
    return bound


def _bind_scope(bound: Bound, recipe: Recipe, prefix: str, opened: tuple[Path, ...]) -> dict[str, Value]:
    scope: dict[str, Value] = {}
    for name in _order(recipe):
        if name in recipe.sources:
            scope[name] = _bind_source(bound, recipe.sources[name], name, prefix, opened)
        elif name in recipe.params:
            scope[name] = _bind_param(bound, recipe.params[name], prefix + name, scope)
        else:
            step = recipe.steps[name]
            node = _bind_step(step, name, scope)
            scope[name] = Scaled(ONE, node)
            if not prefix:
                bound.steps[name] = node
        value = scope[name]
        if not prefix and isinstance(value, Scaled):
            bound.nodes[name] = value.node
    return scope


def _order(recipe: Recipe) -> Iterable[str]:
    """All names of a recipe, each after those it uses."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(recipe.sources)
    graph.add_nodes_from(recipe.params)
    graph.add_nodes_from(recipe.steps)
    for name, param in recipe.params.items():
        graph.add_edges_from((used, name) for used in _param_names(param) if used in graph)
    for name, step in recipe.steps.items():
        graph.add_edges_from((used, name) for used in _step_names(step) if used in graph)
    try:
        return list(nx.topological_sort(graph))
    except nx.NetworkXUnfeasible:
        cycle = [edge[1] for edge in reversed(list(nx.find_cycle(graph)))]  # each uses the one after it
        first = cycle[0]
        place = recipe.steps[first].place if first in recipe.steps else recipe.params[first].place
        if len(cycle) <= 8:
            shown = " → ".join(map(clip, [*cycle, first]))
        else:
            shown = f"{' → '.join(map(clip, cycle[:4]))} → … → {clip(cycle[-1])} → {clip(first)}, {len(cycle):,} names"
        raise RecipeError(
            f"{clip(first)} depends on itself: {shown}", place=place, hint="one of them has to do without the next"
        ) from None


def _param_names(param: Param) -> Iterable[str]:
    return (name for e in param.expressions for name in e.names)


def _step_names(step: Step) -> Iterable[str]:
    expressions = [step.expr, *step.arguments.values(), *step.replace.values()]
    names = [name for e in expressions if e is not None for name in e.names]
    return [*names, step.like] if step.like else names


def _bind_source(bound: Bound, source: Source, name: str, prefix: str, opened: tuple[Path, ...]) -> Value:
    if source.many:
        return [_bind_source(bound, s, f"{name}[{i}]", prefix, opened) for i, s in enumerate(source.many)]
    if source.recipe is not None:
        return _bind_recipe_source(bound, source, prefix + name, opened)
    assert source.path is not None
    bound.sources.append(SourceRef(prefix + name, source.folder / source.path, source))
    return Scaled(ONE, Load(len(bound.sources) - 1))


def _bind_recipe_source(bound: Bound, source: Source, name: str, opened: tuple[Path, ...]) -> Value:
    assert source.recipe is not None
    path = source.folder / source.recipe
    if path.resolve() in (p.resolve() for p in opened):
        raise RecipeError(f"{name}: {source.recipe} leads back to a recipe that uses it", place=source.place)
    if len(opened) >= _DEEPEST:
        raise RecipeError(f"{name}: recipes that use recipes may go {_DEEPEST} deep", place=source.place)
    try:
        other = load(path, overrides=source.set)
    except MissingInput as error:
        error.place = error.place or source.place
        raise
    bound.files += other.files
    scope = _bind_scope(bound, other, name + "/", (*opened, path))
    if source.step not in other.steps:
        raise UnknownName(f"step of {source.recipe}", str(source.step), other.steps, place=source.place)
    return scope[str(source.step)]


def _bind_param(bound: Bound, param: Param, name: str, scope: Mapping[str, Value]) -> Number:
    if param.value is not None:
        try:
            number = evaluate_number(param.value, scope)
        except UnknownName as error:
            if error.name in presets():
                error.hint = f"a preset of block weights is written {{ preset: {error.name} }}"
            raise
        if isinstance(number, Fraction):
            bound.numbers[name] = number
        return number
    entries = tuple(
        Entry(e.selector, tuple(_constant(number, scope) for number in e.numbers), e.place) for e in param.profile
    )
    default = None if param.default is None else _constant(param.default, scope)
    bound.profiles[name] = Profile(name, entries, param.listed, default, param.place)
    return profile(name)


def _constant(expression: Expression, scope: Mapping[str, Value]) -> Fraction:
    number = evaluate_number(expression, scope)
    if not isinstance(number, Fraction):
        raise RecipeError("a profile's value must be one number", place=expression.place(0))
    return number


def _bind_step(step: Step, name: str, scope: Mapping[str, Value]) -> Node:
    if step.expr is not None:
        value = evaluate_model(step.expr, scope)
        place = step.expr.place(0)
    else:
        assert step.method is not None
        arguments = {key: evaluate(e, scope) for key, e in step.arguments.items()}
        value, place = call_method(step.method, arguments, step.place), step.place
    node: Node = Named(name, _with_options(value, step.replace, step.like, scope, step.place), place)
    return Round(node, step.round) if step.round is not None else node


def _with_options(
    value: Scaled, replace: Mapping[str, Expression], like: str | None, scope: Mapping[str, Value], place: Place
) -> Node:
    node = as_node(value)
    if replace:
        node = Replace(node, [(part, as_node(evaluate_model(e, scope))) for part, e in replace.items()])
    if like is not None:
        found = scope.get(like)
        if not isinstance(found, Scaled):
            models = [name for name, v in scope.items() if isinstance(v, Scaled)]
            raise UnknownName("source or step", like, models, place=place)
        node = Like(node, as_node(found))
    return node


def _bind_assert(bound: Bound, comparison: Comparison, scope: Mapping[str, Value]) -> None:
    """Numbers are compared here and now; models become claims, checked when the tensors are known."""
    left = comparison.left
    for op, right in comparison.rest:
        a, b = evaluate(left, scope), evaluate(right, scope)
        text = f"{clip(left.text.strip(), 60)} {op} {clip(right.text.strip(), 60)}"
        if isinstance(a, Scaled) and isinstance(b, Scaled):
            if op != "==":
                raise RecipeError(f"models can be equal or not, but not {op}", place=left.place(0))
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
