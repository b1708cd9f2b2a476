"""mergekit's methods over differences from a base that are made sparse, elect signs, or both: `ties` and its kin."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import NamedTuple

from mergeflow.exchange import rounding
from mergeflow.exchange.mergekit_merge import Input, Merge, Setting, say

ONE = Fraction(1)
_OUTLIERS = Fraction(1, 100)
_RANDOM = "the random masks of mergekit depend on its order of work: the same share is kept here, of other values"
_EQUALS = "{method}: of values as large as the smallest kept one mergekit keeps some; here all are kept"


def _one_density(merge: Merge, key: str, default: Fraction) -> str | None:
    """The setting that all models share; None where they differ."""
    found = {say(merge.of(model, key, default)) for model in merge.models}
    return found.pop() if len(found) == 1 else None


def _sparse(merge: Merge) -> bool:
    """Whether any model's difference loses values."""
    return any(merge.of(model, "density", ONE) != 1 for model in merge.models)


def ties(merge: Merge) -> str:
    normalize = merge.common("normalize", True) is True
    rescaled = merge.common("rescale", False) is True and _sparse(merge)
    density = _one_density(merge, "density", ONE)
    if _sparse(merge):
        merge.draft.lose(_EQUALS.format(method="ties"))
    if merge.faithful and not rescaled:
        return rounding.tasks(merge, merge.from_base(), elect=True, normalize=normalize, trim=_trimming(merge))
    _say_election(merge, normalize=normalize)
    merge.inexact()
    if density is not None and not rescaled:
        scale, vote = say(merge.common("lambda", ONE)), say(normalize)
        return f"ties({merge.from_base()}, {merge.weighted()}, density={density}, scale={scale}, normalize={vote})"

    def trim(delta: str, merge: Merge, i: int) -> str:
        return f"ties_trim({delta}, {say(merge.of(merge.models[i], 'density', ONE))})"

    return _voted(merge, _trimmed(merge, trim), consensus=True, normalize=normalize)


def _trimming(merge: Merge, gamma: Fraction | None = None) -> rounding.Trim:
    """`gamma`: the default of a method that drops outliers."""

    def trim(model: Input, delta: str) -> str:
        density = merge.of(model, "density", ONE)
        outliers = f", gamma={say(merge.of(model, 'gamma', gamma))}" if gamma is not None else ""
        return delta if density == 1 else f"mergekit_trim({delta}, {say(density)}{outliers})"

    return trim


def breadcrumbs(merge: Merge) -> str:
    consensus = merge.method == "breadcrumbs_ties"
    normalize, rescaled = merge.common("normalize", False) is True, merge.common("rescale", False) is True
    if not _sparse(merge):  # no outlier is dropped then
        return _dense(merge, consensus=consensus, normalize=normalize)
    merge.draft.lose(_EQUALS.format(method=merge.method))
    if merge.faithful and not rescaled:
        trim = _trimming(merge, _OUTLIERS)
        return rounding.tasks(merge, merge.from_base(), elect=consensus, normalize=normalize, trim=trim)
    if consensus:
        _say_election(merge, normalize=normalize)
    merge.inexact()
    bands = [_outliers(merge, model) for model in merge.models]
    if len(set(bands)) == 1 and not (normalize and not consensus):
        vote = f", normalize={say(normalize)}" if consensus else ""
        density, gamma = bands[0]
        return (
            f"{merge.method}({merge.from_base()}, {merge.weighted()}, density={density}, gamma={gamma}, "
            f"scale={say(merge.common('lambda', ONE))}, rescale={say(rescaled)}{vote})"
        )

    def outlined(delta: str, merge: Merge, i: int) -> str:
        density, gamma = bands[i]
        return f"({delta})" if density == "1" else f"breadcrumbs_trim({delta}, {density}, {gamma})"

    return _voted(merge, _trimmed(merge, outlined), consensus=consensus, normalize=normalize)


def _dense(merge: Merge, *, consensus: bool, normalize: bool) -> str:
    """Of differences that lose nothing."""
    if merge.faithful:
        return rounding.tasks(merge, merge.from_base(), elect=consensus, normalize=normalize)
    if consensus:
        _say_election(merge, normalize=normalize)
    rest = f"scale={say(merge.common('lambda', ONE))}, normalize={say(normalize)})"
    if consensus:
        return f"ties({merge.from_base()}, {merge.weighted()}, density=1, {rest}"
    return f"task_arithmetic({merge.from_base()}, {merge.weighted()}, {rest}"


def _say_election(merge: Merge, *, normalize: bool) -> None:
    """What elections are there, where they are otherwise."""
    merge.draft.lose(f"{merge.method}: where differences add up to nothing mergekit takes the positive ones; here none")
    if normalize and any(_below_zero(merge, merge.of(model, "weight", None)) for model in merge.models):
        merge.draft.lose(f"{merge.method}: mergekit divides by weights below 0 with their signs, here without them")


def _below_zero(merge: Merge, weight: Setting) -> bool:
    if not isinstance(weight, str):
        return weight < 0
    table = merge.draft.params[weight]
    values = table.values() if isinstance(table, Mapping) else ()
    numbers = [n for v in values for n in (v["gradient"] if isinstance(v, Mapping) else (v,))]
    return any(str(number).startswith(("-", "(-")) for number in numbers)


def _outliers(merge: Merge, model: Input) -> tuple[str, str]:
    """A model's density, and how many outliers are dropped: there no more than leave values enough to be kept."""
    density, gamma = merge.of(model, "density", ONE), merge.of(model, "gamma", _OUTLIERS)
    if isinstance(density, Fraction) and isinstance(gamma, Fraction) and 0 < 1 - density < gamma:
        gamma = 1 - density
    return say(density), say(gamma)


def dropped(merge: Merge) -> str:
    """dare_linear, dare_ties, della, della_linear: their masks are random."""
    consensus = merge.method in ("dare_ties", "della")
    normalize = merge.common("normalize", merge.method == "della") is True
    if not _sparse(merge):
        return _dense(merge, consensus=consensus, normalize=normalize)
    merge.draft.lose(f"{merge.method}: {_RANDOM}")
    if consensus:
        _say_election(merge, normalize=normalize)
    rescale = "l1" if merge.common("rescale", True) is True else "none"
    shares = [_thinned(merge, model) for model in merge.models]
    if len(set(shares)) > 1 or (normalize and not consensus):  # each difference with its own, and its own mask
        sparse = [
            f"{share.drop}({model.name} - {merge.from_base()}, {share.settings}, rescale={rescale}, stream={i})"
            if share.drop
            else f"({model.name} - {merge.from_base()})"
            for i, (model, share) in enumerate(zip(merge.models, shares, strict=True))
        ]
        return _voted(merge, sparse, consensus=consensus, normalize=normalize)
    vote = f", normalize={say(normalize)}" if consensus else ""
    return (
        f"{merge.method}({merge.from_base()}, {merge.weighted()}, {shares[0].settings}, "
        f"scale={say(merge.common('lambda', ONE))}, rescale={rescale}{vote})"
    )


class _Thinned(NamedTuple):
    """What drops a model's values ('' where all are kept), and how many."""

    drop: str
    settings: str = ""


def _thinned(merge: Merge, model: Input) -> _Thinned:
    density = merge.of(model, "density", ONE)
    if density == 1:
        return _Thinned("")
    if not merge.method.startswith("della"):
        return _Thinned("dare_drop", f"density={say(density)}")
    epsilon = merge.of(model, "epsilon", Fraction(15, 100))
    if not isinstance(epsilon, Fraction):
        raise merge.where.error(f"{merge.method} with an epsilon that differs from tensor to tensor is not imported")
    return _Thinned("della_drop", f"density={say(density)}, epsilon={say(epsilon * 2)}")  # there half of the window


def _trimmed(merge: Merge, trim: Callable[[str, Merge, int], str]) -> list[str]:
    """Each model's difference, made sparse with its own settings, and rescaled when that is asked."""
    base, rescale = merge.from_base(), merge.common("rescale", False) is True
    found = []
    for i, model in enumerate(merge.models):
        delta = f"{model.name} - {base}"
        kept = trim(delta, merge, i)
        found.append(f"match_l1({kept}, {delta})" if rescale else kept)
    return found


def _voted(merge: Merge, sparse: list[str], *, consensus: bool, normalize: bool) -> str:
    weights = [merge.of(model, "weight", None) for model in merge.models]
    scale = merge.common("lambda", ONE)
    times = "" if scale == 1 else f" * {say(scale)}"
    if consensus:
        shown = [d if w == 1 else f"{d} @ {say(w)}" for d, w in zip(sparse, weights, strict=True)]
        return f"{merge.from_base()} + sum_sign([{', '.join(shown)}], elect=sum, normalize={say(normalize)}){times}"
    if normalize:
        total = sum(w for w in weights if isinstance(w, Fraction))
        if not all(isinstance(w, Fraction) for w in weights):
            raise merge.where.error("normalize: true with weights by filter has no counterpart here")
        weights = [w / total if total and isinstance(w, Fraction) else w for w in weights]
    shown = [f"{d} * {say(w)}" for d, w in zip(sparse, weights, strict=True)]
    total_text = " + ".join(shown)
    return f"{merge.from_base()} + ({total_text}){times}"
