"""Kernels of a graph as calls of the methods that have their names, and what its forms are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from mergeflow.exchange.draft import spelled
from mergeflow.ir.nodes import Apply, Load, Scaled, Sum
from mergeflow.methods.registry import LISTS, Method, Parameter, find
from mergeflow.plan.evaluate import evaluate
from mergeflow.recipe.expression import parse


def _said(parameter: Parameter, given: Mapping[str, Any]) -> str:
    """A kernel's number or option as an argument."""
    value = given[parameter.name]
    if isinstance(value, bool) or parameter.kind != "Number":
        return str(value).lower() if isinstance(value, bool) else str(value)
    return spelled(Fraction(str(value)))


def arguments(method: Method, given: Mapping[str, Any]) -> dict[str, str]:
    """The arguments besides models. What the kernel is not told, such as its rescaling, is left out of the method."""
    settings = [p for p in method.parameters if p.kind not in ("Model", "Delta", *LISTS)]
    found = {p.name: _said(p, given) for p in settings if p.name in given}
    for p in settings:
        if p.name == "rescale" and p.name not in given and "none" in p.choices:
            found[p.name] = "none"
    return found


def filled(method: Method, arguments: Mapping[str, str], models: list[tuple[Fraction, str]]) -> list[str]:
    """The arguments of a call: models in the order of the parameters, lists as long as there are any left for them."""
    taken: list[str] = []
    left = list(models)
    for i, p in enumerate(method.parameters):
        if p.kind in LISTS:
            behind = sum(q.kind in ("Model", "Delta", *LISTS) for q in method.parameters[i + 1 :])
            items, left = left[: len(left) - behind], left[len(left) - behind :]
            shown = [model if weight == 1 else f"{model} @ {spelled(weight)}" for weight, model in items]
            taken.append(f"{p.name}=[{', '.join(shown)}]")
        elif p.kind in ("Model", "Delta"):
            taken.append(f"{p.name}={left.pop(0)[1]}")
        elif p.name in arguments:
            taken.append(f"{p.name}={arguments[p.name]}")
    if left:
        raise ValueError
    return taken


def probe(method: Method, arguments: Mapping[str, str], count: int) -> tuple[list[int] | None, Fraction]:
    """What the method makes of so many models: for each operand of its kernel which model it is, and the factor that
    the kernel's result is multiplied by. None where its result is something else."""
    names = [f"x{i}" for i in range(count)]
    text = f"{method.name}({', '.join(filled(method, arguments, [(Fraction(1), name) for name in names]))})"
    value = evaluate(parse(text), {name: Scaled(Fraction(1), Load(i)) for i, name in enumerate(names)})
    if not isinstance(value, Scaled) or not isinstance(value.factor, Fraction) or not value.factor:
        return None, Fraction(1)
    factor, node = value.factor, value.node
    while isinstance(node, Sum) and len(node.terms) == 1 and isinstance(node.terms[0][0], Fraction):
        factor, node = factor * node.terms[0][0], node.terms[0][1]
    if not isinstance(node, Apply) or node.kernel.name != method.name or not factor:
        return None, Fraction(1)
    found = [operand.source for operand in node.operands if isinstance(operand, Load)]
    return (found if sorted(found) == list(range(count)) else None), factor


def degrees(forms: Sequence[Mapping[str, Any]]) -> list[Fraction]:
    """1 of each form that is a model, 0 of each difference. Inner forms come before those that use them."""
    found: list[Fraction] = []
    for form in forms:
        if "apply" in form:
            name = str(form["apply"])
            kernel = next(kernel for kernel in find(name).kernels if kernel.name == name)
            found.append(Fraction(kernel.result == "model"))
            continue
        degree = Fraction(0)
        for count, leaf in form["terms"]:
            kind, _, rest = str(leaf).partition(" ")
            inner = found[int(rest.rpartition(" ")[2])] if kind in ("round", "apply") else 1
            degree += Fraction(int(count), int(form["over"])) * inner
        found.append(degree)
    return found
