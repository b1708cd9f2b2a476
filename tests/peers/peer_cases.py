"""What is compared: for each method that a peer has as well, one expression and the call that is the same there.

Models are `o`, fine-tunes of it `a`, `b` and `c`, and `n` and `p`, which are `a` but for very little. A mask is the
expression of a difference; its zeros are what the peer is made to drop, in the order in which it draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

Call = Any  # as peer_mergekit.py and peer_sd_mecha.py take it


class Case(NamedTuple):
    """`steps`: how many numbers apart results may be, in float32, and in float16 and bfloat16; `rounding`: or
    how far, in operands' sizes. Mergeflow computes in float64 for float32 and in float32 for the others, and so does
    the peer unless `compute` says otherwise: parts of it may compute in float32 whatever it is told.

    Three differences that pages tell of. `edges`: ranks (from 1, the largest magnitude of a difference); of several
    values as large as the one with that rank a peer may keep only some. `balanced`: weights of a, b, …; where their
    weighed differences add up to nothing, a peer may elect a sign nevertheless. `page`: a method, and what its page
    says of the difference. `dtypes`, `only`: what is compared, where it is not all dtypes and tensors."""

    ours: str
    theirs: Call
    steps: tuple[int, int] = (0, 1)
    rounding: float = 0.0
    compute: tuple[str, str] = ("float64", "float32")
    masks: tuple[str, ...] = ()
    edges: tuple[int, ...] = ()
    balanced: tuple[float, ...] = ()
    page: tuple[str, str] | None = None
    dtypes: tuple[str, ...] = ("F32", "F16", "BF16")
    only: tuple[str, ...] = ()


def kit(method: str, models: Mapping[str, Mapping[str, Any]], base: str | None = None, **parameters: Any) -> Call:
    call = {"method": method, "models": models, "parameters": parameters}
    return call | ({"base": base} if base else {})


def weights(**given: float) -> dict[str, dict[str, Any]]:
    return {model: {"weight": weight} for model, weight in given.items()}


def both(**more: Any) -> dict[str, dict[str, Any]]:
    return {"a": {"weight": 0.75, **more}, "b": {"weight": 0.5, **more}}


_NARROW = ("float32", "float32")
_MIDDLES = (1, 1)  # a third of a sum of float32 often is in the middle of two: the last bit of a float64 decides
_PAIR = "[a @ 0.75, b @ 0.5]"
_DARE = ("dare_drop(a - o, 0.4, rescale=none)", "dare_drop(b - o, 0.4, rescale=none, stream=1)")
_DELLA = ("della_drop(a - o, 0.4, 0.3, rescale=none)", "della_drop(b - o, 0.4, 0.3, rescale=none, stream=1)")

MERGEKIT: dict[str, Case] = {
    "linear": Case("linear([a @ 0.5, b @ 0.25, c @ 0.125])", kit("linear", weights(a=0.5, b=0.25, c=0.125))),
    "linear-sum": Case(
        f"linear({_PAIR}, normalize=false)", kit("linear", weights(a=0.75, b=0.5), normalize=False)
    ),
    "passthrough": Case("scale(a, 0.75)", kit("passthrough", {"a": {"scale": 0.75}})),
    "task_arithmetic": Case(
        f"task_arithmetic(o, {_PAIR}, scale=0.9)", kit("task_arithmetic", both(), "o", **{"lambda": 0.9})
    ),
    "task_arithmetic-mean": Case(
        f"task_arithmetic(o, {_PAIR}, normalize=true)", kit("task_arithmetic", both(), "o", normalize=True)
    ),
    "add_difference": Case("a + (b - c) * 0.5", kit("task_arithmetic", weights(a=1, b=0.5), "c")),
    "ties": Case(
        f"ties(o, {_PAIR}, density=0.3, scale=0.9)", kit("ties", both(density=0.3), "o", **{"lambda": 0.9}),
        page=("ties", "of which mergekit keeps only some"), balanced=(0.75, 0.5), edges=(1228,),
    ),
    "ties-sum": Case(
        f"ties(o, {_PAIR}, density=0.3, normalize=false)", kit("ties", both(density=0.3), "o", normalize=False),
        balanced=(0.75, 0.5), edges=(1228,),
        page=("sum_sign", "mergekit takes the positive ones"),
    ),
    "ties-l1": Case(
        "o + sum_sign([match_l1(ties_trim(a - o, 0.3), a - o), match_l1(ties_trim(b - o, 0.3), b - o)])",
        kit("ties", weights(a=1, b=1), "o", rescale=True, density=0.3), dtypes=("F32",),
    ),
    "breadcrumbs": Case(
        f"breadcrumbs(o, {_PAIR}, density=0.6, gamma=0.05)", kit("breadcrumbs", both(density=0.6, gamma=0.05), "o"),
        page=("breadcrumbs_trim", "As mergekit's but for those equal values"), edges=(205, 2661),
    ),
    "breadcrumbs-l1": Case(
        f"breadcrumbs(o, {_PAIR}, density=0.6, rescale=true)",
        kit("breadcrumbs", both(density=0.6), "o", rescale=True), dtypes=("F32",),
    ),
    "breadcrumbs_ties": Case(
        f"breadcrumbs_ties(o, {_PAIR}, density=0.6, gamma=0.05, normalize=false)",
        kit("breadcrumbs_ties", both(density=0.6, gamma=0.05), "o"), balanced=(0.75, 0.5), edges=(205, 2661),
        page=("breadcrumbs_ties", "its normalize is false unless given"),
    ),
    "breadcrumbs_ties-mean": Case(
        f"breadcrumbs_ties(o, {_PAIR}, density=0.6, gamma=0.05)",
        kit("breadcrumbs_ties", both(density=0.6, gamma=0.05), "o", normalize=True), balanced=(0.75, 0.5),
        edges=(205, 2661),
    ),
    "dare_linear": Case(
        f"dare_linear(o, {_PAIR}, density=0.4, rescale=l1)", kit("dare_linear", both(density=0.4), "o"), masks=_DARE,
        compute=_NARROW, page=("dare_linear", "own is rescale=l1, in float32 or the tensors' dtype"),
    ),
    "dare_linear-none": Case(
        f"dare(o, {_PAIR}, density=0.4, rescale=none)", kit("dare_linear", both(density=0.4), "o", rescale=False),
        masks=_DARE, compute=_NARROW, page=("dare", "rescale=l1, in float32 or the tensors' dtype"),
    ),
    "dare_ties": Case(
        f"dare_ties(o, {_PAIR}, density=0.4, rescale=l1, normalize=false)", kit("dare_ties", both(density=0.4), "o"),
        masks=_DARE, compute=_NARROW, page=("dare_ties", "normalize=false, in float32 or the tensors' dtype"),
    ),
    "dare_ties-mean": Case(
        f"dare_ties(o, {_PAIR}, density=0.4, rescale=l1)", kit("dare_ties", both(density=0.4), "o", normalize=True),
        masks=_DARE, compute=_NARROW, page=("dare_ties", "in float32 or the tensors' dtype"),
    ),
    "della": Case(
        f"della(o, {_PAIR}, density=0.4, epsilon=0.3, rescale=l1)", kit("della", both(density=0.4, epsilon=0.15), "o"),
        rounding=4e-6, masks=_DELLA, compute=_NARROW,
        page=("della", "half of this epsilon, in float32 or the tensors' dtype"),
    ),
    "della_linear": Case(
        f"della_linear(o, {_PAIR}, density=0.4, epsilon=0.3, rescale=l1)",
        kit("della_linear", both(density=0.4, epsilon=0.15), "o"), rounding=4e-6, masks=_DELLA, compute=_NARROW,
        page=("della_linear", "differences that `della` has"),
    ),
    "slerp": Case("slerp(a, c, 0.3, lerp_above=0.9995)", kit("slerp", {"a": {}, "c": {}}, "a", t=0.3)),
    "slerp-near": Case(
        "slerp(a, n, 0.3, lerp_above=0.9995)", kit("slerp", {"a": {}, "n": {}}, "a", t=0.3),
        page=("slerp", "lerp_above=0.9995 is linear, too"),
    ),
    "nuslerp": Case("nuslerp([a @ 0.5, b @ 0.25])", kit("nuslerp", weights(a=0.5, b=0.25))),
    "nuslerp-base": Case("nuslerp([a @ 0.5, b @ 0.25], base=o)", kit("nuslerp", weights(a=0.5, b=0.25), "o")),
    "multislerp": Case(
        "multislerp([a @ 0.5, b @ 0.3, c @ 0.2])", kit("multislerp", weights(a=0.5, b=0.3, c=0.2)), steps=(1, 1),
        page=("multislerp", "mergekit adds 1e-8 to the lengths"),
    ),
    "multislerp-base": Case(
        "multislerp([a @ 0.5, b @ 0.3, c @ 0.2], base=o)", kit("multislerp", weights(a=0.5, b=0.3, c=0.2), "o"),
        steps=(1, 1),
    ),
    "karcher": Case(
        "karcher([a, b, c])", kit("karcher", {"a": {}, "b": {}, "c": {}}, max_iter=500, tol=1e-13),
        page=("karcher", "stops after 10 steps or"),
    ),
    "model_stock": Case("model_stock(o, [a, b, c])", kit("model_stock", {"a": {}, "b": {}, "c": {}}, "o")),
    "sce": Case("sce(o, [a, b, c])", kit("sce", {"a": {}, "b": {}, "c": {}}, "o"), balanced=(1, 1, 1)),
    "sce-select": Case(
        "sce(o, [a, b, c], select=0.5)", kit("sce", {"a": {}, "b": {}, "c": {}}, "o", select_topk=0.5), dtypes=("F32",),
        page=("sce", "Of values that vary equally it keeps some"),
    ),
    "ram": Case(
        "ram(o, [a, b, c], epsilon=0.01)", kit("ram", {"a": {}, "b": {}, "c": {}}, "o", epsilon=0.01),
        steps=_MIDDLES, page=("ram", "but for its arithmetic"),
    ),
    "sce-near": Case(
        "a + sum_sign([n - a, p - a])", kit("sce", {"n": {}, "p": {}}, "a"), dtypes=("F32",),
        page=("sce", "its aᵢ are equal where"),
    ),
    "ram_plus": Case(
        "ram_plus(o, [a, b, c], epsilon=0.01, r=0.5, most=0.3)",
        kit("ramplus_tl", {"a": {}, "b": {}, "c": {}}, "o", epsilon=0.01, r=0.5, alpha=0.3), compute=_NARROW,
        page=("ram_plus", "but for its arithmetic in the tensors' dtype"),
    ),
    "arcee_fusion": Case(
        "arcee_fusion(o, a)", kit("arcee_fusion", {"o": {}, "a": {}}, "o"), only=("matrix", "row"), dtypes=("F32",),
        page=("arcee_fusion", "takes rows along the last axis"),
    ),
    "nuslerp-last": Case(
        "nuslerp([a @ 0.5, b @ 0.25], along=last)",
        kit("nuslerp", weights(a=0.5, b=0.25), nuslerp_flatten=False), page=("nuslerp", "nuslerp_flatten: false"),
        only=("matrix", "row", "conv"),  # of single values the angle there is what rounding leaves
    ),
    "nuslerp-first": Case(
        "nuslerp([a @ 0.5, b @ 0.25], base=o, along=first)",
        kit("nuslerp", weights(a=0.5, b=0.25), "o", nuslerp_flatten=False, nuslerp_row_wise=True),
    ),
    "model_stock-filters": Case(
        "model_stock(o, [a, b, c], filter_wise=true)",
        kit("model_stock", {"a": {}, "b": {}, "c": {}}, "o", filter_wise=True), only=("matrix", "row"),
        page=("model_stock", "the product of two lengths is below 1e-6"),
    ),
    "nearswap": Case(
        "nearswap(a, b, 0.01)", kit("nearswap", {"a": {}, "b": {}}, "a", t=0.01), page=("nearswap", "mergekit divides"),
    ),
}  # fmt: skip

RANDOM: dict[str, Case] = {  # with the peer's own masks: by its name, then `_`
    "mergekit_dare": Case(
        "dare_linear(o, [a], density=0.4)", kit("dare_linear", {"a": {"weight": 1.0, "density": 0.4}}, "o")
    ),
    "mergekit_della": Case(
        "della_linear(o, [a], density=0.4, epsilon=0.3)",
        kit("della_linear", {"a": {"weight": 1.0, "density": 0.4, "epsilon": 0.15}}, "o"),
        only=("matrix", "conv"),  # it ranks along the second axis, and fails where there is none
    ),
    "sd_mecha_dare": Case(
        "dare_ties(o, [a], density=0.4)",
        ["add_ties_with_dare", "o", "a", {"probability": 0.6, "apply_stock": True, "k": 1.0, "seed": 1}],
    ),
    "sd_mecha_della": Case(
        "della(o, [a], density=0.4, epsilon=0.3, rescale=none)",
        ["add_ties_with_dare", "o", "a",
         {"probability": 0.6, "apply_stock": True, "k": 1.0, "seed": 1, "della_eps": 0.3, "rescale": False}],
    ),
}  # fmt: skip

SD_MECHA: dict[str, Case] = {
    "weighted_sum": Case("weighted_sum(a, b, 0.375)", ["weighted_sum", "a", "b", {"alpha": 0.375}]),
    "average": Case("average([a, b, c])", ["n_average", "a", "b", "c", {}], steps=_MIDDLES),
    "add_difference": Case("add_difference(a, b, c, 0.75)", ["add_difference", "a", "b", "c", {"alpha": 0.75}]),
    "add_difference_clamped": Case(
        "add_difference_clamped(a, b, c, 0.75)", ["add_difference", "a", "b", "c", {"alpha": 0.75, "clamp_to_ab": True}]
    ),
    "subtract": Case(
        "o + subtract(a, b)", ["add_difference", "o", ["subtract", "a", "b", {}], {"alpha": 1.0}]
    ),
    "scale": Case(
        "o + (a - b) * 0.375",
        ["add_difference", "o", ["scale", ["subtract", "a", "b", {}], {"alpha": 0.375}], {"alpha": 1.0}],
    ),
    "fallback": Case("fallback([a, b])", ["fallback", "a", "b", {}], page=("fallback", "sd-mecha's `fallback`")),
    "clip": Case("clip(o, [a, b, c])", ["clamp", "o", "a", "b", "c", {}]),
    "slerp": Case(
        "slerp(a, c, 0.375, norm=lerp)", ["slerp", "a", "c", {"alpha": 0.375}], page=("slerp", "(sd-mecha)")
    ),
    "add_perpendicular": Case(
        "add_perpendicular(a, b, c, 0.75)", ["add_perpendicular", "a", "b", "c", {"alpha": 0.75}],
        page=("perpendicular_component", "gives zeros there"),
    ),
    "train_difference": Case(
        "train_difference(a, b, c, 0.75)",
        ["add_difference", "a", ["subtract", "b", "c", {}],
         {"alpha": ["train_difference_mask", "a", "b", "c", {"alpha": 0.75}]}], compute=_NARROW,
        page=("train_difference", "sd-mecha rounds the mask to float32"),
    ),
    "geometric_mean": Case(
        "geometric_mean([a @ 0.625, b @ 0.375])", ["geometric_sum", "a", "b", {"alpha": 0.375}],
        page=("geometric_mean", "sd-mecha's `geometric_sum`"), steps=(1, 1),
    ),
    "geometric_median": Case(
        "geometric_median([a, b, c])",
        ["geometric_median", "a", "b", "c", {"maxiter": 1000, "ftol": 0.0, "eps": 1e-12}],
        compute=("float64", "float64"), rounding=1e-6,  # it stops where the sum of distances no longer falls
        page=("geometric_median", "stops after 100 steps"),
    ),
    "tensor_sum": Case(
        "tensor_sum(a, b, 0.25, 0.125)", ["tensor_sum", "a", "b", {"width": 0.25, "offset": 0.125}]
    ),
    "tensor_sum-round": Case(
        "tensor_sum(a, b, 0.5, 0.75)", ["tensor_sum", "a", "b", {"width": 0.5, "offset": 0.75}]
    ),
    "ties": Case(
        "ties(o, [a, b, c], density=0.200439453125)",
        ["add_difference", "o", ["ties_sum", *(["subtract", x, "o", {}] for x in "abc"), {"k": 0.2, "vote_sgn": True}],
         {"alpha": 1.0}],
        page=("ties_trim", "sd-mecha keeps one more"),
    ),
    "ties-count": Case(
        "ties(o, [a, b, c], density=0.200439453125, elect=count)",
        ["add_difference", "o", ["ties_sum", *(["subtract", x, "o", {}] for x in "abc"), {"k": 0.2}], {"alpha": 1.0}],
        compute=_NARROW,
        page=("ties", "sd-mecha's elects by count unless told otherwise"),
    ),
    "dare_ties": Case(
        "dare_ties(o, [a, b], density=0.4, elect=count)",
        ["add_ties_with_dare", "o", "a", "b", {"probability": 0.6, "apply_stock": True, "k": 1.0}],
        masks=_DARE, compute=_NARROW, page=("dare_ties", "is elect=count, in float32"),
    ),
    "add_cosine_a": Case("add_cosine_a(a, b, 0.25)", ["add_cosine_a", "a", "b", {"alpha": 0.25}]),
    "add_cosine_b": Case("add_cosine_b(a, b, 0.25)", ["add_cosine_b", "a", "b", {"alpha": 0.25}]),
    "top_k_tensor_sum": Case(
        "top_k_tensor_sum(a, b, 0.5)", ["top_k_tensor_sum", "a", "b", {"width": 0.5, "offset": 0.0}],
        page=("top_k_tensor_sum", "are both among those that sd-mecha takes"),
    ),
    "truncate_rank": Case(
        "o + truncate_rank(a - o, 8)",
        ["add_difference", "o",
         ["truncate_rank", ["subtract", "a", "o", {}], {"rank": 8, "use_approximate_basis": False}], {"alpha": 1.0}],
        page=("truncate_rank", "takes random projections unless told not to"),
    ),
    "model_stock": Case(
        "model_stock(o, [a, b])", ["n_model_stock", "o", "a", "b", {}], only=("row",),
        page=("model_stock", "takes cosines along the last dimension"),
    ),
}  # fmt: skip
