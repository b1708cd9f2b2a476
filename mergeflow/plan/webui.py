"""The merge recipe as A1111's webui reads it: `sd_merge_recipe` and `sd_merge_models`, two texts of JSON.

The webui shows them, and copies the second into what it merges itself, so that the whole ancestry of a model stays
known by the sha256 of its files. That makes the bytes depend on which files the sources are, and not only on their
tensors; an output has it on request alone. Fields that the webui fills with names are empty: nothing here was typed by
anybody, but for titles that the files carry themselves. `type` is mergeflow, and `terms` (absent in the webui's own)
are the sum.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple

from mergeflow.arch import variant
from mergeflow.ir.forms import sources_in
from mergeflow.ir.numbers import decimal
from mergeflow.plan.facts import Facts
from mergeflow.plan.originals import Originals
from mergeflow.plan.resolve import Resolved
from mergeflow.recipe import Output
from mergeflow.tensors import DType

RECIPE, MODELS = "sd_merge_recipe", "sd_merge_models"
TITLE = "modelspec.title"
Shapes = Mapping[str, tuple[int, ...]]


class _Merge(NamedTuple):
    """A sum as the webui's merger has it: its method, the multiplier, and models A, B, C."""

    method: str
    multiplier: Fraction | None
    models: tuple[int, ...]


def merge_recipe(
    resolved: Resolved, facts: Facts, output: Output, shapes: Shapes, originals: Originals
) -> dict[str, str]:
    """The two entries. Reads the files of the sources to hash them, where that was not done before."""
    terms = usual_terms(resolved, facts)
    used = in_order(resolved, facts)
    merge = _recognised(terms, resolved.primary) or _Merge("", None, tuple(used[:3]))
    hashes = {i: originals.hashes(i) for i in used}
    sha256 = {i: found[0] if found else None for i, found in hashes.items()}
    first, second, third = (*(sha256[i] for i in merge.models), None, None, None)[:3]
    special, _ = variant(shapes)
    recipe: dict[str, Any] = {
        "type": "mergeflow",
        "primary_model_hash": first,
        "secondary_model_hash": second,
        "tertiary_model_hash": third,
        "interp_method": merge.method or None,
        "multiplier": None if merge.multiplier is None else float(merge.multiplier),
        "save_as_half": output.dtype is DType.F16,
        "custom_name": "",
        "config_source": None,
        "bake_in_vae": None,
        "discard_weights": "",
        "is_inpainting": "inpainting" in special,
        "is_instruct_pix2pix": "pix2pix" in special,
        "terms": [[decimal(share), sha256[i] or facts[i].model] for share, i in terms],
    }
    models: dict[str, Any] = {}
    for i in used:
        told = originals.metadata(i)
        models |= _table(told.get(MODELS, ""))
        if found := hashes[i]:
            own = {"name": told.get(TITLE) or found[0][:10], "legacy_hash": found[1]}
            models[found[0]] = {**own, RECIPE: _table(told.get(RECIPE, "")) or None}
    return {RECIPE: _text(recipe), MODELS: _text(dict(sorted(models.items())))}


def usual_terms(resolved: Resolved, facts: Facts) -> list[tuple[Fraction, int]]:
    """The sum that most tensors are, the largest share first, then by digest; nothing where it is no plain sum."""
    if not resolved.forms:
        return []
    form = resolved.forms[max(range(len(resolved.forms)), key=resolved.cases.count)]
    terms = [(share, leaf) for share, leaf in form.terms if isinstance(leaf, int)]
    return sorted(terms, key=lambda t: (-t[0], facts[t[1]].model)) if len(terms) == len(form.terms) else []


def in_order(resolved: Resolved, facts: Facts) -> list[int]:
    """The sources in an output: its primary, then the others by the digests of their tensors. The order in which a
    recipe names them says nothing."""
    others = sources_in(resolved.forms) - {resolved.primary}
    return [resolved.primary, *sorted(others, key=lambda i: (facts[i].model, facts[i].name))]


def _recognised(terms: list[tuple[Fraction, int]], primary: int) -> _Merge | None:
    share = {i: s for s, i in terms}
    others = [(s, i) for s, i in terms if i != primary]
    if share == {primary: 1}:
        return _Merge("No interpolation", None, (primary,))
    if len(share) == 2 and primary in share and sum(share.values()) == 1:
        ((m, b),) = others
        return _Merge("Weighted sum", m, (primary, b))
    if len(share) == 3 and share.get(primary) == 1 and sum(s for s, _ in others) == 0:
        (m, b), (_, c) = others  # the larger share first
        return _Merge("Add difference", m, (primary, b, c))
    return None


def _table(text: str) -> dict[str, Any]:
    """An entry of a source's own metadata, when it is what the webui would have written."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _text(value: Mapping[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
