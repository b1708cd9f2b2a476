"""The front of all exporters."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mergeflow.exchange import to_mergekit, to_runs, to_text
from mergeflow.exchange.outline import Exported
from mergeflow.recipe import Recipe

FORMS: Mapping[str, Callable[[Recipe, str | None], Exported]] = {
    "mergekit": to_mergekit.export,
    "a1111-steps": to_runs.export,
    "text": to_text.export,
}


def write(recipe: Recipe, to: str, wanted: str | None = None) -> Exported:
    """A recipe's output in the form `to`, one of FORMS.

    Raises:
        RecipeError: what cannot be said in that form, with its place in the recipe.
    """
    return FORMS[to](recipe, wanted)
