"""The names of a recipe and what they stand for: every source numbered, every param a number, every step a node.

A source that is another recipe's step is bound in its own scope and becomes a node like any other, so that linear
steps fuse through the boundary and only real files are sources.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import networkx as nx

from mergeflow.arch import presets
from mergeflow.errors import MergeflowError, MissingInput, Place, RecipeError, UnknownName
from mergeflow.ir.nodes import Like, Load, Named, Node, Replace, Round, Scaled, as_node
from mergeflow.ir.numbers import ONE, Number, Varying, profile
from mergeflow.plan.bound import Bound, Entry, Profile, SourceRef, Variant
from mergeflow.plan.evaluate import call_method, evaluate, evaluate_argument, evaluate_model, evaluate_number
from mergeflow.plan.sweeps import Choice, check_values, choices, dependence, swept, words
from mergeflow.plan.values import Value
from mergeflow.recipe import Expression, Param, Recipe, Source, Step, load
from mergeflow.recipe.tokens import clip

_DEEPEST = 32


class Scope(NamedTuple):
    """The values of all names for one choice among some sweeps; `swept` are those that depend on the choice."""

    choice: Choice
    values: Mapping[str, Value]
    swept: Mapping[str, Value]


class Names:
    """The names of one recipe and their values, each bound once; what depends on sweeps once more for each other choice
    among them. `first` holds all names as they are with the first value of each sweep."""

    def __init__(self, bound: Bound, recipe: Recipe, prefix: str, opened: tuple[Path, ...]) -> None:
        self._bound, self._recipe, self._prefix, self._opened = bound, recipe, prefix, opened
        self._graph = _graph(recipe)
        self._order = _order(recipe, self._graph)
        self.sweeps = swept(recipe)
        self._depends = dependence(self._graph, self.sweeps)
        self.first: dict[str, Value] = {}
        self._done: dict[tuple[str, tuple[int, ...]], Value] = {}
        for name in self._order:
            self._bind_first(name)

    def sweeps_under(self, names: Iterable[str]) -> tuple[str, ...]:
        """The sweeps that something depends on which uses these names, in the order of the recipe."""
        on = {sweep for name in names for sweep in self._depends.get(name, ())}
        return tuple(sweep for sweep in self.sweeps if sweep in on)

    def unused(self, names: Iterable[str]) -> tuple[str, ...]:
        """The params that neither stand among these names nor under them."""
        found = self._under(names, self._graph)
        return tuple(name for name in self._recipe.params if name not in found)

    def words(self, choice: Choice) -> str:
        """A choice as a person would say it."""
        return words(self.sweeps, choice)

    def scopes(self, used: Iterable[str], on: Sequence[str]) -> Iterator[Scope]:
        """For each choice among the sweeps `on`, the values of `used` and all under them."""
        below = self._swept_under(used)
        for choice in choices(self.sweeps, on):
            local: dict[str, Value] = {}
            values = ChainMap(local, self.first)
            for name in below:
                key = name, self._at(name, choice)
                if key not in self._done:
                    self._keep(name, choice, self._value(name, choice, values))
                local[name] = self._done[key]
            yield Scope(choice, values if below else self.first, local)

    def _swept_under(self, used: Iterable[str]) -> list[str]:
        """The names among and under these that depend on sweeps, each after those that it uses."""
        found = self._under(used, self._depends)
        return [name for name in self._order if name in found] if found else []

    def _under(self, names: Iterable[str], among: Container[str]) -> set[str]:
        """These names and those under them, as far as they are `among` some."""
        found: set[str] = set()
        stack = [name for name in names if name in among]
        while stack:
            name = stack.pop()
            if name not in found:
                found.add(name)
                stack += [below for below in self._graph.predecessors(name) if below in among]
        return found

    def _at(self, name: str, choice: Choice) -> tuple[int, ...]:
        return tuple(choice[sweep] for sweep in self._depends[name])

    def _bind_first(self, name: str) -> None:
        choice = dict.fromkeys(self._depends.get(name, ()), 0)
        value = self._value(name, choice, self.first)
        if name in self.sweeps:
            given = self.sweeps[name].sweep
            others = [self._value(name, {**choice, name: i}, self.first) for i in range(1, len(given))]
            check_values(name, given, [value, *others])
        self.first[name] = value
        if choice:
            self._keep(name, choice, value)
        if isinstance(value, Fraction) and name in self._recipe.params and not self._varies(choice):
            self._bound.numbers[self._prefix + name] = value
        if not self._prefix and isinstance(value, Scaled) and name not in self._recipe.params:
            self._bound.nodes[name] = value.node
            if name in self._recipe.steps:
                self._bound.steps[name] = value.node

    def _varies(self, sweeps: Iterable[str]) -> bool:
        """Whether there is more than one choice, or an output at all that could say which it is of."""
        return bool(list(sweeps)) if not self._prefix else any(len(self.sweeps[s].sweep) > 1 for s in sweeps)

    def _keep(self, name: str, choice: Choice, value: Value) -> None:
        self._done[name, self._at(name, choice)] = value
        if not self._prefix and name in self._recipe.steps and isinstance(value, Scaled):
            here = {sweep: choice[sweep] for sweep in self._depends[name]}
            self._bound.variants.setdefault(name, []).append(Variant(here, self.words(here), value.node))

    def _value(self, name: str, choice: Choice, scope: Mapping[str, Value]) -> Value:
        recipe, prefix = self._recipe, self._prefix
        if name in recipe.sources:
            return _bind_source(self._bound, recipe.sources[name], name, prefix, self._opened)
        here = {sweep: choice[sweep] for sweep in self._depends.get(name, ())}
        where = self.words(here)
        with errors_at("" if [*here] == [name] else where):
            if name in recipe.steps:
                return Scaled(ONE, _bind_step(recipe.steps[name], f"{name} ({where})" if where else name, scope))
            param = recipe.params[name]
            key = f"{prefix}{name}[{where.removeprefix(f'{name} = ')}]" if where else prefix + name
            given = param.sweep[choice[name]] if param.sweep else param
            return _bind_param(self._bound, given, prefix + name, key, scope, swept=bool(param.sweep))


@contextmanager
def errors_at(where: str) -> Iterator[None]:
    """Errors say for which values of sweeps they are, when they do not yet."""
    try:
        yield
    except MergeflowError as error:
        if where and where not in error.message:
            error.message += f" (where {where})"
        raise


def _graph(recipe: Recipe) -> nx.DiGraph[str]:
    """Which names use which: edges lead from what is used."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(recipe.sources)
    graph.add_nodes_from(recipe.params)
    graph.add_nodes_from(recipe.steps)
    for name, param in recipe.params.items():
        graph.add_edges_from((used, name) for used in _param_names(param) if used in graph)
    for name, step in recipe.steps.items():
        graph.add_edges_from((used, name) for used in _step_names(step) if used in graph)
    return graph


def _order(recipe: Recipe, graph: nx.DiGraph[str]) -> list[str]:
    """All names of a recipe, each after those it uses."""
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
    names = names_in(e for e in expressions if e is not None)
    return [*names, step.like] if step.like else names


def names_in(expressions: Iterable[Expression]) -> list[str]:
    return [name for expression in expressions for name in expression.names]


def _bind_source(bound: Bound, source: Source, name: str, prefix: str, opened: tuple[Path, ...]) -> Value:
    if source.many:
        return [_bind_source(bound, s, f"{name}[{i}]", prefix, opened) for i, s in enumerate(source.many)]
    if source.recipe is not None:
        return _bind_recipe_source(bound, source, prefix + name, opened)
    bound.sources.append(SourceRef(prefix + name, source.folder / source.called, source))
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
    names = Names(bound, other, name + "/", (*opened, path))
    step = str(source.step)
    if step not in other.steps:
        raise UnknownName(f"step of {source.recipe}", step, other.steps, place=source.place)
    for sweep in names.sweeps_under([step]):
        if len(names.sweeps[sweep].sweep) > 1:
            raise RecipeError(
                f"{clip(step)} of {clip(source.recipe)} depends on the sweep {clip(sweep)}, and a source is one model",
                place=source.place,
                hint=f"choose a value: {{ recipe: {source.recipe}, step: {step}, set: {{ {sweep}: … }} }}",
            )
    return names.first[step]


def _bind_param(
    bound: Bound, param: Param, name: str, key: str, scope: Mapping[str, Value], *, swept: bool
) -> Number | Scaled:
    """A number, or (a value of a sweep) a model. A profile is kept under `key`, and called `name`."""
    if param.value is not None:
        with _preset_meant("{{ preset: {} }}"):
            value = evaluate(param.value, scope) if swept else evaluate_number(param.value, scope)
        if isinstance(value, bool) or not isinstance(value, Fraction | Varying | Scaled):
            message = "a sweep runs over numbers, profiles or models, and this is neither"
            raise RecipeError(message, place=param.value.place(0))
        return value
    with _preset_meant("preset: {}"):
        entries = tuple(
            Entry(e.selector, tuple(_constant(number, scope) for number in e.numbers), e.place) for e in param.profile
        )
    default = None if param.default is None else _constant(param.default, scope)
    bound.profiles[key] = Profile(name, entries, param.listed, default, param.place)
    return profile(key)


@contextmanager
def _preset_meant(written: str) -> Iterator[None]:
    """A name that nothing has and a preset does is answered with how presets are `written`."""
    try:
        yield
    except UnknownName as error:
        if error.name in presets():
            error.hint = f"a preset of block weights is written {written.format(error.name)}"
        raise


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
        arguments = {key: evaluate_argument(e, scope) for key, e in step.arguments.items()}
        value, place = call_method(step.method, arguments, step.place), step.place
    node: Node = Named(name, with_options(value, step.replace, step.like, scope, step.place), place)
    return Round(node, step.round) if step.round is not None else node


def with_options(
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
