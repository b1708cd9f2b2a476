"""Whether models that are to be mixed share a training history, told from a few values kept of each tensor.

Fine-tunes stay close to what they were trained from: the cosine of their weights is above 0.9. Models that were
trained apart have nothing to do with each other, number by number, and an average of them is noise.
"""

from __future__ import annotations

import array
import math
from collections.abc import Iterable, Iterator, Mapping
from operator import mul

from mergeflow.ir.forms import Applied, Form, Rounded
from mergeflow.plan.facts import Facts, SourceFacts
from mergeflow.plan.resolve import Resolved

RELATED = 0.5  # the least cosine of relatives
ENOUGH = 128  # values: with as many, strangers have a cosine below 0.5 but for one case in millions
TENSORS = 1250  # at most, of 16 values each
_STRIDE = 2_654_435_761  # a prime: positions that follow no pattern of the names, the same every time

Pair = tuple[int, int]


def stranger_notes(resolved: Resolved, facts: Facts, known: dict[Pair, float | None]) -> Iterator[str]:
    """One line for each source that is mixed into another model's tensors and is no relative of it. `known` remembers
    the cosines from one output to the next."""
    for primary, other in sorted(_mixed(resolved)):
        first, second = facts[primary], facts[other]
        if first.delta or second.delta or first.model == second.model:
            continue
        if (primary, other) not in known:
            known[primary, other] = cosine(first, second)
        found = known[primary, other]
        if found is not None and found < RELATED:
            yield (
                f"{second.name} and {first.name} share no training history (the cosine of their weights is "
                f"{found:.2f}); the merge will be noise"
            )


def _mixed(resolved: Resolved) -> set[Pair]:
    """Each model whose tensors a result has, with each other one that is mixed into them."""
    leaves = [_models_in(form) for form in resolved.forms]
    cases = set(zip(resolved.primaries, resolved.cases, strict=True))
    mixed = [(primary, leaves[case]) for primary, case in cases if len(leaves[case]) > 1]
    return {(primary, other) for primary, others in mixed for other in others if other != primary}


def _models_in(root: Form) -> set[int]:
    """The sources that a form is made of, but for files of numbers about models."""
    found: set[int] = set()
    seen: set[int] = set()
    stack: list[Form] = [root]
    while stack:
        form = stack.pop()
        if id(form) in seen:
            continue
        seen.add(id(form))
        for _, leaf in form.terms:
            if isinstance(leaf, Applied):
                step = 2 if leaf.kernel.paired else 1
                stack += [operand.form for operand in leaf.operands[::step]]
            elif isinstance(leaf, Rounded):
                stack.append(leaf.form)
            else:
                found.add(leaf)
    return found


def cosine(first: SourceFacts, second: SourceFacts) -> float | None:
    """Of the values kept of tensors that both have in the same shape and that are no vectors (gains near 1 are alike
    in all models). None where too little is kept."""
    ours, theirs = array.array("f"), array.array("f")
    for name in _chosen(first.tensors):
        one, other = first.tensors[name], second.tensors.get(name)
        if other is None or one.shape != other.shape or len(one.shape) < 2:
            continue
        if not (one.dtype.is_float and other.dtype.is_float) or name in first.nonfinite or name in second.nonfinite:
            continue
        a, b = first.sample(name), second.sample(name)
        if a and len(a) == len(b):
            ours.frombytes(a)
            theirs.frombytes(b)
    size = math.sqrt(_dot(ours, ours)) * math.sqrt(_dot(theirs, theirs))
    if len(ours) < ENOUGH or not size or not math.isfinite(size):
        return None
    return _dot(ours, theirs) / size


def _dot(a: Iterable[float], b: Iterable[float]) -> float:
    return math.fsum(map(mul, a, b))


def _chosen(tensors: Mapping[str, object]) -> Iterable[str]:
    """All names, or as many as are to be looked at, spread evenly."""
    if len(tensors) <= TENSORS:
        return tensors
    names = list(tensors)
    return [names[i] for i in sorted({k * _STRIDE % len(names) for k in range(TENSORS)})]
