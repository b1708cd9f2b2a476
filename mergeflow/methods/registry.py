"""Methods by name: what a method is, how it is declared, and where it is looked up.

A linear method is a Python function whose body is its formula; it runs when planning, on graph values, and its
parameters' annotations say what they take:

    @method
    def add_difference(a: Model, b: Model, c: Model, m: Number = ONE) -> Model:
        '''a + (b - c)·m ...'''
        return combine([a, (b - c) * m])

Built-in methods are modules of this package; others come from installed packages through the entry point group
`mergeflow.methods` (name = the method, value = module:function), loaded only when a recipe uses the name.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mergeflow.errors import MergeflowError, Place, UnknownName
from mergeflow.ir.nodes import Scaled

Model = Scaled
Kind = Literal["Model", "Models", "Number", "bool"]
_BUILT_IN = ("mergeflow.methods.linear",)
_KINDS: tuple[Kind, ...] = ("Model", "Models", "Number", "bool")


@dataclass(frozen=True, slots=True)
class Weighted:
    """One item of a list of models: `weight` is None where the recipe gives none."""

    model: Model
    weight: Any  # a Number; None where none was written


Models = list[Weighted]


@dataclass(frozen=True, slots=True)
class Parameter:
    name: str
    kind: Kind
    required: bool
    default: Any


@dataclass(frozen=True, slots=True)
class Method:
    """A declared method. `formula` is the first line of its documentation, `doc` the whole of it."""

    name: str
    function: Callable[..., Scaled]
    parameters: tuple[Parameter, ...]
    formula: str
    doc: str
    tier: Literal["exact", "stable", "native"]

    @property
    def signature(self) -> str:
        shown = [p.name if p.required else f"{p.name}={_show(p.default)}" for p in self.parameters]
        return f"{self.name}({', '.join(shown)})"


_registered: dict[str, Method] = {}


def method(function: Callable[..., Scaled]) -> Callable[..., Scaled]:
    """Register a linear method (tier exact) under its function's name.

    Raises:
        MergeflowError: a parameter without a known annotation, or no documentation.
    """
    doc = inspect.getdoc(function) or ""
    if not doc:
        raise MergeflowError(f"the method {function.__name__} has no documentation: its first line is the formula")
    parameters = []
    for p in inspect.signature(function).parameters.values():
        kind = p.annotation if isinstance(p.annotation, str) else getattr(p.annotation, "__name__", "")
        if kind not in _KINDS:
            raise MergeflowError(
                f"{function.__name__}: parameter {p.name} must be annotated as one of {', '.join(_KINDS)}"
            )
        required = p.default is inspect.Parameter.empty
        parameters.append(Parameter(p.name, kind, required, None if required else p.default))
    name = function.__name__
    _registered[name] = Method(name, function, tuple(parameters), doc.splitlines()[0], doc, "exact")
    return function


def built_in() -> Mapping[str, Method]:
    """All methods that come with mergeflow."""
    for module in _BUILT_IN:
        importlib.import_module(module)
    return dict(sorted(_registered.items()))


def find(name: str, place: Place | None = None) -> Method:
    """The method of this name, from mergeflow or from an installed plugin.

    Raises:
        UnknownName: nothing is called so; the nearest names are the hint.
    """
    known = built_in()
    if name in known:
        return known[name]
    from importlib.metadata import entry_points  # slow to import, and most recipes never come here

    plugins = {point.name: point for point in entry_points(group="mergeflow.methods")}
    if name in plugins:
        plugins[name].load()
        if name in _registered:
            return _registered[name]
        raise MergeflowError(f"the plugin {plugins[name].value} does not declare a method called {name}")
    raise UnknownName("method", name, [*known, *plugins], place=place, hint="`mergeflow methods` lists them")


def _show(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
