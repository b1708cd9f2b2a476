"""What an output says to other tools, on request (`metadata_for:`)."""

from __future__ import annotations

from collections.abc import Sequence

from mergeflow.plan.bound import Bound
from mergeflow.plan.facts import Facts
from mergeflow.plan.modelspec import modelspec
from mergeflow.plan.originals import Originals
from mergeflow.plan.program import TensorWork
from mergeflow.plan.resolve import Resolved
from mergeflow.plan.webui import merge_recipe
from mergeflow.recipe import Output


def announced(
    bound: Bound, output: Output, resolved: Resolved, works: Sequence[TensorWork], facts: Facts, originals: Originals
) -> dict[str, str]:
    """Metadata for the tools that the output names, with the recipe's own `metadata:`, which wins.

    Raises:
        RecipeError: a tool wants to be told what nobody knows.
    """
    found: dict[str, str] = {}
    shapes = {w.name: w.shape for w in works}
    if "a1111" in output.metadata_for:
        found |= merge_recipe(resolved, facts, output, shapes, originals)
    if "modelspec" in output.metadata_for:
        found |= modelspec(bound.recipe, resolved, facts, output, shapes, originals)
    return {**found, **output.metadata}
