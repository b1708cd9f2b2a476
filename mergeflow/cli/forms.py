"""Normal forms of steps and outputs as text, by the names that the recipe gives its sources and steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

from mergeflow.errors import RecipeError
from mergeflow.ir.analysis import Analysis, Case
from mergeflow.ir.forms import Applied, Form, Rounded
from mergeflow.ir.nodes import Node, Pick, Replace, Round, topological
from mergeflow.ir.numbers import Varying, decimal, profiles_in
from mergeflow.plan.assertions import canonical
from mergeflow.plan.dependencies import variants
from mergeflow.plan.plans import Plan
from mergeflow.plan.text import form_text
from mergeflow.tensors import DType

VALUES = 4  # of a profile, for which a step's form is shown
NO_COMPONENTS: frozenset[str] = frozenset()


class Forms:
    """Forms as text. A rounding point is called by the step that rounds there, once that step is known."""

    def __init__(self, plan: Plan) -> None:
        self._label = {i: facts.name for i, facts in plan.facts.items()}
        models = {i: facts.model for i, facts in plan.facts.items()}
        self.same = {i: min(j for j in models if models[j] == model) for i, model in models.items()}
        self._rounded: dict[tuple[object, DType], str] = {}
        self._numbers: dict[object, int] = {}  # of inner forms

    def identity(self, form: Form) -> object:
        """Equal for equal forms."""
        return canonical(form, self.same, self._numbers)

    def name(self, step: str, form: Form, dtype: DType) -> None:
        self._rounded.setdefault((self.identity(form), dtype), step)

    def text(self, form: Form) -> str:
        return form_text(form, self._label.__getitem__, self._point)

    def _point(self, point: Rounded | Applied) -> str:
        """The step that rounds there; '' where there is none."""
        if isinstance(point, Applied) or point.dtype is None:
            return ""
        return self._rounded.get((self.identity(point.form), point.dtype), "")


class Steps:
    """The normal forms of steps. Where a form depends on a sweep, a profile or a component, it is taken for each value,
    up to a few."""

    def __init__(self, plan: Plan, steps: Sequence[str], forms: Forms) -> None:
        self._plan, self._texts = plan, forms
        used = variants(plan.bound, (output.path for output in plan.outputs))
        self._more = {name: max(0, len(used[name]) - VALUES) for name in steps}
        self._variants = {name: used[name][:VALUES] for name in steps}
        self._order = topological([variant.node for several in self._variants.values() for variant in several])
        self._deltas = frozenset(i for i, facts in plan.facts.items() if facts.delta)
        self._values = _values(plan)
        self._depends = _dependence(self._order)
        self._filled = _filled(self._order)
        self._analyses: dict[tuple[tuple[tuple[str, Fraction], ...], frozenset[str]], Analysis] = {}

    def described(self, steps: Sequence[str]) -> Iterator[dict[str, Any]]:
        seen: dict[object, str] = {}
        for name in steps:
            try:
                lines, identity = self._forms(name)
            except RecipeError:  # values that no tensor has may not add up
                yield {"name": name, "forms": [], "same_as": None, "more": 0}
                continue
            first = seen.setdefault(identity, name)
            same_as = first if first != name else None
            yield {"name": name, "forms": lines, "same_as": same_as, "more": self._more[name]}

    def _forms(self, name: str) -> tuple[list[dict[str, str]], object]:
        lines: list[dict[str, str]] = []
        identity: list[object] = []
        for variant in self._variants[name]:
            here, what = self._variant_forms(name, variant.node)
            for line in here:
                where = [part for part in (variant.where, line["where"].removeprefix("where ")) if part]
                lines.append({**line, "where": f"where {', '.join(where)}" if variant.where else line["where"]})
            identity.append(what)
        if self._more[name]:
            identity.append(name)  # what is left out may differ
        return lines, tuple(identity)

    def _variant_forms(self, name: str, node: Node) -> tuple[list[dict[str, str]], object]:
        dtype = node.dtype if isinstance(node, Round) else None
        profiles, parts = self._depends[id(node)]
        usual = {name: values[0] for name, values in self._values.items()}
        cases = [(where, {**usual, **values}, NO_COMPONENTS) for where, values in self._combinations(sorted(profiles))]
        cases += [(f"in {part}", cases[0][1], frozenset({part})) for part in sorted(parts)]
        lines: list[dict[str, str]] = []
        identity: list[object] = []
        for where, values_here, components in cases:
            analysis = self._analysis(values_here, components)
            form = analysis.form(node)
            what: tuple[object, ...] = (
                self._texts.identity(form),
                self._texts.same[analysis.primary(node)],
                dtype,
                where,
            )
            text = self._texts.text(form)
            if dtype is not None:
                self._texts.name(name, form, dtype)
                text += f", rounded to {dtype.label}"
            if id(node) in self._filled:
                text += ", filled up where it lacks tensors"
                what = (*what, name)  # equal forms may be filled up from others
            if not (lines and components and text == lines[0]["form"]):
                lines.append({"form": text, "where": where})
                identity.append(what)
        return lines, tuple(identity)

    def _combinations(self, profiles: Sequence[str]) -> list[tuple[str, dict[str, Fraction]]]:
        """The values that these profiles have together for some tensor, the most frequent first."""
        for output in self._plan.outputs:
            tables = output.resolved.tables
            if profiles and all(name in tables for name in profiles):
                found = Counter(zip(*(tables[name].values for name in profiles), strict=True))
                several = [dict(zip(profiles, values, strict=True)) for values, _ in found.most_common(VALUES)]
                return [(_where(values), values) for values in several]
        values = {name: self._values[name][0] for name in profiles}
        return [(_where(values), values)]

    def _analysis(self, values: dict[str, Fraction], components: frozenset[str]) -> Analysis:
        key = (tuple(sorted(values.items())), components)
        if key not in self._analyses:
            self._analyses[key] = Analysis(self._order, Case(frozenset(), values, components), self._deltas)
        return self._analyses[key]


def _where(values: Mapping[str, Fraction]) -> str:
    shown = ", ".join(f"{name} is {decimal(value)}" for name, value in values.items())
    return f"where {shown}" if shown else ""


def _values(plan: Plan) -> dict[str, list[Fraction]]:
    """The values that each profile has for some tensor, the most frequent first; declared ones where none is used."""
    found: dict[str, list[Fraction]] = {}
    for output in plan.outputs:
        for name, table in output.resolved.tables.items():
            found.setdefault(name, [value for value, _ in Counter(table.values).most_common()])
    for name, profile in plan.bound.profiles.items():
        found.setdefault(name, [profile.sample])
    return found


def _dependence(order: Sequence[Node]) -> dict[int, tuple[frozenset[str], frozenset[str]]]:
    """For each node, the profiles and the replaced components that its value depends on."""
    found: dict[int, tuple[frozenset[str], frozenset[str]]] = {}
    for node in order:
        profiles, parts = set[str](), set[str]()
        for inner in node.inputs():
            profiles |= found[id(inner)][0]
            parts |= found[id(inner)][1]
        for number in node.numbers():
            profiles |= profiles_in(number) if isinstance(number, Varying) else set()
        if isinstance(node, Replace):
            parts |= {part for part, _ in node.parts}
        found[id(node)] = (frozenset(profiles), frozenset(parts))
    return found


def _filled(order: Sequence[Node]) -> frozenset[int]:
    """The nodes with tensors that a fallback gives them."""
    found: set[int] = set()
    for node in order:
        if (isinstance(node, Pick) and node.fills) or any(id(inner) in found for inner in node.inputs()):
            found.add(id(node))
    return frozenset(found)
