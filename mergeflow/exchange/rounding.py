"""mergekit's arithmetic as rounding points: the same operations in its order, each rounded where it rounds.

What it does, by its documentation and by comparing results (tests/peers):

    linear            ((0 + w1·x1) + w2·x2 + …) / Σw    in float32 (float64 for float64), then the tensors' dtype;
                                                        each + w·x is fused, and rounded once
    task_arithmetic   base + λ·Σ wᵢ·(xᵢ − base)         each difference, product and sum in the tensors' dtype; Σ in
                                                        float32 and rounded once where they have 16 bits

with weights rounded to that dtype first. Every operation is a step with `round:`; a product of two numbers of 24 bits
is exact in float64, and so is rounded once.
"""

from __future__ import annotations

import struct
from fractions import Fraction

from mergeflow.exchange.draft import spelled
from mergeflow.exchange.mergekit_merge import Merge, Setting
from mergeflow.recipe.expression import spell
from mergeflow.tensors import DType


def rounded(value: Fraction, dtype: DType) -> Fraction:
    """The nearest number of a dtype, as a tensor of one number would hold it. Python's floats come first, as there."""
    number = float(value)
    if dtype is DType.F64:
        return Fraction(number)
    if dtype is DType.F32:
        return Fraction(struct.unpack("f", struct.pack("f", number))[0])
    if dtype is DType.F16:
        return Fraction(struct.unpack("e", struct.pack("e", number))[0])
    single = struct.unpack("I", struct.pack("f", number))[0]
    single = (single + 0x7FFF + ((single >> 16) & 1)) & 0xFFFF0000
    return Fraction(struct.unpack("f", struct.pack("I", single))[0])


def _weight(merge: Merge, setting: Setting, dtype: DType) -> Fraction:
    if not isinstance(setting, Fraction):
        raise merge.where.error("--faithful takes weights that are numbers, the same for all tensors")
    return rounded(setting, dtype)


def _step(merge: Merge, wish: str, expr: str, dtype: DType) -> str:
    return spell(merge.draft.step(wish, {"expr": expr, "round": dtype.label}))


def _total(parts: list[str]) -> str:
    return f"linear([{', '.join(parts)}], normalize=false)"


def linear(merge: Merge, normalize: bool) -> str:
    assert merge.dtype is not None
    wide = DType.F64 if merge.dtype is DType.F64 else DType.F32
    weights = [_weight(merge, merge.of(model, "weight", None), wide) for model in merge.models]
    names = merge.names()
    total = ""
    for name, weight in zip(names, weights, strict=True):
        term = name if weight == 1 else f"{name} @ {spelled(weight)}"
        total = _step(merge, "sum", _total([total, term] if total else [term]), wide)
    if normalize:
        over = Fraction(0)
        for weight in weights:
            over = rounded(over + weight, wide)
        if not over:
            raise merge.where.error("the weights add up to 0, and normalize: true divides by that")
        total = _step(merge, "mean", f"scale({total}, 1/{spelled(over)})", wide)
    return _step(merge, "result", total, merge.dtype)


def task_arithmetic(merge: Merge, base: str, normalize: bool) -> str:
    assert merge.dtype is not None
    deltas = [_step(merge, f"{model.name}_delta", f"{model.name} - {base}", merge.dtype) for model in merge.models]
    return _added(merge, base, deltas, normalize=normalize)


def breadcrumbs(merge: Merge, base: str, *, normalize: bool) -> str:
    assert merge.dtype is not None
    deltas = []
    for model in merge.models:
        delta = _step(merge, f"{model.name}_delta", f"{model.name} - {base}", merge.dtype)
        density = _plain(merge, merge.of(model, "density", Fraction(1)))
        gamma = _plain(merge, merge.of(model, "gamma", Fraction(1, 100)))
        deltas.append(f"breadcrumbs_trim({delta}, {density}, {gamma})")
    return _added(merge, base, deltas, normalize=normalize)


def ties(merge: Merge, base: str) -> str:
    """Without normalization: that divides by the weights of those elected, value by value."""
    assert merge.dtype is not None
    parts = []
    for model in merge.models:
        delta = _step(merge, f"{model.name}_delta", f"{model.name} - {base}", merge.dtype)
        density = merge.of(model, "density", Fraction(1))
        kept = delta if density == 1 else f"ties_trim({delta}, {_plain(merge, density)})"
        weight = _weight(merge, merge.of(model, "weight", None), merge.dtype)
        parts.append(_step(merge, f"{model.name}_part", f"{kept} * {spelled(weight)}", merge.dtype))
    mixed = _step(merge, "mixed", f"sum_sign([{', '.join(parts)}], elect=sum, normalize=false)", merge.dtype)
    return _result(merge, base, mixed)


def _plain(merge: Merge, setting: Setting) -> str:
    if not isinstance(setting, Fraction):
        raise merge.where.error("--faithful takes a density that is the same for all tensors")
    return spelled(setting)


def _added(merge: Merge, base: str, deltas: list[str], *, normalize: bool) -> str:
    dtype = merge.dtype
    assert dtype is not None
    weights = [_weight(merge, merge.of(model, "weight", None), dtype) for model in merge.models]
    parts = [
        _step(merge, f"{model.name}_part", f"{delta} * {spelled(weight)}", dtype)
        for model, delta, weight in zip(merge.models, deltas, weights, strict=True)
    ]
    if dtype.bits <= 16:  # summed in float32 and rounded once
        mixed = _step(merge, "mixed", " + ".join(parts), dtype)
    else:
        mixed = parts[0]
        for part in parts[1:]:
            mixed = _step(merge, "mixed", f"{mixed} + {part}", dtype)
    if normalize:
        over = rounded(sum(weights, Fraction(0)), dtype)
        if abs(over) >= Fraction(1, 10**8):
            mixed = _step(merge, "mean", f"{mixed} / {spelled(over)}", dtype)
    return _result(merge, base, mixed)


def _result(merge: Merge, base: str, mixed: str) -> str:
    dtype = merge.dtype
    assert dtype is not None
    scale = merge.common("lambda", Fraction(1))
    if scale != 1:
        number = _weight(merge, scale, DType.F64 if dtype is DType.F64 else DType.F32)
        mixed = _step(merge, "scaled", f"{mixed} * {spelled(number)}", dtype)
    return _step(merge, "result", f"{base} + {mixed}", dtype)
