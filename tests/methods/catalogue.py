"""Each method in a call or two, and what the call has to give, from the formulas in numpy's float64.

A method that is not here makes test_catalogue.py fail."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from method_oracles import (
    agreement,
    band,
    dared,
    elect,
    euclidean,
    geometric,
    multiply,
    nearest,
    perpendicular,
    ram,
    sce,
    similarity,
    slerp,
    sphere,
    stock,
    thinned,
    train,
    trim,
)
from whole_oracles import (
    cosine_mix,
    crossed,
    extract,
    fused,
    max_magnitude,
    ram_plus,
    smoothed,
    stocked,
    top_k,
    truncate,
)

Array = np.ndarray


class At(NamedTuple):
    """One tensor of all models, in float64, and its name."""

    base: Array
    a: Array
    b: Array
    c: Array
    fa: Array
    fb: Array
    name: str

    @property
    def deltas(self) -> list[Array]:
        return [self.a - self.base, self.b - self.base, self.c - self.base]


class Case(NamedTuple):
    """`steps`: how many units in the last place of the output the result may be off, `slack` how many of float32 or
    float64, in which it is computed, at the size of the largest value of a model (float32 always, if `single`).
    `unsure`: values that rounding decides about."""

    call: str
    wanted: Callable[[At], Array]
    steps: float = 1.0
    slack: float = 16.0
    single: bool = False
    unsure: Callable[[At], Array] | None = None


def fusion(x: At) -> Array:
    return np.where(fused(x.base, x.a)[1], x.a, x.base)


def near_the_threshold(x: At) -> Array:
    """The least importance that is taken, and the largest that is not, but for the rounding of either."""
    importance, taken = fused(x.base, x.a)
    ends = [importance[taken].min(initial=np.inf), importance[~taken].max(initial=0)]
    return np.any([np.abs(importance - end) <= 1e-9 * importance.max() for end in ends], axis=0)


def rescaled(kept: Array, delta: Array) -> Array:
    under = np.abs(kept).sum()
    return kept * (np.abs(delta).sum() / under) if under else kept


def bands(x: At, count: int) -> list[Array]:
    return [band(d, Fraction(1, 2), Fraction(1, 10)) for d in x.deltas[:count]]


def dellas(x: At) -> list[Array]:
    return [thinned(d, 0.5, 0.25, "expected", x.name, stream=i) for i, d in enumerate(x.deltas[:2])]


def dropped(x: At) -> list[Array]:
    return dared(x.deltas[:2], Fraction(2, 5), "expected", x.name)


def adjusted(x: At) -> Array:
    """supermerger's table, for the two tensors of it that the models have."""
    short = x.name.removeprefix("model.diffusion_model.")
    shift = 0.02 * np.array([1.5, 0.25, 0.25, 0]) if short == "out.2.bias" else 0
    return x.a * (1 + 0.02 * 2 if short == "out.0.bias" else 1) + shift


def rows_of_b(x: At) -> Array:
    """From ⌊R/2⌋ to ⌊3R/4⌋."""
    found = np.atleast_1d(x.a).copy()
    n = len(found)
    found[n // 2 : 3 * n // 4] = np.atleast_1d(x.b)[n // 2 : 3 * n // 4]
    return found.reshape(x.a.shape)


def informed(x: At) -> Array:
    under = x.fa + 0.5 * x.fb
    mean = (x.fa * x.a + 0.5 * x.fb * x.b) / np.where(under > 0, under, 1)
    return np.where(under > 0, mean, (x.a + 0.5 * x.b) / 1.5)


def nuslerped(x: At) -> Array:
    return x.base + slerp(x.deltas[0], x.deltas[1], 0.25)


def swapped(x: At) -> Array:
    return x.a + np.clip(x.b - x.a, -0.01, 0.01)


def kit_elected(x: At) -> Array:
    """As mergekit: where the sum is nothing the positive ones, and a mean over weights with their signs."""
    weighed = [x.deltas[0], 0.5 * x.deltas[1]]
    positive = sum(weighed) >= 0
    agree = [np.where(positive, w > 0, w < 0) for w in weighed]
    over = agree[0] + 0.5 * agree[1]
    return sum(w * yes for w, yes in zip(weighed, agree, strict=True)) / np.where(over > 0, over, 1)


CASES: dict[str, list[Case]] = {
    "weighted_sum": [Case("weighted_sum(a, b, 0.3)", lambda x: 0.7 * x.a + 0.3 * x.b)],
    "add_difference": [Case("add_difference(a, b, c, 0.3)", lambda x: x.a + (x.b - x.c) * 0.3)],
    "subtract": [Case("subtract(a, base)", lambda x: x.a - x.base)],
    "scale": [Case("scale(a, 0.9)", lambda x: x.a * 0.9)],
    "average": [Case("average([a, b, c])", lambda x: (x.a + x.b + x.c) / 3)],
    "linear": [Case("linear([a @ 0.5, b @ 0.25, c])", lambda x: (0.5 * x.a + 0.25 * x.b + x.c) / 1.75)],
    "task_arithmetic": [
        Case("task_arithmetic(base, [a, b @ 0.5], scale=0.7)",
             lambda x: x.base + 0.7 * (x.deltas[0] + 0.5 * x.deltas[1]))
    ],
    "sum_twice": [Case("sum_twice(a, b, c, 0.3, 0.2)", lambda x: (0.7 * x.a + 0.3 * x.b) * 0.8 + x.c * 0.2)],
    "triple_sum": [Case("triple_sum(a, b, c, 0.3, 0.2)", lambda x: 0.5 * x.a + 0.3 * x.b + 0.2 * x.c)],
    "pick": [Case("pick([a, b, c], 2)", lambda x: x.b)],
    "fallback": [Case("fallback([b, a])", lambda x: x.b)],
    "adjust": [Case("adjust(a, out=2, contrast=1.5, col1=0.25)", adjusted)],
    "clip": [Case("clip(base, [a, b, c])", lambda x: np.clip(
        x.base, np.minimum.reduce([x.a, x.b, x.c]), np.maximum.reduce([x.a, x.b, x.c])))],
    "add_difference_clamped": [
        Case("add_difference_clamped(a, b, c, 0.8)",
             lambda x: np.clip(x.a + (x.b - x.c) * 0.8, np.minimum(x.a, x.b), np.maximum(x.a, x.b)))
    ],
    "limit": [Case("a + limit(b - base, 0.01)", lambda x: x.a + np.clip(x.b - x.base, -0.01, 0.01))],
    "nearswap": [Case("nearswap(a, b, 0.01)", swapped)],
    "tensor_sum": [Case("tensor_sum(a, b, 0.25, n=0.5)", rows_of_b)],
    "sign_agreement": [
        Case("sign_agreement([a - base, (b - base) @ 0.5])", lambda x: agreement(x.deltas[:2], [1, 0.5]))
    ],
    "perpendicular_component": [
        Case("perpendicular_component(a - base, b - base)", lambda x: perpendicular(*x.deltas[:2]))
    ],
    "add_perpendicular": [
        Case("add_perpendicular(a, b, base, 0.7)", lambda x: x.a + 0.7 * perpendicular(*x.deltas[:2]))
    ],
    "train_difference": [Case("train_difference(a, b, c, 0.7)", lambda x: train(x.a, x.b, x.c, 0.7))],
    "similarity_add_difference": [
        Case("similarity_add_difference(a, b, c, 0.7, 0.5)", lambda x: similarity(x.a, x.b, x.c, 0.7, 0.5))
    ],
    "euclidean_add_difference": [
        Case("euclidean_add_difference(a, b, base, 0.25)", lambda x: euclidean(x.a, x.b, x.base, 0.25))
    ],
    "multiply_difference": [
        Case("multiply_difference(a, b, base, 0.25)", lambda x: multiply(x.a, x.b, x.base, 0.25, 0.5))
    ],
    "ties_trim": [Case("ties_trim(a - base, 0.3)", lambda x: trim(x.deltas[0], Fraction(3, 10)))],
    "sum_sign": [
        Case("sum_sign([a - base, (b - base) @ 0.5, c - base])", lambda x: elect(x.deltas, [1, 0.5, 1])),
        Case("sum_sign([a - base, (b - base) @ 0.5, c - base], elect=count, normalize=false)",
             lambda x: elect(x.deltas, [1, 0.5, 1], by_count=True, mean=False)),
    ],
    "ties": [
        Case("ties(base, [a, b @ 0.5, c], scale=0.7)",
             lambda x: x.base + 0.7 * elect([trim(d, Fraction(1, 5)) for d in x.deltas], [1, 0.5, 1]))
    ],
    "match_l1": [
        Case("match_l1(ties_trim(a - base, 0.3), a - base)",
             lambda x: rescaled(trim(x.deltas[0], Fraction(3, 10)), x.deltas[0]))
    ],
    "dare_drop": [
        Case("dare_drop(a - base, 0.4)", lambda x: dropped(x)[0]),
        Case("dare_drop(a - base, 0.4, rescale=l1)", lambda x: dared(x.deltas[:1], Fraction(2, 5), "l1", x.name)[0]),
    ],
    "dare": [Case("dare(base, [a, b @ 0.5], 0.4)", lambda x: x.base + dropped(x)[0] + 0.5 * dropped(x)[1])],
    "dare_linear": [Case("dare_linear(base, [a, b], 0.4)", lambda x: x.base + sum(dropped(x)))],
    "dare_ties": [Case("dare_ties(base, [a, b @ 0.5], 0.4)", lambda x: x.base + elect(dropped(x), [1, 0.5]))],
    "della_drop": [Case("della_drop(a - base, 0.5, 0.25)", lambda x: dellas(x)[0])],
    "della": [Case("della(base, [a, b @ 0.5], 0.5, 0.25)", lambda x: x.base + elect(dellas(x), [1, 0.5]))],
    "della_linear": [
        Case("della_linear(base, [a, b @ 0.5], 0.5, 0.25)", lambda x: x.base + dellas(x)[0] + 0.5 * dellas(x)[1])
    ],
    "breadcrumbs_trim": [Case("breadcrumbs_trim(a - base, 0.5, 0.1)", lambda x: bands(x, 1)[0])],
    "breadcrumbs": [
        Case("breadcrumbs(base, [a, b @ 0.5], 0.5, 0.1)", lambda x: x.base + bands(x, 2)[0] + 0.5 * bands(x, 2)[1])
    ],
    "breadcrumbs_ties": [
        Case("breadcrumbs_ties(base, [a, b, c @ 0.5], 0.5, 0.1)", lambda x: x.base + elect(bands(x, 3), [1, 1, 0.5]))
    ],
    "slerp": [
        Case("slerp(a, b, 0.3)", lambda x: slerp(x.a, x.b, 0.3)),
        Case("slerp(a, b, 0.3, norm=lerp)", lambda x: slerp(x.a, x.b, 0.3, lengths=True)),
    ],
    "nuslerp": [Case("nuslerp([a @ 3, b], base=base)", nuslerped)],
    "multislerp": [
        Case("multislerp([a, b @ 0.5, c])", lambda x: sphere([x.a, x.b, x.c], [1, 0.5, 1], karcher=False)),
        Case("multislerp([a, b, c], base=base)", lambda x: x.base + sphere(x.deltas, [1, 1, 1], karcher=False)),
    ],
    "karcher": [
        Case("karcher([a, b @ 0.5, c])", lambda x: sphere([x.a, x.b, x.c], [1, 0.5, 1], karcher=True), slack=5000),
        Case("karcher([a, b, c], base=base)", lambda x: x.base + sphere(x.deltas, [1, 1, 1], karcher=True), slack=5000),
    ],
    "median": [
        Case("median([a, b, c])", lambda x: np.median(np.stack([x.a, x.b, x.c]), axis=0)),
        Case("median([base, a, b, c])", lambda x: np.median(np.stack([x.base, x.a, x.b, x.c]), axis=0)),
    ],
    "geometric_mean": [
        Case("geometric_mean([a, b @ 0.5, c])", lambda x: geometric([x.a, x.b, x.c], [1, 0.5, 1])),
        Case("geometric_mean([a, b])", lambda x: geometric([x.a, x.b], [1, 1])),
    ],
    "geometric_median": [
        Case("geometric_median([a, b @ 0.75, c])", lambda x: nearest([x.a, x.b, x.c], [1, 0.75, 1]), slack=1e5)
    ],
    "fisher": [Case("fisher([a, b @ 0.5], information=[fa, fb])", informed)],
    "model_stock": [
        Case("model_stock(base, [a, b, c])", lambda x: x.base + stock(x.deltas)),
        Case("model_stock(base, [a, b], filter_wise=true)", lambda x: stocked(x.base, [x.a, x.b])),
    ],
    "sce": [
        Case("sce(base, [a, b, c])", lambda x: x.base + sce(x.deltas, Fraction(1))),
        Case("sce(base, [a, b, c], select=0.3)", lambda x: x.base + sce(x.deltas, Fraction(3, 10))),
    ],
    "ram": [Case("ram(base, [a, b, c], epsilon=0.005)", lambda x: x.base + ram(x.deltas, 0.005))],
    "ram_plus": [
        Case("ram_plus(base, [a, b], 0.5, 3, 0.005)", lambda x: ram_plus(x.base, [x.a, x.b], 0.5, 3, 0.005))
    ],
    "magmax": [Case("magmax(base, [a, b])", lambda x: x.base + max_magnitude(*x.deltas[:2]))],
    "truncate_rank": [Case("truncate_rank(a - base, 2)", lambda x: truncate(x.deltas[0], 2))],
    "extract": [Case("extract(base, a, b, 0.25, 0.2, 1.5)", lambda x: extract(x.base, x.a, x.b, 0.25, 0.2, 1.5))],
    "add_cosine_a": [Case("add_cosine_a(a, b, 0.3)", lambda x: cosine_mix(x.a, x.b, 0.3, whole=False))],
    "add_cosine_b": [Case("add_cosine_b(a, b, 0.3)", lambda x: cosine_mix(x.a, x.b, 0.3, whole=True))],
    "top_k_tensor_sum": [Case("top_k_tensor_sum(a, b, 0.5, 0.2)", lambda x: top_k(x.a, x.b, "1/2", "1/5"))],
    "distribution_crossover": [
        Case("distribution_crossover(a, b, base, 0.3, 0.1)", lambda x: crossed(x.a, x.b, x.base, 0.3, 0.1), slack=200)
    ],
    "arcee_fusion": [Case("arcee_fusion(base, a)", fusion, unsure=near_the_threshold)],
    "smooth": [Case("smooth(a - base)", lambda x: smoothed(x.deltas[0]))],
    "smooth_add": [Case("smooth_add(a, b, base, 0.7)", lambda x: x.a + 0.7 * smoothed(x.deltas[1]))],
    "mergekit_sum": [
        Case("mergekit_sum([a - base, (b - base) @ 0.5], dtype=float32)",
             lambda x: x.deltas[0] + 0.5 * x.deltas[1], single=True)
    ],
    "mergekit_mean": [
        Case("mergekit_mean([a - base, (b - base) @ 0.5], dtype=float32)",
             lambda x: (x.deltas[0] + 0.5 * x.deltas[1]) / 1.5, single=True)
    ],
    "mergekit_elect": [
        Case("mergekit_elect([a - base, (b - base) @ 0.5], dtype=float32)", kit_elected, single=True)
    ],
    "mergekit_linear": [
        Case("mergekit_linear([a @ 0.5, b @ 0.25], dtype=float32)",
             lambda x: (0.5 * x.a + 0.25 * x.b) / 0.75, single=True)
    ],
    "mergekit_trim": [Case("mergekit_trim(a - base, 0.3)", lambda x: trim(x.deltas[0], Fraction(3, 10)))],
    "mergekit_nearswap": [Case("mergekit_nearswap(a, b, 0.01, dtype=float32)", swapped, single=True)],
    "mergekit_ram": [
        Case("mergekit_ram([a - base, b - base], dtype=float32, epsilon=0.005)",
             lambda x: ram(x.deltas[:2], 0.005), single=True)
    ],
    "mergekit_ram_plus": [
        Case("mergekit_ram_plus([a - base, b - base], dtype=float32, r=0.5, most=3, epsilon=0.005)",
             lambda x: ram_plus(x.base, [x.a, x.b], 0.5, 3, 0.005) - x.base, single=True)
    ],
}  # fmt: skip

CALLS = [case.call for cases in CASES.values() for case in cases]
MOVED = ("top_k_tensor_sum",)  # values are put into other places
COPIES = ("pick", "fallback", "adjust")  # bytes are taken as they are
