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
from mergeflow.formats.layout import LAYOUT, MODEL_DIGEST, UNKNOWN_DIGEST, Layout
from mergeflow.ir.forms import Applied, Form, Point, inner_first, kernels_in
from mergeflow.plan import a1111
from mergeflow.plan.a1111 import Move
from mergeflow.plan.facts import Facts
from mergeflow.plan.numbering import in_order
from mergeflow.plan.program import TensorWork
from mergeflow.plan.resolve import Resolved
from mergeflow.tensors import DType

GRAPH, DIGEST, KIND, RECIPE = "mergeflow", MODEL_DIGEST, "mergeflow.kind", "mergeflow.recipe"
SCHEMA, SCHEMA_APPLIED = "mergeflow/graph/1", "mergeflow/graph/2"  # sums alone, and with kernels
Identity = tuple[int, DType | None, DType]


def metadata(
    resolved: Resolved, facts: Facts, dtype: DType | None, compute: DType | None, own: Mapping[str, str],
    recipe: str | None = None, merger: Sequence[Move] = (), seed: int = 0,
) -> dict[str, str]:  # fmt: skip
    """A file's whole metadata, with the digest still to be filled in. `own` is the recipe's `metadata:`, `recipe` its
    text where the output has `embed: recipe`, `merger` what was done under the policy a1111, `seed` the recipe's.

    Raises:
        RecipeError: an entry of `own` that would pass for one of mergeflow's.
    """
    for name in own:
        if name == GRAPH or name.startswith(f"{GRAPH}."):
            raise RecipeError(f"metadata: {name} is written by mergeflow itself", hint="choose another name")
    document = canonical_graph(resolved, facts, dtype, compute, seed)
    if merger:
        document |= {"policy": a1111.NAME, "merges": a1111.graph_entry(merger, facts)}
    graph = json.dumps(document, separators=(",", ":"), ensure_ascii=False)
    result = {"format": "pt", **own, GRAPH: graph, DIGEST: UNKNOWN_DIGEST}
    if resolved.delta:
        result[KIND] = "delta"
    if recipe is not None:
        result[RECIPE] = recipe
    return result


def canonical_graph(
    resolved: Resolved, facts: Facts, dtype: DType | None, compute: DType | None, seed: int = 0
) -> dict[str, Any]:
    """Entries of `forms` are sums, or since graph/2 applied kernels, which sums name as `apply` and their number."""
    forms: list[dict[str, Any]] = []
    number: dict[str, int] = {}

    def add(form: Form) -> int:
        """The number of a form in the document; inner forms come before those that use them."""
        seen: dict[Identity, int] = {}
        last = 0
        for point in inner_first(form, DType.F64):
            entry = _entry(point, facts, seen, seed)
            last = number.setdefault(json.dumps(entry), len(forms))
            if last == len(forms):
                forms.append(entry)
            seen[point.identity] = last
        return last

    numbers = {case: add(resolved.forms[case]) for case in _in_order(resolved)}
    by_case = [numbers[case] for case in range(len(resolved.forms))]
    applied = [leaf for form in resolved.forms for leaf in kernels_in(form)]
    if applied:  # operands come in the order they are written in, which is nobody's business
        forms, order = in_order(forms, {leaf.kernel.name for leaf in applied if leaf.kernel.symmetric})
        by_case = [order[n] for n in by_case]
    tensors: dict[int, list[str]] = {}
    for spec, case in zip(resolved.specs, resolved.cases, strict=True):
        tensors.setdefault(by_case[case], []).append(spec.name)
    counts = Counter({n: len(names) for n, names in tensors.items()})
    usual = min(counts, key=lambda n: (-counts[n], json.dumps(forms[n]))) if counts else 0
    schema = SCHEMA_APPLIED if applied else SCHEMA
    document: dict[str, Any] = {"schema": schema, "numerics": NUMERICS, "primary": facts[resolved.primary].model}
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


def _in_order(resolved: Resolved) -> list[int]:
    """The cases as their tensors' names have them: the order in which files hold tensors is nobody's business."""
    every = range(len(resolved.forms))
    if len(every) == 1:
        return [0]
    named = sorted(zip([spec.name for spec in resolved.specs], resolved.cases, strict=True))
    return list(dict.fromkeys([*(case for _, case in named), *every]))


def file_key(works: list[TensorWork], layout: Layout) -> str:
    """The key of a file: its tensors' keys, where they go, and what it says of itself."""
    return action_key(file_preimage(works, layout))


def file_preimage(works: list[TensorWork], layout: Layout) -> str:
    claims = json.dumps(dict(sorted(layout.metadata.items())), ensure_ascii=False)
    container = f"container {layout.container}\n" if layout.container else ""
    tensors = "".join([f"{w.key} {w.name}\n" for w in works])
    return f"mergeflow file key\nlayout {LAYOUT}\n{container}{claims}\n{tensors}"


def _entry(point: Point, facts: Facts, seen: Mapping[Identity, int], seed: int) -> dict[str, Any]:
    if isinstance(point.leaf, Applied):
        return _applied(point.leaf, [seen[part.identity] for part in point.parts()], seed)
    shares: dict[str, Fraction] = {}
    for share, leaf in point.leaf.form.terms:
        if isinstance(leaf, int):
            name = facts[leaf].model
        else:
            number = seen[point.within(leaf).identity]
            rounded = not isinstance(leaf, Applied) and leaf.dtype
            name = f"round {rounded.label} {number}" if rounded else f"apply {number}"
        shares[name] = shares.get(name, Fraction(0)) + share
    shares = {name: share for name, share in shares.items() if share}
    over = lcm(*(share.denominator for share in shares.values())) if shares else 1
    terms = sorted(((int(share * over), name) for name, share in shares.items()), key=lambda t: (-t[0], t[1]))
    return {"terms": [[str(n), name] for n, name in terms], "over": str(over)}


def _applied(leaf: Applied, operands: list[int], seed: int) -> dict[str, Any]:
    kernel = leaf.kernel
    weights = leaf.weights or (Fraction(1),) * len(operands)
    taken = list(zip(weights, operands, strict=True))
    if kernel.symmetric:
        taken.sort()
    entry: dict[str, Any] = {"apply": kernel.name, "version": kernel.version}
    if kernel.origin:
        entry["source"] = kernel.origin
    entry |= {name: str(value) for name, value in leaf.arguments} | dict(leaf.options)
    if kernel.random:  # at the end, whether the call or the recipe says it
        entry["seed"] = str(entry.pop("seed", seed))
    return {**entry, "to": [[str(weight), number] for weight, number in taken]}
