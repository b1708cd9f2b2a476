"""mergekit's methods as calls of ours: each with the settings it has there, and the defaults of there made explicit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import NamedTuple

from mergeflow.exchange import rounding
from mergeflow.exchange.mergekit_merge import Merge, Setting, say

ONE = Fraction(1)
_RANDOM = "the random masks of mergekit depend on its order of work: the same share is kept here, of other values"
_LAST_BITS = "{method}: mergekit's roundings cannot be repeated here; float32 results differ in the last bits"


class Known(NamedTuple):
    """How a merge becomes an expression, and the settings that the method has in mergekit. `whole`: a base that is
    listed among the models is one of them."""

    call: Callable[[Merge], str]
    settings: frozenset[str]
    whole: bool = False


def _two(merge: Merge) -> tuple[str, str]:
    """Base and the other model."""
    if merge.base is None:
        raise merge.where.error(f"{merge.method} needs base_model:")
    if len(merge.models) != 1:
        raise merge.where.error(f"{merge.method} takes base_model: and one other model, not {len(merge.models)}")
    return merge.base, merge.models[0].name


def _base(merge: Merge) -> str:
    if merge.base is None:
        raise merge.where.error(f"{merge.method} needs base_model:")
    return merge.base


def _inexact(merge: Merge) -> None:
    if merge.faithful:
        merge.draft.lose(_LAST_BITS.format(method=merge.method))


def _refuse_unless(merge: Merge, key: str, usual: Setting, why: str) -> None:
    node = merge.settings.get(key, usual)
    if node != usual:
        raise merge.where.error(f"{merge.method} with {key}: {say(node)} has no counterpart here", why)


def _linear(merge: Merge) -> str:
    normalize = merge.common("normalize", True)
    if merge.base is not None and merge.base not in merge.names():
        raise merge.where.error("linear counts base_model: in", "list it among the models, with its weight")
    if merge.faithful:
        return rounding.linear(merge, normalize is True)
    return f"linear({merge.weighted()}, normalize={say(normalize)})"


def _task_arithmetic(merge: Merge) -> str:
    base, normalize = _base(merge), merge.common("normalize", False)
    if any("density" in model.own for model in merge.models) or "density" in merge.settings:
        merge.draft.lose("density: had no effect on task_arithmetic in mergekit")
    if merge.faithful:
        return rounding.task_arithmetic(merge, base, normalize is True)
    scale = say(merge.common("lambda", ONE))
    return f"task_arithmetic({base}, {merge.weighted()}, scale={scale}, normalize={say(normalize)})"


def _one_density(merge: Merge, key: str, default: Fraction) -> str | None:
    """The setting that all models share; None where they differ."""
    found = {say(merge.of(model, key, default)) for model in merge.models}
    return found.pop() if len(found) == 1 else None


def _trimmed(merge: Merge, trim: Callable[[str, Merge, int], str]) -> list[str]:
    """Each model's difference, made sparse with its own settings, and rescaled when that is asked."""
    base, rescale = _base(merge), merge.common("rescale", False) is True
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
        return f"{_base(merge)} + sum_sign([{', '.join(shown)}], elect=sum, normalize={say(normalize)}){times}"
    if normalize:
        total = sum(w for w in weights if isinstance(w, Fraction))
        if not all(isinstance(w, Fraction) for w in weights):
            raise merge.where.error("normalize: true with weights by filter has no counterpart here")
        weights = [w / total if total and isinstance(w, Fraction) else w for w in weights]
    shown = [f"{d} * {say(w)}" for d, w in zip(sparse, weights, strict=True)]
    total_text = " + ".join(shown)
    return f"{_base(merge)} + ({total_text}){times}"


def _ties(merge: Merge) -> str:
    normalize = merge.common("normalize", True) is True
    density = _one_density(merge, "density", ONE)
    merge.draft.lose("ties: of values as large as the smallest kept one mergekit keeps some; here all are kept")
    if merge.faithful and not normalize and merge.common("rescale", False) is not True:
        return rounding.ties(merge, _base(merge))
    _inexact(merge)
    if density is not None and merge.common("rescale", False) is not True:
        scale, vote = say(merge.common("lambda", ONE)), say(normalize)
        return f"ties({_base(merge)}, {merge.weighted()}, density={density}, scale={scale}, normalize={vote})"

    def trim(delta: str, merge: Merge, i: int) -> str:
        return f"ties_trim({delta}, {say(merge.of(merge.models[i], 'density', ONE))})"

    return _voted(merge, _trimmed(merge, trim), consensus=True, normalize=normalize)


def _breadcrumbs(merge: Merge) -> str:
    consensus = merge.method == "breadcrumbs_ties"
    normalize = merge.common("normalize", False) is True
    density, gamma = _one_density(merge, "density", ONE), _one_density(merge, "gamma", Fraction(1, 100))
    if merge.faithful and not consensus and merge.common("rescale", False) is not True:
        return rounding.breadcrumbs(merge, _base(merge), normalize=normalize)
    _inexact(merge)
    if density is not None and gamma is not None and not (normalize and not consensus):
        vote = f", normalize={say(normalize)}" if consensus else ""
        scale, rescale = say(merge.common("lambda", ONE)), say(merge.common("rescale", False))
        return (
            f"{merge.method}({_base(merge)}, {merge.weighted()}, density={density}, gamma={gamma}, scale={scale}, "
            f"rescale={rescale}{vote})"
        )

    def trim(delta: str, merge: Merge, i: int) -> str:
        model = merge.models[i]
        share, top = say(merge.of(model, "density", ONE)), say(merge.of(model, "gamma", Fraction(1, 100)))
        return f"breadcrumbs_trim({delta}, {share}, {top})"

    return _voted(merge, _trimmed(merge, trim), consensus=consensus, normalize=normalize)


def _dropped(merge: Merge) -> str:
    """dare_linear, dare_ties, della, della_linear: their masks are random."""
    merge.draft.lose(f"{merge.method}: {_RANDOM}")
    ranked = merge.method.startswith("della")
    consensus = merge.method in ("dare_ties", "della")
    normalize = merge.common("normalize", merge.method == "della") is True
    rescale = "l1" if merge.common("rescale", True) is True else "none"
    density = _one_density(merge, "density", ONE)
    if density is None or (normalize and not consensus):
        raise merge.where.error(
            f"{merge.method} with a density for each model, or normalized without an election, is not imported",
            "give all models one density:",
        )
    window = ""
    if ranked:
        epsilon = _one_density(merge, "epsilon", Fraction(15, 100))
        given = {merge.of(model, "epsilon", Fraction(15, 100)) for model in merge.models}
        if epsilon is None or not all(isinstance(value, Fraction) for value in given):
            raise merge.where.error(f"{merge.method} with an epsilon for each model is not imported")
        (value,) = given
        assert isinstance(value, Fraction)
        window = f", epsilon={say(value * 2)}"  # there half of the window, here the whole
    vote = f", normalize={say(normalize)}" if consensus else ""
    return (
        f"{merge.method}({_base(merge)}, {merge.weighted()}, density={density}{window}, "
        f"scale={say(merge.common('lambda', ONE))}, rescale={rescale}{vote})"
    )


def _slerp(merge: Merge) -> str:
    base, other = _two(merge)
    _inexact(merge)
    return f"slerp({base}, {other}, {say(merge.common('t', None))}, lerp_above=0.9995)"


def _nuslerp(merge: Merge) -> str:
    if len(merge.models) != 2:
        raise merge.where.error(f"nuslerp takes two models besides the base, not {len(merge.models)}")
    _inexact(merge)
    base = f", base={merge.base}" if merge.base else ""
    rows = "first" if merge.common("nuslerp_row_wise", False) is True else "last"
    along = "" if merge.common("nuslerp_flatten", True) is True else f", along={rows}"
    return f"nuslerp({merge.weighted()}{base}{along})"


def _multislerp(merge: Merge) -> str:
    _refuse_unless(merge, "normalize_weights", True, "weights are divided by their sum")
    _inexact(merge)
    base = f", base={merge.base}" if merge.base else ""
    merge.draft.lose("multislerp: eps, which mergekit adds to lengths, is not here")
    return f"multislerp({merge.weighted()}{base})"


def _karcher(merge: Merge) -> str:
    if "max_iter" in merge.settings or "tol" in merge.settings:
        merge.draft.lose("karcher: max_iter and tol; it goes on until the mean is found")
    _inexact(merge)
    names = list(dict.fromkeys([*merge.names(), *([merge.base] if merge.base else [])]))
    return f"karcher([{', '.join(names)}])"


def _model_stock(merge: Merge) -> str:
    _refuse_unless(merge, "filter_wise", False, "whole tensors are")
    if len(merge.models) < 2:
        raise merge.where.error("model_stock takes two models or more besides the base")
    _inexact(merge)
    return f"model_stock({_base(merge)}, [{', '.join(merge.names())}])"


def _nearswap(merge: Merge) -> str:
    base, other = _two(merge)
    _inexact(merge)
    return f"nearswap({base}, {other}, {say(merge.common('t', None))})"


def _sce(merge: Merge) -> str:
    _inexact(merge)
    return f"sce({_base(merge)}, [{', '.join(merge.names())}], select={say(merge.common('select_topk', ONE))})"


def _ram(merge: Merge) -> str:
    _inexact(merge)
    epsilon = say(merge.common("epsilon", Fraction(1, 100_000)))
    return f"ram({_base(merge)}, [{', '.join(merge.names())}], epsilon={epsilon})"


def _ram_plus(merge: Merge) -> str:
    _inexact(merge)
    given = (
        ("r", "r", Fraction(1, 10)),
        ("alpha", "most", Fraction(1, 5)),
        ("epsilon", "epsilon", Fraction(1, 100_000)),
    )
    settings = ", ".join(f"{ours}={say(merge.common(theirs, usual))}" for theirs, ours, usual in given)
    return f"ram_plus({_base(merge)}, [{', '.join(merge.names())}], {settings})"


def _arcee_fusion(merge: Merge) -> str:
    base, other = _two(merge)
    merge.draft.lose("arcee_fusion: of tensors above a million values mergekit draws some for its quantiles; here all")
    _inexact(merge)
    return f"arcee_fusion({base}, {other})"


def _passthrough(merge: Merge) -> str:
    names = [*merge.models]
    if len(names) != 1:
        raise merge.where.error(f"passthrough takes one model, not {len(names)}")
    scale = merge.of(names[0], "scale", ONE)
    return names[0].name if scale == 1 else f"scale({names[0].name}, {say(scale)})"


_TASKS = frozenset({"weight", "density", "lambda", "normalize", "rescale", "int8_mask"})
METHODS: Mapping[str, Known] = {
    "linear": Known(_linear, frozenset({"weight", "normalize"}), whole=True),
    "task_arithmetic": Known(_task_arithmetic, _TASKS),
    "ties": Known(_ties, _TASKS),
    "dare_linear": Known(_dropped, _TASKS),
    "dare_ties": Known(_dropped, _TASKS),
    "della": Known(_dropped, _TASKS | {"epsilon"}),
    "della_linear": Known(_dropped, _TASKS | {"epsilon"}),
    "breadcrumbs": Known(_breadcrumbs, _TASKS | {"gamma"}),
    "breadcrumbs_ties": Known(_breadcrumbs, _TASKS | {"gamma"}),
    "slerp": Known(_slerp, frozenset({"t"})),
    "nuslerp": Known(_nuslerp, frozenset({"weight", "nuslerp_flatten", "nuslerp_row_wise"})),
    "multislerp": Known(_multislerp, frozenset({"weight", "normalize_weights", "eps"})),
    "karcher": Known(_karcher, frozenset({"max_iter", "tol"}), whole=True),
    "model_stock": Known(_model_stock, frozenset({"filter_wise"})),
    "nearswap": Known(_nearswap, frozenset({"t"})),
    "sce": Known(_sce, frozenset({"select_topk", "int8_mask"})),
    "ram": Known(_ram, frozenset({"epsilon"})),
    "ramplus_tl": Known(_ram_plus, frozenset({"epsilon", "r", "alpha"})),
    "arcee_fusion": Known(_arcee_fusion, frozenset()),
    "passthrough": Known(_passthrough, frozenset({"scale"})),
}
