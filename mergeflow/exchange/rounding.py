"""mergekit's arithmetic where it can be had again bit for bit: calls of the methods in `mergeflow.methods.mergekit`,
around differences that a step of their own has rounded.

What decides a result there besides such roundings cannot be repeated: sums over whole tensors (lengths, angles), which
torch takes in an order that depends on the processor and the number of threads, and random masks.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from fractions import Fraction

from mergeflow.exchange.draft import spelled
from mergeflow.exchange.mergekit_merge import Input, Merge, say
from mergeflow.recipe.expression import spell
from mergeflow.tensors import DType

IN_ORDER = 4  # of more models than that, the order of torch's sums depends on the width of vectors
ONE = Fraction(1)
Trim = Callable[[Input, str], str]  # a model's difference, made sparse


def linear(merge: Merge, *, normalize: bool) -> str:
    """((0 + w1·x1) + w2·x2 + …) / Σw in float32, each + w·x rounded once, then the tensors' dtype."""
    weights = [merge.of(model, "weight", None) for model in merge.models]
    if normalize and sum(w for w in weights if isinstance(w, Fraction)) == 0:
        raise merge.where.error("the weights add up to 0, and normalize: true divides by that")
    _say_order(merge)
    return f"mergekit_linear({merge.weighted()}, {_dtype(merge)}, normalize={say(normalize)})"


def passthrough(merge: Merge, scale: Fraction) -> str:
    """x·scale in float32, the scale rounded to that, then the tensors' dtype."""
    name = merge.models[0].name
    if scale == 1:
        return name
    single = struct.unpack("f", struct.pack("f", float(scale)))[0]
    scaled = _step(merge, "scaled", f"scale({name}, {spelled(Fraction(single))})", DType.F32)
    return scaled if merge.dtype is DType.F32 else _rounded(merge, "result", scaled)


def tasks(merge: Merge, base: str, *, elect: bool, normalize: bool, trim: Trim | None = None) -> str:
    """base + lambda·Σ wᵢ·(xᵢ − base), or what else is made of the differences."""
    _say_order(merge)
    deltas = []
    for model in merge.models:
        delta = _rounded(merge, f"{model.name}_delta", f"{model.name} - {base}")
        weight = merge.of(model, "weight", None)
        sparse = trim(model, delta) if trim is not None else delta
        deltas.append(sparse if weight == 1 else f"{sparse} @ {say(weight)}")
    scale = merge.common("lambda", ONE)
    method = "mergekit_elect" if elect else "mergekit_mean" if normalize else "mergekit_sum"
    settings = f", normalize={say(normalize)}" if elect else ""
    settings += f", scale={say(scale)}" if scale != 1 else ""
    mixed = f"{method}([{', '.join(deltas)}], {_dtype(merge)}{settings})"
    return _rounded(merge, "result", f"{base} + {mixed}")


def nearswap(merge: Merge, base: str, other: str) -> str:
    return f"mergekit_nearswap({base}, {other}, {say(merge.common('t', None))}, {_dtype(merge)})"


def ram(merge: Merge, base: str, method: str, settings: str) -> str:
    """base + what the method makes of the differences. `settings`: as they are written in a call."""
    _say_order(merge)
    deltas = [_rounded(merge, f"{model.name}_delta", f"{model.name} - {base}") for model in merge.models]
    expr = f"{base} + {method}([{', '.join(deltas)}], {_dtype(merge)}, {settings})"
    return _step(merge, "result", expr, merge.result) if merge.result is not None else _rounded(merge, "result", expr)


def _dtype(merge: Merge) -> str:
    assert merge.dtype is not None
    return f"dtype={merge.dtype.label}"


def _rounded(merge: Merge, wish: str, expr: str) -> str:
    assert merge.dtype is not None
    return _step(merge, wish, expr, merge.dtype)


def _step(merge: Merge, wish: str, expr: str, dtype: DType) -> str:
    return spell(merge.draft.step(wish, {"expr": expr, "round": dtype.label}))


def _say_order(merge: Merge) -> None:
    if len(merge.models) > IN_ORDER:
        merge.draft.lose(
            f"{merge.method} of more than {IN_ORDER} models: mergekit adds some values up in another order, which "
            "depends on the processor"
        )
