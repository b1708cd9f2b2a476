"""The k-th magnitude against a full sort, on values that are hard to bracket."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from mergeflow.methods import selection
from mergeflow.methods.kernels import GRID
from mergeflow.methods.selection import kth_magnitude, value_of
from mergeflow.tensors import DType


class Whole:
    """A tensor as a kernel goes through it; counts how often."""

    def __init__(self, values: np.ndarray) -> None:
        self.tensor, self.elements, self.tiles_read = torch.from_numpy(values), values.size, 0

    def tiles(self, every: int = 1) -> Iterator[list[torch.Tensor]]:
        for begin in range(0, self.elements, GRID * every):
            self.tiles_read += 1
            yield [self.tensor[begin : begin + GRID]]


N = 700_001
_RNG = np.random.default_rng(4)
VALUES = {
    "normal": _RNG.normal(size=N),
    "sorted": np.sort(_RNG.normal(size=N)),
    "mostly zero": np.where(_RNG.random(N) < 0.97, 0.0, _RNG.normal(size=N)),
    "few values": _RNG.integers(-3, 4, N) / 8,
    "all equal": np.full(N, -0.25),
    "half precision": (_RNG.normal(size=N) * 0.01).astype(np.float16).astype(np.float64),
    "wide": np.exp(_RNG.normal(size=N) * 8),
    "tail in one tile": np.concatenate([np.full(N - GRID, 1e-9), 1 + _RNG.random(GRID)]),
    "infinite": np.where(_RNG.random(N) < 0.3, -np.inf, _RNG.normal(size=N)),
    "no numbers": np.where(_RNG.random(N) < 0.3, np.nan, _RNG.normal(size=N)),
}


@pytest.mark.parametrize("compute", [DType.F32, DType.F64], ids=str)
@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("k", [1, 2, N // 5, N // 2, N - 1, N])
def test_it_is_what_sorting_gives(name: str, compute: DType, k: int) -> None:
    values = VALUES[name].astype(np.float32 if compute is DType.F32 else np.float64)
    found = kth_magnitude(Whole(values), k, compute)
    wanted = np.sort(np.abs(values))[values.size - k]  # numpy sorts NaN to the end
    value = value_of(found, compute)
    assert value == wanted or (np.isnan(value) and np.isnan(wanted))


@pytest.mark.parametrize("name", VALUES)
def test_however_little_may_be_collected(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "COLLECT", 100)
    values = VALUES[name].astype(np.float32)
    found = value_of(kth_magnitude(Whole(values), N // 5, DType.F32), DType.F32)
    wanted = np.sort(np.abs(values))[N - N // 5]
    assert found == wanted or (np.isnan(found) and np.isnan(wanted))


def test_usually_one_pass_is_enough() -> None:
    whole = Whole(VALUES["normal"].astype(np.float32))
    kth_magnitude(whole, N // 5, DType.F32)
    assert whole.tiles_read <= 2 * -(-N // GRID)
