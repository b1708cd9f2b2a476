"""The runs of a checkpoint merger that a graph lists, where an output was built under the policy `a1111`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

from mergeflow.exchange.draft import Draft, Value, spelled
from mergeflow.recipe.expression import spell


def merges(moves: Sequence[Sequence[str | int]], draft: Draft, source: Callable[[str], str], *, cast: bool) -> str:
    """Steps of all runs; the name of what the last one makes. `source` names a model by its digest; `cast`: the output
    says its dtype, so that the last rounding is its."""
    names: list[str] = []
    for i, (what, *given) in enumerate(moves):
        if what == "model":
            names.append(source(str(given[0])))
            continue
        models = [names[int(n)] for n in (given if what == "half" else given[:-1])]
        if what == "half":
            if i == len(moves) - 1 and cast:
                names.append(models[0])
                continue
            value: Value = {"expr": models[0], "round": "float16"}
        elif what == "weighted sum":
            value = f"weighted_sum({models[0]}, {models[1]}, {_exact(given[-1])})"
        else:
            value = f"{models[0]} + ({models[1]} - {models[2]}) * {_exact(given[-1])}"
        names.append(spell(draft.step(f"run_{i}", value)))
    return names[-1]


def _exact(multiplier: str | int) -> str:
    """A multiplier as that merger has it, a float by its shortest decimal."""
    return spelled(Fraction(multiplier))
