"""A plan as plain data, ready for JSON: what `plan` prints, on the terminal too. It decides nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

from mergeflow.errors import RecipeError
from mergeflow.ir.forms import Analysis, Case, Form, Rounded
from mergeflow.ir.nodes import Node, Replace, Round, Sum, topological
from mergeflow.ir.numbers import Varying, decimal, profiles_in
from mergeflow.plan.planner import OutputPlan, Plan
from mergeflow.plan.program import COPY, ZERO, Program, TensorWork
from mergeflow.plan.resolve import canonical
from mergeflow.plan.text import join_terms
from mergeflow.tensors import DType

VALUES = 4  # of a profile, for which a step's form is shown
NO_COMPONENTS: frozenset[str] = frozenset()


def describe(plan: Plan, most_steps: int | None = None) -> dict[str, Any]:
    """Sources, params, steps with their normal forms (the first `most_steps`), outputs with everything decided."""
    steps = [name for name in plan.bound.steps if name in plan.graph]
    forms = _Forms(plan)
    described = list(_Steps(plan, steps, forms).described(steps[:most_steps]))
    return {
        "recipe": str(plan.bound.recipe.path) if plan.bound.recipe.path else None,
        "sources": [_source(plan, i) for i in plan.facts],
        "params": {name: decimal(value) for name, value in plan.bound.numbers.items()},
        "profiles": _profiles(plan),
        "steps": described,
        "steps_left_out": max(0, len(steps) - len(steps[:most_steps])),
        "unused_steps": [name for name in plan.bound.steps if name not in plan.graph],
        "outputs": [_output(plan, output, forms) for output in plan.outputs],
        "notes": list(plan.notes),
    }


def _source(plan: Plan, number: int) -> dict[str, Any]:
    facts = plan.facts[number]
    dtypes = Counter(t.dtype.label for t in facts.tensors.values())
    return {
        "name": facts.name,
        "path": str(facts.path),
        "digest": facts.model,
        "tensors": len(facts.tensors),
        "bytes": sum(t.nbytes for t in facts.tensors.values()),
        "dtypes": [label for label, _ in dtypes.most_common()],
        "architecture": facts.architecture.name,
        "kind": "delta" if facts.delta else "model",
    }


def _profiles(plan: Plan) -> dict[str, list[dict[str, Any]]]:
    """What each profile came to, by the first output that uses it."""
    found: dict[str, list[dict[str, Any]]] = {}
    for output in plan.outputs:
        for name, table in output.resolved.tables.items():
            rows = [{"selector": s, "value": decimal(value), "tensors": n} for s, value, n in table.counts]
            found.setdefault(name, rows)
    return found


class _Forms:
    """Forms as text. A rounding point is called by the step that rounds there, once that step is known."""

    def __init__(self, plan: Plan) -> None:
        self._label = {i: facts.name for i, facts in plan.facts.items()}
        models = {i: facts.model for i, facts in plan.facts.items()}
        self.same = {i: min(j for j in models if models[j] == model) for i, model in models.items()}
        self._rounded: dict[tuple[object, DType], str] = {}

    def identity(self, form: Form) -> object:
        """Equal for equal forms."""
        return canonical(form, self.same)

    def name(self, step: str, form: Form, dtype: DType) -> None:
        self._rounded.setdefault((self.identity(form), dtype), step)

    def text(self, form: Form) -> str:
        terms = [
            (share, self._label[leaf] if isinstance(leaf, int) else self._point(leaf)) for share, leaf in form.terms
        ]
        return join_terms(sorted(terms, key=lambda term: (-term[0], term[1])))

    def _point(self, point: Rounded) -> str:
        return self._rounded.get((self.identity(point.form), point.dtype), f"round({point.dtype.label})")


class _Steps:
    """The normal forms of steps. Where a form depends on a profile or a component, it is taken for each value."""

    def __init__(self, plan: Plan, steps: Sequence[str], forms: _Forms) -> None:
        self._nodes, self._texts = plan.bound.steps, forms
        self._order = topological([self._nodes[name] for name in steps])
        self._deltas = frozenset(i for i, facts in plan.facts.items() if facts.delta)
        self._values = _values(plan)
        self._depends = _dependence(self._order)
        self._analyses: dict[tuple[tuple[tuple[str, Fraction], ...], frozenset[str]], Analysis] = {}

    def described(self, steps: Sequence[str]) -> Iterator[dict[str, Any]]:
        seen: dict[object, str] = {}
        for name in steps:
            try:
                lines, identity = self._forms(name)
            except RecipeError:  # values that no tensor has may not add up
                yield {"name": name, "forms": [], "same_as": None}
                continue
            first = seen.setdefault(identity, name)
            yield {"name": name, "forms": lines, "same_as": first if first != name else None}

    def _forms(self, name: str) -> tuple[list[dict[str, str]], object]:
        node = self._nodes[name]
        dtype = node.dtype if isinstance(node, Round) else None
        profiles, parts = self._depends[id(node)]
        usual = {name: values[0] for name, values in self._values.items()}
        cases: list[tuple[str, dict[str, Fraction], frozenset[str]]] = [("", usual, NO_COMPONENTS)]
        if len(profiles) == 1:
            (k,) = profiles
            values = self._values.get(k, [])[:VALUES]
            cases = [(f"where {k} is {decimal(v)}", {**usual, k: v}, NO_COMPONENTS) for v in values]
        elif profiles:
            shown = ", ".join(f"{k} is {decimal(usual[k])}" for k in sorted(profiles) if k in usual)
            cases = [(f"where {shown}", usual, NO_COMPONENTS)]
        cases += [(f"in {part}", usual, frozenset({part})) for part in sorted(parts)]
        lines: list[dict[str, str]] = []
        identity: list[object] = []
        for where, values_here, components in cases:
            analysis = self._analysis(values_here, components)
            form = analysis.form(node)
            what = (self._texts.identity(form), self._texts.same[analysis.primary(node)], dtype, where)
            text = self._texts.text(form)
            if dtype is not None:
                self._texts.name(name, form, dtype)
                text += f", rounded to {dtype.label}"
            if not (lines and components and text == lines[0]["form"]):
                lines.append({"form": text, "where": where})
                identity.append(what)
        return lines, tuple(identity)

    def _analysis(self, values: dict[str, Fraction], components: frozenset[str]) -> Analysis:
        key = (tuple(sorted(values.items())), components)
        if key not in self._analyses:
            self._analyses[key] = Analysis(self._order, Case(frozenset(), values, components), self._deltas)
        return self._analyses[key]


def _values(plan: Plan) -> dict[str, list[Fraction]]:
    """The values that each profile has for some tensor, the most frequent first; declared ones where none is used."""
    found: dict[str, list[Fraction]] = {}
    for output in plan.outputs:
        for name, table in output.resolved.tables.items():
            found.setdefault(name, [value for value, _ in Counter(table.values).most_common()])
    for name, profile in plan.bound.profiles.items():
        declared = [profile.default] if profile.default is not None else []
        found.setdefault(name, [*declared, *(value for _, value, _ in profile.entries)])
    return found


def _dependence(order: Sequence[Node]) -> dict[int, tuple[frozenset[str], frozenset[str]]]:
    """For each node, the profiles and the replaced components that its value depends on."""
    found: dict[int, tuple[frozenset[str], frozenset[str]]] = {}
    for node in order:
        profiles, parts = set[str](), set[str]()
        for inner in node.inputs():
            profiles |= found[id(inner)][0]
            parts |= found[id(inner)][1]
        if isinstance(node, Sum):
            for share, _ in node.terms:
                profiles |= profiles_in(share) if isinstance(share, Varying) else set()
        elif isinstance(node, Replace):
            parts |= {part for part, _ in node.parts}
        found[id(node)] = (frozenset(profiles), frozenset(parts))
    return found


def _output(plan: Plan, output: OutputPlan, forms: _Forms) -> dict[str, Any]:
    resolved, placement = output.resolved, output.placement
    texts = [forms.text(form) for form in resolved.forms]
    shown = Counter(texts[case] for case in resolved.cases)
    dtypes: Counter[str] = Counter()
    for work in output.works:
        dtypes[work.dtype.label] += work.nbytes
    return {
        "path": output.path,
        "file": str(output.target),
        "build": output.build,
        "reason": output.reason,
        "key": output.key,
        "forms": [{"form": text, "tensors": n} for text, n in shown.most_common()],
        "kind": "delta" if resolved.delta else "model",
        "primary": plan.facts[resolved.primary].name,
        "architecture": resolved.architecture.name,
        "tensors": dict(Counter(_how(work, plan.programs) for work in output.works)),
        "dtypes": [label for label, _ in dtypes.most_common()],
        "bytes_read": output.bytes_read,
        "bytes_written": output.layout.file_size,
        "placement": placement
        and {name: getattr(placement, name) for name in ("device", "strategy", "workers", "unit", "tile", "peak")},
        "warnings": list(output.warnings),
    }


def _how(work: TensorWork, programs: Sequence[Program]) -> str:
    """How one tensor comes to be."""
    if work.program in (COPY, ZERO):
        return "copied" if work.program == COPY else "zero"
    ops = programs[work.program].ops
    cast = len(ops) == 1 and ops[0].divisor == 1 and ops[0].terms == ((Fraction(1), 0),)
    return "cast" if cast else "computed"
