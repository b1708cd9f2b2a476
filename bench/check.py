"""Checks a contender's output against numpy, on files small enough for that.

A contender that does not make the right numbers has no time worth writing down. Right means: within one unit in the
last place of float16 of the exact result, which allows another order of the additions and nothing else. Integers must
have the right values; their type may differ (sd-mecha makes position ids float16, and says so nowhere).

The reference is exact: integer weights over one denominator, whose sums of float16 values float64 holds without
rounding, one division, one rounding to float16. TIES is done as its paper says, in float64 from differences that are
rounded to float32, which is what mergeflow promises to compare and to count with.
"""

import math
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from safetensors import safe_open

from bench.workloads import Workload


class WrongOutput(Exception):
    """An output that is not the merge that was asked for."""


def check(workload: Workload, inputs: list[Path], output: Path, only: Collection[str] | None = None) -> float:
    """Raises WrongOutput, or returns how many elements of a million are not the correctly rounded result. `only`: the
    tensors that are looked at; all of them unless told."""
    weights = [weight.as_integer_ratio() for weight in workload.weights.values()]
    whole = math.lcm(*(below for _, below in weights))
    shares = [above * whole // below for above, below in weights]
    missed = elements = 0
    with safe_open(output, "numpy") as merged:
        models = [safe_open(path, "numpy") for path in inputs]
        names = set(models[0].keys())
        if set(merged.keys()) != names:
            raise WrongOutput(f"tensor names differ: {sorted(names ^ set(merged.keys()))[:3]}")
        for name in sorted(names if only is None else names & set(only)):
            tensors = [model.get_tensor(name) for model in models]
            missed += _compare(name, tensors, shares, whole, merged.get_tensor(name))
            elements += tensors[0].size
    return 1e6 * missed / elements


def check_ties(base: Path, models: Sequence[Path], density: float, output: Path, only: Collection[str]) -> float:
    """The same of ties(base, models, density), of the tensors `only`."""
    missed = elements = 0
    with safe_open(output, "numpy") as merged, safe_open(base, "numpy") as first:
        others = [safe_open(path, "numpy") for path in models]
        if set(merged.keys()) != set(first.keys()):
            raise WrongOutput(f"tensor names differ: {sorted(set(merged.keys()) ^ set(first.keys()))[:3]}")
        for name in sorted(only):
            own, got = first.get_tensor(name), merged.get_tensor(name)
            if own.dtype.kind == "i":
                missed += _compare(name, [own], [1], 1, got)
            else:
                exact = own.astype(np.float64) + _ties(own, [other.get_tensor(name) for other in others], density)
                missed += _nearest(name, exact, got)
            elements += own.size
    return 1e6 * missed / elements


def _ties(base: np.ndarray, models: list[np.ndarray], density: float) -> np.ndarray:
    """Trim, elect, disjoint mean: Yadav et al. 2023, arXiv:2306.01708, section 4."""
    kept = []
    for model in models:
        delta = (model.astype(np.float64) - base.astype(np.float64)).astype(np.float32)
        size, k = np.abs(delta), max(1, math.floor(density * delta.size))
        least = np.sort(size, axis=None)[delta.size - k]
        kept.append(np.where(size >= least, delta, np.float32(0)).astype(np.float64))
    sign = np.sign(sum(kept))
    agree = [delta * (np.sign(delta) == sign) * (sign != 0) for delta in kept]
    count = sum((delta != 0).astype(np.float64) for delta in agree)
    mean: np.ndarray = sum(agree) / np.maximum(count, 1.0)
    return mean


def _compare(name: str, tensors: list[np.ndarray], shares: list[int], whole: int, got: np.ndarray) -> int:
    if tensors[0].dtype.kind == "i":
        if not np.array_equal(got, tensors[0]):
            raise WrongOutput(f"{name}: integers changed")
        return 0
    exact = np.zeros(tensors[0].shape)
    for tensor, share in zip(tensors, shares, strict=True):
        exact += tensor.astype(np.float64) * share
    exact /= whole
    return _nearest(name, exact, got)


def _nearest(name: str, exact: np.ndarray, got: np.ndarray) -> int:
    """How many are not the nearest; none may be off by more than one unit in the last place."""
    if got.shape != exact.shape:
        raise WrongOutput(f"{name}: shape {got.shape}, not {exact.shape}")
    if got.dtype != np.float16:
        raise WrongOutput(f"{name}: {got.dtype}, not float16")
    rounded = exact.astype(np.float16)
    off = np.abs(got.astype(np.float64) - exact) > np.spacing(np.abs(rounded)).astype(np.float64)
    if off.any():
        raise WrongOutput(f"{name}: {off.sum()} of {off.size} numbers are off by more than one unit in the last place")
    return int(np.count_nonzero(got != rounded))
