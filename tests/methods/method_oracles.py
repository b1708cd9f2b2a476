"""The formulas of the papers in numpy's float64, and Philox from its own paper: nothing here knows mergeflow."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import floor

import numpy as np
from blake3 import blake3

Array = np.ndarray
M64 = (1 << 64) - 1


def trim(delta: Array, density: Fraction) -> Array:
    """TIES, arXiv:2306.01708, section 4, per tensor; as many as are as large as the last one kept."""
    n = delta.size
    if not n or not density:
        return np.zeros_like(delta)
    k = min(n, max(1, floor(density * n)))
    size = np.where(np.isnan(delta), np.inf, np.abs(delta))
    order = np.lexsort((np.isnan(delta).ravel(), size.ravel()))  # NaN after infinity
    last = order[n - k]
    if np.isnan(delta.ravel()[last]):
        keep = np.isnan(delta)
    else:
        keep = np.isnan(delta) | (np.abs(delta) >= np.abs(delta.ravel()[last]))
    return np.where(keep, delta, 0.0)


def elect(deltas: Sequence[Array], weights: Sequence[float], *, by_count: bool = False, mean: bool = True) -> Array:
    """Sign election and disjoint mean, arXiv:2306.01708, section 4, with weights."""
    weighed = [w * d for w, d in zip(weights, deltas, strict=True)]
    sign = np.sign(sum(np.sign(x) if by_count else x for x in weighed))
    agree = [(np.sign(x) == sign) & (x != 0) for x in weighed]
    total = sum(np.where(a, x, 0.0) for a, x in zip(agree, weighed, strict=True))
    if not mean:
        return total
    over = sum(np.where(a, abs(w), 0.0) for a, w in zip(agree, weights, strict=True))
    return np.where(over > 0, total / np.where(over > 0, over, 1), 0.0)


def philox(counter: int, key: tuple[int, int]) -> list[int]:
    """Philox4x64-10: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3."""
    c = [(counter >> (64 * i)) & M64 for i in range(4)]
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * c[0], 1 << 64)
        high1, low1 = divmod(0xCA5A826395121157 * c[2], 1 << 64)
        c = [high1 ^ c[1] ^ k0, low1, high0 ^ c[3] ^ k1, low0]
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & M64, (k1 + 0xBB67AE8584CAA73B) & M64
    return c


def mask(n: int, density: Fraction, tensor: str, *, seed: int = 0, stream: int = 0) -> Array:
    """What docs/methods.md says of the masks: element i takes 16 bits, and 64 more where those do not decide."""
    digest = blake3(f"mergeflow mask 1\ndare_drop\n{seed}\n{stream}\n{tensor}".encode()).digest()
    key = int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little")
    keep = np.zeros(n, bool)
    for i in range(n):
        word = philox(i // 16 + 1, key)[i % 16 // 4]
        part = (word >> (16 * (i % 4))) & 0xFFFF
        if Fraction(part + 1, 65536) <= density:
            keep[i] = True
        elif Fraction(part, 65536) < density:
            more = blake3(digest + i.to_bytes(8, "little")).digest()[:8]
            rest = floor((density * 65536 - part) * (1 << 64))
            keep[i] = int.from_bytes(more, "little") < rest
    return keep


def slerp(a: Array, b: Array, t: float, *, lengths: bool = False) -> Array:
    """Shoemake 1985; linear where there is no angle."""
    la, lb = np.sqrt(np.sum(a * a)), np.sqrt(np.sum(b * b))
    if not la or not lb:
        return (1 - t) * a + t * b
    angle = 2 * np.arctan2(np.linalg.norm(a / la - b / lb), np.linalg.norm(a / la + b / lb))  # good near 0, too
    if not np.sin(angle) > 1e-12:
        return (1 - t) * a + t * b
    mixed = (1 - t) * la + t * lb
    one, other = (mixed / la, mixed / lb) if lengths else (1.0, 1.0)
    return (np.sin((1 - t) * angle) * one * a + np.sin(t * angle) * other * b) / np.sin(angle)
