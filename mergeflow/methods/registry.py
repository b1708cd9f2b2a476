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
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, overload

from mergeflow.errors import MergeflowError, Place, UnknownName
from mergeflow.ir.kernels import Kernel, Range, Tier
from mergeflow.ir.nodes import Scaled
from mergeflow.ir.numbers import Number, decimal
from mergeflow.methods import plugins
from mergeflow.methods.kernels import Formula

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

Kind = Literal["Model", "Delta", "Models", "Deltas", "Number", "bool", "choice"]
LISTS = ("Models", "Deltas")
_BUILT_IN = (
    "linear", "sparse", "consensus", "spherical", "combined",
    "adjust", "agreement", "bounds", "breadcrumbs", "choosing", "dare", "della", "differences", "regions",
    "arcs", "cosines", "fusion", "information", "limits", "lowrank", "mergekit", "mergekit_values",
    "middle", "orders", "selective", "smooth", "stock",
)  # fmt: skip
_TIERS: tuple[Tier, ...] = ("exact", "stable", "native")
_EXAMPLE = re.compile(r"^Example: `(.+)`$", re.MULTILINE)
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
    def examples(self) -> tuple[str, ...]:
        """Expressions that work, where each name is a model: what lines `Example: `…`` of the documentation show."""
        return tuple(_EXAMPLE.findall(self.doc))

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
        MergeflowError: a parameter without a known annotation, no documentation, or a name that is taken.
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
    known = _registered.get(name)
    if known is not None and known.function.__module__ != function.__module__:
        raise MergeflowError(
            f"two methods are called {name}: one of {known.function.__module__}, one of {function.__module__}",
            hint=f"give yours a name of its own, such as my_{name}",
        )
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
    """The files of the packages that methods in use come from and that are not mergeflow's own."""
    modules = {method.function.__module__ for method in _registered.values()}
    return sorted({path for name in modules if not name.startswith("mergeflow.") for path in plugins.files_of(name)})


def find(name: str, place: Place | None = None) -> Method:
    """The method of this name, from mergeflow or from an installed plugin.

    Raises:
        UnknownName: nothing is called so; the nearest names are the hint.
        MergeflowError: a package offers it and cannot be loaded, or several do.
    """
    known = built_in()
    if name in known:
        return known[name]
    offered = plugins.entry_points()
    if name in offered:
        return _offered(name, offered[name])
    raise UnknownName("method", name, [*known, *offered], place=place, hint="`mergeflow methods` lists them")


def of_plugins() -> Iterator[tuple[str, Method | MergeflowError]]:
    """The methods of installed packages, by name; the error where one of them cannot be had."""
    known = built_in()
    for name, points in plugins.entry_points().items():
        try:
            own = known.get(name)
            if own is not None and own.function.__module__.startswith("mergeflow."):
                raise MergeflowError(
                    f"{plugins.origin(points[0])} has a method called {name}, as mergeflow has",
                    hint=f"recipes mean mergeflow's; give the other a name of its own, such as my_{name}",
                )
            yield name, _offered(name, points)
        except MergeflowError as error:
            yield name, error


def origin_of(method: Method) -> str:
    """The package that a method comes from, with its version where it is not mergeflow."""
    module = method.function.__module__
    if module.startswith("mergeflow."):
        return "mergeflow"
    points = plugins.entry_points().get(method.name, ())
    return plugins.origin(points[0]) if points else module


def _offered(name: str, points: Sequence[EntryPoint]) -> Method:
    function = plugins.load(name, points)
    found = _registered.get(name)
    if found is None or found.function is not function:
        raise MergeflowError(
            f"{plugins.origin(points[0])} offers the method {name}, but {points[0].value} does not declare it",
            hint="the entry point, the function and the method have one name; @method declares it",
        )
    return found
