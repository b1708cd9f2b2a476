"""Assertions of a recipe: whether two expressions have the same normal forms, whatever they are written like."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from mergeflow.errors import RecipeError
from mergeflow.ir.forms import Applied, Form, inner_first
from mergeflow.ir.nodes import Sum
from mergeflow.plan.bound import Bound, Claim
from mergeflow.plan.cases import all_names, cases_of, first_analysis, graph_of
from mergeflow.plan.facts import Facts
from mergeflow.plan.profiles import resolve
from mergeflow.plan.resolve import architecture_of
from mergeflow.tensors import BY_LABEL, DType


def check_claim(bound: Bound, claim: Claim, facts: Facts) -> str:
    """Whether the two sides of an assertion have the same normal forms. Returns a note when only primaries differ.

    Raises:
        RecipeError: they have not; the message shows both.
    """
    both = Sum([(Fraction(1), claim.left), (Fraction(1), claim.right)])
    graph = graph_of(both, facts)
    start = first_analysis(graph, bound.profiles)
    primary = start.primary(claim.left)
    architecture = architecture_of(bound, facts[primary])
    names = all_names(graph, facts) if graph.filled else list(facts[primary].tensors)
    tables = {name: resolve(bound.profiles[name], names, architecture) for name in sorted(graph.profiles)}
    _, analyses = cases_of(graph, names, facts, tables, architecture, start)
    label = {i: facts[i].name for i in graph.sources}
    same = {i: min(j for j in graph.sources if facts[j].model == facts[i].model) for i in graph.sources}
    for analysis, _ in analyses:
        numbers: dict[object, int] = {}
        left, right = (canonical(analysis.form(side), same, numbers) for side in (claim.left, claim.right))
        if left != right:
            raise RecipeError(
                f"the assertion does not hold: {claim.text}",
                place=claim.place,
                hint=f"left is {_shown(left, label)}, right is {_shown(right, label)}",
            )
    if start.primary(claim.left) != start.primary(claim.right):
        return f"{claim.text}: the sums are equal, but the first takes its tensors from {facts[primary].name}"
    return ""


Canonical = tuple[tuple[Fraction, object], ...]


def canonical(form: Form, same: Mapping[int, int], numbers: dict[object, int]) -> Canonical:
    """A form as plain tuples. With the same `numbers` they compare equal exactly when the forms are: each inner form,
    wherever it is met first, is known by its number there. `same` maps equal sources to one."""
    seen: dict[tuple[int, DType | None, DType], int] = {}
    result: Canonical = ()
    for point in inner_first(form, DType.F64):
        if isinstance(point.leaf, Applied):
            call = _call(point.leaf, [seen[part.identity] for part in point.parts()])
            seen[point.identity] = numbers.setdefault(call, len(numbers))
            continue
        shares: dict[object, Fraction] = {}
        for share, leaf in point.leaf.form.terms:
            if isinstance(leaf, int):
                key: object = same[leaf]
            else:
                what = leaf.kernel.name if isinstance(leaf, Applied) else str(leaf.dtype and leaf.dtype.label)
                key = ("inner", seen[point.within(leaf).identity], what)
            shares[key] = shares.get(key, Fraction(0)) + share
        result = tuple(sorted(((s, k) for k, s in shares.items() if s), key=lambda t: str(t[1])))
        seen[point.identity] = numbers.setdefault(result, len(numbers))
    return result


def _call(leaf: Applied, operands: list[int]) -> tuple[object, ...]:
    """What a kernel is applied with, by value; operands are known by numbers."""
    weights = leaf.weights or (Fraction(1),) * len(operands)
    taken = list(zip(weights, operands, strict=True))
    kernel = leaf.kernel
    return kernel.name, kernel.version, leaf.arguments, leaf.options, *(sorted(taken) if kernel.symmetric else taken)


def _shown(form: Canonical, label: Mapping[int, str]) -> str:
    from mergeflow.plan.text import join_terms

    return join_terms([(s, label[k] if isinstance(k, int) else f"({_kind(k)})") for s, k in form if s])


def _kind(key: object) -> str:
    """What an inner form shows as: the kernel that makes it, or that it is rounded."""
    assert isinstance(key, tuple)
    return "rounded" if key[2] in BY_LABEL else f"{key[2]} …"
