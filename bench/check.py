"""Checks a contender's output against numpy, on files small enough for that.

A contender that does not make the right numbers has no time worth writing down. Right means: within one unit in the
last place of float16 of the exact result, which allows another order of the additions and nothing else. Integers must
have the right values; their type may differ (sd-mecha makes position ids float16, and says so nowhere).

The reference is exact: integer weights over one denominator, whose sums of float16 values float64 holds without
rounding, one division, one rounding to float16.
"""

import math
from pathlib import Path

import numpy as np
from safetensors import safe_open

from bench.workloads import Workload


class WrongOutput(Exception):
    """An output that is not the merge that was asked for."""


def check(workload: Workload, inputs: list[Path], output: Path) -> float:
    """Raises WrongOutput, or returns how many elements of a million are not the correctly rounded result."""
    weights = [weight.as_integer_ratio() for weight in workload.weights.values()]
    whole = math.lcm(*(below for _, below in weights))
    shares = [above * whole // below for above, below in weights]
    missed = elements = 0
    with safe_open(output, "numpy") as merged:
        models = [safe_open(path, "numpy") for path in inputs]
        names = set(models[0].keys())
        if set(merged.keys()) != names:
            raise WrongOutput(f"tensor names differ: {sorted(names ^ set(merged.keys()))[:3]}")
        for name in sorted(names):
            tensors = [model.get_tensor(name) for model in models]
            missed += _compare(name, tensors, shares, whole, merged.get_tensor(name))
            elements += tensors[0].size
    return 1e6 * missed / elements


def _compare(name: str, tensors: list[np.ndarray], shares: list[int], whole: int, got: np.ndarray) -> int:
    if got.shape != tensors[0].shape:
        raise WrongOutput(f"{name}: shape {got.shape}, not {tensors[0].shape}")
    if tensors[0].dtype.kind == "i":
        if not np.array_equal(got, tensors[0]):
            raise WrongOutput(f"{name}: integers changed")
        return 0
    if got.dtype != np.float16:
        raise WrongOutput(f"{name}: {got.dtype}, not float16")
    exact = np.zeros(got.shape)
    for tensor, share in zip(tensors, shares, strict=True):
        exact += tensor.astype(np.float64) * share
    exact /= whole
    rounded = exact.astype(np.float16)
    off = np.abs(got.astype(np.float64) - exact) > np.spacing(np.abs(rounded)).astype(np.float64)
    if off.any():
        raise WrongOutput(f"{name}: {off.sum()} of {off.size} numbers are off by more than one unit in the last place")
    return int(np.count_nonzero(got != rounded))
