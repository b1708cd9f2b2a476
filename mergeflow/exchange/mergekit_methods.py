"""mergekit's methods as calls of ours: each with the settings it has there, and the defaults of there made explicit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import NamedTuple

from mergeflow.exchange import mergekit_tasks, rounding
from mergeflow.exchange.mergekit_merge import Merge, Setting, say
from mergeflow.tensors import DType

ONE = Fraction(1)


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


def _refuse_unless(merge: Merge, key: str, usual: Setting, why: str) -> None:
    node = merge.settings.get(key, usual)
    if node != usual:
        raise merge.where.error(f"{merge.method} with {key}: {say(node)} has no counterpart here", why)


def _linear(merge: Merge) -> str:
    normalize = merge.common("normalize", True)
    if merge.base is not None and merge.base not in merge.names():
        raise merge.where.error("linear counts base_model: in", "list it among the models, with its weight")
    if merge.faithful:
        return rounding.linear(merge, normalize=normalize is True)
    return f"linear({merge.weighted()}, normalize={say(normalize)})"


def _task_arithmetic(merge: Merge) -> str:
    base, normalize = merge.from_base(), merge.common("normalize", False)
    if any("density" in model.own for model in merge.models) or "density" in merge.settings:
        merge.draft.lose("density: had no effect on task_arithmetic in mergekit")
    if merge.faithful:
        return rounding.tasks(merge, base, elect=False, normalize=normalize is True)
    scale = say(merge.common("lambda", ONE))
    return f"task_arithmetic({base}, {merge.weighted()}, scale={scale}, normalize={say(normalize)})"


def _slerp(merge: Merge) -> str:
    base, other = _two(merge)
    merge.inexact()
    return f"slerp({base}, {other}, {say(merge.common('t', None))}, lerp_above=0.9995)"


def _nuslerp(merge: Merge) -> str:
    if len(merge.models) != 2:
        raise merge.where.error(f"nuslerp takes two models besides the base, not {len(merge.models)}")
    merge.inexact()
    base = f", base={merge.base}" if merge.base else ""
    rows = "first" if merge.common("nuslerp_row_wise", False) is True else "last"
    along = "" if merge.common("nuslerp_flatten", True) is True else f", along={rows}"
    return f"nuslerp({merge.weighted()}{base}{along})"


def _multislerp(merge: Merge) -> str:
    _refuse_unless(merge, "normalize_weights", True, "weights are divided by their sum")
    merge.inexact()
    base = f", base={merge.base}" if merge.base else ""
    merge.draft.lose("multislerp: eps, which mergekit adds to lengths, is not here")
    return f"multislerp({merge.weighted()}{base})"


def _karcher(merge: Merge) -> str:
    if "max_iter" in merge.settings or "tol" in merge.settings:
        merge.draft.lose("karcher: max_iter and tol; it goes on until the mean is found")
    merge.inexact()
    names = list(dict.fromkeys([*merge.names(), *([merge.base] if merge.base else [])]))
    return f"karcher([{', '.join(names)}])"


def _model_stock(merge: Merge) -> str:
    filters = merge.common("filter_wise", False) is True
    if filters:
        merge.draft.lose(
            "model_stock: filter_wise takes rows along the last axis there, whole filters here: of matrices the same"
        )
    if len(merge.models) < 2:
        raise merge.where.error("model_stock takes two models or more besides the base")
    merge.inexact()
    along = ", filter_wise=true" if filters else ""
    return f"model_stock({merge.from_base()}, [{', '.join(merge.names())}]{along})"


def _nearswap(merge: Merge) -> str:
    base, other = _two(merge)
    if merge.faithful:
        return rounding.nearswap(merge, base, other)
    return f"nearswap({base}, {other}, {say(merge.common('t', None))})"


def _sce(merge: Merge) -> str:
    merge.inexact()
    return f"sce({merge.from_base()}, [{', '.join(merge.names())}], select={say(merge.common('select_topk', ONE))})"


def _ram(merge: Merge) -> str:
    epsilon = say(merge.common("epsilon", Fraction(1, 100_000)))
    if merge.faithful:
        return rounding.ram(merge, merge.from_base(), "mergekit_ram", f"epsilon={epsilon}")
    return f"ram({merge.from_base()}, [{', '.join(merge.names())}], epsilon={epsilon})"


def _ram_plus(merge: Merge) -> str:
    given = (
        ("r", "r", Fraction(1, 10)),
        ("alpha", "most", Fraction(1, 5)),
        ("epsilon", "epsilon", Fraction(1, 100_000)),
    )
    settings = ", ".join(f"{ours}={say(merge.common(theirs, usual))}" for theirs, ours, usual in given)
    if merge.faithful:
        merge.result = DType.F32
        return rounding.ram(merge, merge.from_base(), "mergekit_ram_plus", settings)
    merge.draft.lose("ramplus_tl: without out_dtype mergekit makes float32 of float16 and bfloat16")
    return f"ram_plus({merge.from_base()}, [{', '.join(merge.names())}], {settings})"


def _arcee_fusion(merge: Merge) -> str:
    base, other = _two(merge)
    merge.draft.lose("arcee_fusion: of tensors above a million values mergekit draws some for its quantiles; here all")
    merge.inexact()
    return f"arcee_fusion({base}, {other})"


def _passthrough(merge: Merge) -> str:
    names = [*merge.models]
    if len(names) != 1:
        raise merge.where.error(f"passthrough takes one model, not {len(names)}")
    scale = merge.of(names[0], "scale", ONE)
    if merge.faithful and isinstance(scale, Fraction):
        return rounding.passthrough(merge, scale)
    merge.inexact("the scale differs from tensor to tensor")
    return names[0].name if scale == 1 else f"scale({names[0].name}, {say(scale)})"


_TASKS = frozenset({"weight", "density", "lambda", "normalize", "rescale", "int8_mask"})
METHODS: Mapping[str, Known] = {
    "linear": Known(_linear, frozenset({"weight", "normalize"}), whole=True),
    "task_arithmetic": Known(_task_arithmetic, _TASKS),
    "ties": Known(mergekit_tasks.ties, _TASKS),
    "dare_linear": Known(mergekit_tasks.dropped, _TASKS),
    "dare_ties": Known(mergekit_tasks.dropped, _TASKS),
    "della": Known(mergekit_tasks.dropped, _TASKS | {"epsilon"}),
    "della_linear": Known(mergekit_tasks.dropped, _TASKS | {"epsilon"}),
    "breadcrumbs": Known(mergekit_tasks.breadcrumbs, _TASKS | {"gamma"}),
    "breadcrumbs_ties": Known(mergekit_tasks.breadcrumbs, _TASKS | {"gamma"}),
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
