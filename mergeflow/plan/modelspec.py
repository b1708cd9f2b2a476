"""`modelspec.*` of an output: what Stability AI's ModelSpec 1.0.0 asks a file to say of itself, as far as content
tells.

No date and no author: two builds of one recipe are one file. Where the specification demands what no header shows
(which Stable Diffusion 2 it is), the recipe's `metadata:` has to say it; whatever that says wins.
"""

from __future__ import annotations

from collections.abc import Mapping

from mergeflow.arch import Architecture, variant
from mergeflow.errors import RecipeError
from mergeflow.formats.layout import TENSOR_HASH, UNKNOWN_HASH
from mergeflow.ir.numbers import decimal
from mergeflow.plan.facts import Facts
from mergeflow.plan.originals import Originals
from mergeflow.plan.resolve import Resolved
from mergeflow.plan.webui import TITLE, Shapes, in_order, usual_terms
from mergeflow.recipe import Output, Recipe

VERSION = "1.0.0"
_STABILITY = "https://github.com/Stability-AI/generative-models"
_FLUX = "https://github.com/black-forest-labs/flux"
_MARKERS = ("v-prediction", "zero-terminal-snr")  # variants that change how a model is used and not what it is

# (architecture, variant) -> id, implementation, resolution
_KNOWN = {
    ("sd1", ""): ("stable-diffusion-v1", _STABILITY, "512x512"),
    ("sd1", "inpainting"): ("stable-diffusion-v1-inpainting", _STABILITY, "512x512"),
    ("sd2", "depth"): ("stable-diffusion-v2-depth", _STABILITY, "512x512"),
    ("sdxl", ""): ("stable-diffusion-xl-v1-base", _STABILITY, "1024x1024"),
    ("sdxl-refiner", ""): ("stable-diffusion-xl-v1-refiner", _STABILITY, "1024x1024"),
    ("flux", "guided"): ("flux-1-dev", _FLUX, "1024x1024"),
}
_NEEDED = ("modelspec.architecture", "modelspec.implementation")


def modelspec(
    recipe: Recipe, resolved: Resolved, facts: Facts, output: Output, shapes: Shapes, originals: Originals
) -> dict[str, str]:
    """The entries, but for what the output's `metadata:` says itself. The hash of the tensors is filled in at the end.

    Raises:
        RecipeError: the specification demands what cannot be told from the tensors, and the recipe does not say it.
    """
    special, _ = variant(shapes)
    found = {"modelspec.sai_model_spec": VERSION, TITLE: recipe.name or _formula(resolved, facts, originals)}
    known = _KNOWN.get((resolved.architecture.name, _kind(resolved.architecture, special, shapes)))
    if known is not None and not resolved.delta:
        found |= zip((*_NEEDED, "modelspec.resolution"), known, strict=True)
    elif missing := [name for name in _NEEDED if name not in output.metadata]:
        what = "a difference of models" if resolved.delta else f"{resolved.architecture.title} {special}".strip()
        raise RecipeError(
            f"metadata_for: modelspec needs {' and '.join(missing)}, which tensors do not tell of {what}",
            hint="write it under metadata:, for example modelspec.architecture: stable-diffusion-v2-768-v",
            place=output.place,
        )
    if "v-prediction" in special:
        found["modelspec.prediction_type"] = "v"
    if recipe.description:
        found["modelspec.description"] = recipe.description
    if recipe.license:
        found["modelspec.license"] = recipe.license
    used = in_order(resolved, facts)
    if len(used) > 1:
        found["modelspec.merged_from"] = ", ".join(_title(i, facts, originals).replace(",", " ") for i in used)
    found[TENSOR_HASH] = UNKNOWN_HASH
    return {name: value for name, value in found.items() if name not in output.metadata}


def _kind(architecture: Architecture, special: str, shapes: Mapping[str, object]) -> str:
    """The variant as far as it decides the id."""
    parts = [part for part in special.split(" + ") if part and part not in _MARKERS]
    if architecture.name == "flux" and any(name.endswith("guidance_in.in_layer.weight") for name in shapes):
        parts.append("guided")
    return " + ".join(parts)


def _title(source: int, facts: Facts, originals: Originals) -> str:
    """What a file calls itself, else ten digits of its model digest."""
    return originals.metadata(source).get(TITLE) or facts[source].model.removeprefix("b3:")[:10]


def _formula(resolved: Resolved, facts: Facts, originals: Originals) -> str:
    """A title for what has none: `0.7(…) + 0.3(…)`, as the webui calls a merge."""
    shown = ""
    for share, i in usual_terms(resolved, facts):
        sign = " - " if share < 0 else " + " if shown else ""
        shown += f"{sign}{decimal(abs(share))}({_title(i, facts, originals)})"
    return shown or "a merge of " + ", ".join(_title(i, facts, originals) for i in in_order(resolved, facts))
