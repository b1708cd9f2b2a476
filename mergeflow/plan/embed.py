"""What an output says of itself: the canonical graph, by content alone, so that equal expressions give equal files.

`mergeflow` in a file's metadata is one line of JSON: the normal forms (integers over one denominator, sources by model
digest, most tensors' form first), dtypes, numerics version. `mergeflow.digest` is the model digest of the file itself,
put in when it is known; the header's length does not depend on it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import lcm
from typing import Any

from mergeflow.digest import NUMERICS, action_key
from mergeflow.errors import RecipeError
from mergeflow.formats.layout import LAYOUT, Layout
from mergeflow.ir.forms import Form, Rounded, inner_first
from mergeflow.plan import a1111
from mergeflow.plan.a1111 import Move
from mergeflow.plan.program import TensorWork
from mergeflow.plan.resolve import Facts, Resolved
from mergeflow.tensors import DType

GRAPH, DIGEST, KIND, RECIPE = "mergeflow", "mergeflow.digest", "mergeflow.kind", "mergeflow.recipe"
SCHEMA = "mergeflow/graph/1"
UNKNOWN_DIGEST = "b3:" + "0" * 64


def metadata(
    resolved: Resolved, facts: Facts, dtype: DType | None, compute: DType | None, own: Mapping[str, str],
    recipe: str | None = None, merger: Sequence[Move] = (),
) -> dict[str, str]:  # fmt: skip
    """A file's whole metadata, with the digest still to be filled in. `own` is the recipe's `metadata:`, `recipe` its
    text where the output has `embed: recipe`, `merger` what was done under the policy a1111.

    Raises:
        RecipeError: an entry of `own` that would pass for one of mergeflow's.
    """
    for name in own:
        if name == GRAPH or name.startswith(f"{GRAPH}."):
            raise RecipeError(f"metadata: {name} is written by mergeflow itself", hint="choose another name")
    document = canonical_graph(resolved, facts, dtype, compute)
    if merger:
        document |= {"policy": a1111.NAME, "merges": a1111.graph_entry(merger, facts)}
    graph = json.dumps(document, separators=(",", ":"), ensure_ascii=False)
    result = {"format": "pt", **own, GRAPH: graph, DIGEST: UNKNOWN_DIGEST}
    if resolved.delta:
        result[KIND] = "delta"
    if recipe is not None:
        result[RECIPE] = recipe
    return result


def canonical_graph(resolved: Resolved, facts: Facts, dtype: DType | None, compute: DType | None) -> dict[str, Any]:
    forms: list[dict[str, Any]] = []
    number: dict[str, int] = {}

    def add(form: Form) -> int:
        """The number of a form in the document; inner forms come before those that use them."""
        seen: dict[tuple[int, DType], int] = {}
        last = 0
        for point in inner_first(form, DType.F64):
            entry = _entry(point.form, facts, seen)
            last = number.setdefault(json.dumps(entry), len(forms))
            if last == len(forms):
                forms.append(entry)
            seen[id(point.form), point.dtype] = last
        return last

    by_case = [add(form) for form in resolved.forms]
    tensors: dict[int, list[str]] = {}
    for spec, case in zip(resolved.specs, resolved.cases, strict=True):
        tensors.setdefault(by_case[case], []).append(spec.name)
    counts = Counter({n: len(names) for n, names in tensors.items()})
    usual = min(counts, key=lambda n: (-counts[n], json.dumps(forms[n]))) if counts else 0
    document: dict[str, Any] = {"schema": SCHEMA, "numerics": NUMERICS, "primary": facts[resolved.primary].model}
    if dtype is not None:
        document["dtype"] = dtype.label
    if compute is not None:
        document["compute"] = compute.label
    document["forms"] = forms
    document["form"] = usual
    others = {str(n): sorted(names) for n, names in sorted(tensors.items()) if n != usual}
    if others:
        document["others"] = others
    return document


def file_key(works: list[TensorWork], layout: Layout) -> str:
    """The key of a file: its tensors' keys, where they go, and what it says of itself."""
    return action_key(file_preimage(works, layout))


def file_preimage(works: list[TensorWork], layout: Layout) -> str:
    claims = json.dumps(dict(sorted(layout.metadata.items())), ensure_ascii=False)
    return f"mergeflow file key\nlayout {LAYOUT}\n{claims}\n" + "".join([f"{w.key} {w.name}\n" for w in works])


def _entry(form: Form, facts: Facts, seen: Mapping[tuple[int, DType], int]) -> dict[str, Any]:
    shares: dict[str, Fraction] = {}
    for share, leaf in form.terms:
        if isinstance(leaf, Rounded):
            name = f"round {leaf.dtype.label} {seen[id(leaf.form), leaf.dtype]}"
        else:
            name = facts[leaf].model
        shares[name] = shares.get(name, Fraction(0)) + share
    shares = {name: share for name, share in shares.items() if share}
    over = lcm(*(share.denominator for share in shares.values())) if shares else 1
    terms = sorted(((int(share * over), name) for name, share in shares.items()), key=lambda t: (-t[0], t[1]))
    return {"terms": [[str(n), name] for n, name in terms], "over": str(over)}
