"""Models for the tests of methods: a base and fine-tunes of it in every dtype and shape, and reading results back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from support.builds import merged
from support.checkpoints import Model, Tensor, numbers, related, weights
from support.exact import FORMATS, Format, decode

SHAPES: dict[str, tuple[int, ...]] = {
    "none": (0,), "scalar": (), "one": (1,), "two": (2,), "row": (99,), "hundred": (10, 10), "thin": (7, 1),
    "conv": (4, 3, 3, 3), "same": (50,),
}  # fmt: skip


def family(code: str, names: str = "abc", seed: int = 5) -> dict[str, Model]:
    """A base called `o` and fine-tunes of it, which share the tensor `same` and the integers."""
    rng = np.random.default_rng(seed)
    f = FORMATS[code]
    base: Model = {name: weights(rng, code, shape) for name, shape in SHAPES.items()}
    base["ids"] = numbers("I64", range(5))
    models = {"o": base}
    for name in names:
        step = 0.5 if f.size == 1 else 0.01
        tuned = {key: t if key in ("same", "ids") else related(rng, t, step) for key, t in base.items()}
        models[name] = tuned
    return models


def doubles(t: Tensor) -> np.ndarray:
    """The values of a tensor; infinities and NaN too."""
    f = FORMATS[t.code]
    bits = np.frombuffer(t.data, f.unsigned)
    if f.code in ("F64", "F32", "F16"):
        found = bits.view({"F64": np.float64, "F32": np.float32, "F16": np.float16}[f.code]).astype(np.float64)
    else:
        found = np.array([_double(f, int(b)) for b in bits])
    return found.reshape(t.shape)


def _double(f: Format, bits: int) -> float:
    value = decode(f, bits)
    if value is not None:
        return float(value)
    fraction = bits & ((1 << f.mantissa) - 1)
    sign = -1.0 if bits >> (8 * f.size - 1) else 1.0
    return float("nan") if fraction or f.finite else sign * float("inf")


def results(folder: Path, expression: str, models: Mapping[str, Model], dtype: str = "", **more: str) -> Model:
    folder.mkdir(exist_ok=True)
    return merged(folder, expression, models, dtype=dtype, **more)


def close(found: Tensor, wanted: np.ndarray, steps: float = 1.0) -> None:
    """Equal but for `steps` units in the last place of the dtype, at the size of the largest value."""
    f, got = FORMATS[found.code], doubles(found)
    assert got.shape == wanted.shape
    if not got.size:
        return
    finite = np.isfinite(wanted)
    assert np.array_equal(np.isnan(got), np.isnan(wanted))
    assert np.array_equal(got[~finite & ~np.isnan(wanted)], wanted[~finite & ~np.isnan(wanted)])
    unit = np.maximum(np.abs(wanted[finite]), 2.0 ** float(f.lowest + f.mantissa)) * 2.0**-f.mantissa
    slack = 2.0**-50 * np.abs(wanted[finite]).max(initial=0)  # of the float64 that the oracle counts in
    assert (np.abs(got[finite] - wanted[finite]) <= steps * unit + slack).all()
