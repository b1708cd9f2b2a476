"""Methods by name: what a method is, how it is declared, and where it is looked up.

A method is a Python function whose body is its formula; it runs when planning, on graph values, and its parameters'
annotations say what they take:

    @method
    def add_difference(a: Model, b: Model, c: Model, m: Number = ONE) -> Model:
        '''a + (b - c)·m ...'''
        return combine([a, (b - c) * m])

What is no sum of models is made of kernels (`mergeflow.methods.kernels`), which are called like functions in such a
body and named in the declaration: `@method(TRIM)`.

Built-in methods are modules of this package; others come from installed packages through the entry point group
`mergeflow.methods` (name = the method, value = module:function), loaded only when a recipe uses the name.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, overload

from mergeflow.errors import MergeflowError, Place, UnknownName
from mergeflow.ir.kernels import Kernel, Range, Tier
from mergeflow.ir.nodes import Scaled
from mergeflow.ir.numbers import Number, decimal
from mergeflow.methods.kernels import Formula

Kind = Literal["Model", "Delta", "Models", "Deltas", "Number", "bool", "choice"]
LISTS = ("Models", "Deltas")
_BUILT_IN = (
    "linear", "sparse", "consensus", "spherical", "combined",
    "agreement", "bounds", "breadcrumbs", "dare", "della", "differences", "regions",
    "arcs", "information", "limits", "middle", "selective", "stock",
)  # fmt: skip
_TIERS: tuple[Tier, ...] = ("exact", "stable", "native")
_KINDS = "Model, Delta, Models, Deltas, Number, bool, a Literal of words"


@dataclass(frozen=True, slots=True)
class Weighted:
    """One item of a list of models: `weight` is None where the recipe gives none."""

    model: Scaled
    weight: Any  # a Number; None where none was written


Model = Annotated[Scaled, "Model"]
Delta = Annotated[Scaled, "Delta"]
Models = Annotated[list[Weighted], "Models"]
Deltas = Annotated[list[Weighted], "Deltas"]
Share = Annotated[Number, Range(Fraction(0), Fraction(1))]
Part = Annotated[Number, Range(Fraction(0), Fraction(1), above=True)]
Seed = Annotated[Number, Range(Fraction(0), Fraction((1 << 63) - 1), whole=True)]


@dataclass(frozen=True, slots=True)
class Parameter:
    """`choices` are the words that a choice is among, `range` what a number may be."""

    name: str
    kind: Kind
    required: bool
    default: Any
    choices: tuple[str, ...] = ()
    range: Range | None = None

    @property
    def shown(self) -> str:
        """The default, as it would be written."""
        if isinstance(self.default, Fraction):
            return decimal(self.default)
        return {None: "…", True: "true", False: "false"}.get(self.default, str(self.default))


@dataclass(frozen=True, slots=True)
class Method:
    """A declared method. `formula` is the first line of its documentation, `doc` the whole of it, `kernels` what it is
    made of besides sums."""

    name: str
    function: Callable[..., Scaled]
    parameters: tuple[Parameter, ...]
    formula: str
    doc: str
    kernels: tuple[Kernel, ...]

    @property
    def tier(self) -> Tier:
        """How reproducible its bytes are: as its least reproducible kernel's. Sums are exact."""
        return max((kernel.tier for kernel in self.kernels), key=_TIERS.index, default="exact")

    @property
    def signature(self) -> str:
        shown = [p.name if p.required else f"{p.name}={p.shown}" for p in self.parameters]
        return f"{self.name}({', '.join(shown)})"


_registered: dict[str, Method] = {}
F = TypeVar("F", bound=Callable[..., Scaled])


@overload
def method(*kernels: Formula) -> Callable[[F], F]: ...
@overload
def method(function: F, /) -> F: ...
def method(*given: Any) -> Any:
    """Register a method under its function's name. `@method` for sums, `@method(KERNEL, …)` for one that calls kernels.

    Raises:
        MergeflowError: a parameter without a known annotation, or no documentation.
    """
    if len(given) == 1 and not isinstance(given[0], Formula):
        return _declare(given[0], ())
    return lambda function: _declare(function, tuple(formula.kernel for formula in given))


def _declare(function: F, kernels: tuple[Kernel, ...]) -> F:
    doc, name = inspect.getdoc(function) or "", function.__name__
    if not doc:
        raise MergeflowError(f"the method {name} has no documentation: its first line is the formula")
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise MergeflowError(f"{name}: the annotation {error.name} is not known where the method is declared") from None
    parameters = tuple(_parameter(name, p, hints) for p in inspect.signature(function).parameters.values())
    _registered[name] = Method(name, function, parameters, doc.splitlines()[0], doc, kernels)
    return function


def _parameter(method: str, p: inspect.Parameter, hints: Mapping[str, Any]) -> Parameter:
    required = p.default is inspect.Parameter.empty
    default = None if required else p.default
    hint = hints.get(p.name)
    if typing.get_origin(hint) in (typing.Union, types.UnionType) and type(None) in typing.get_args(hint):
        hint = typing.Union[tuple(a for a in typing.get_args(hint) if a is not type(None))]  # noqa: UP007  # made here
    limits = None
    if typing.get_origin(hint) is Annotated:
        hint, mark = typing.get_args(hint)[:2]
        if isinstance(mark, str) and hint in (Scaled, list[Weighted]):
            return Parameter(p.name, typing.cast("Kind", mark), required, default)
        limits = mark if isinstance(mark, Range) else None
    if hint == Number:
        return Parameter(p.name, "Number", required, default, (), limits)
    if hint is bool:
        return Parameter(p.name, "bool", required, default)
    if typing.get_origin(hint) is Literal:
        return Parameter(p.name, "choice", required, default, typing.get_args(hint))
    raise MergeflowError(f"{method}: parameter {p.name} must be annotated as one of {_KINDS}")


def built_in() -> Mapping[str, Method]:
    """All methods that come with mergeflow."""
    for module in _BUILT_IN:
        importlib.import_module(f"mergeflow.methods.{module}")
    return dict(sorted(_registered.items()))


def foreign_files() -> list[Path]:
    """The files of the modules that methods in use come from and that are not mergeflow's own."""
    modules = {method.function.__module__ for method in _registered.values()}
    found = (getattr(sys.modules.get(name), "__file__", None) for name in modules if not name.startswith("mergeflow."))
    return sorted(Path(path) for path in found if path is not None)


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
