"""The formulas of the papers in numpy's float64, and Philox from its own paper: nothing here knows mergeflow."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from math import floor

import numpy as np
from blake3 import blake3
from support.masks import named_mask

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
    """What docs/numerics.md says of the masks."""
    return named_mask(blake3(f"mergeflow mask 2\ndare_drop\n{seed}\n{stream}\n{tensor}".encode()).digest(), density, n)


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


# -- differences thinned out ------------------------------------------------------------------------------------------


def band(delta: Array, density: Fraction, gamma: Fraction) -> Array:
    """arXiv:2312.06795, section 3: without the largest and without the smallest; equals of the kept ones are kept."""
    n, dropped = delta.size, floor(gamma * delta.size)
    if not density or dropped >= n:
        return np.zeros_like(delta)
    kept = np.sort(np.abs(delta).ravel())[::-1][dropped : dropped + max(1, floor(density * n))]
    return np.where((np.abs(delta) >= kept[-1]) & (np.abs(delta) <= kept[0]), delta, 0.0)


def chances(delta: Array, density: float, epsilon: float) -> Array:
    """arXiv:2406.11617, section 3.1, with the mean of ranks for magnitudes that are one to nine binary digits."""
    fraction, order = np.frexp(np.abs(delta).ravel())
    size = np.ldexp(np.floor(fraction * 512), order)
    below = np.array([np.sum(size < x) for x in size])
    same = np.array([np.sum(size == x) for x in size])
    rank = below + (same + 1) / 2
    return (density + epsilon * ((rank - 0.5) / max(1, size.size) - 0.5)).reshape(delta.shape)


@cache
def lots(n: int, tensor: str, *, seed: int = 0, stream: int = 0) -> Array:
    """32 bits for each element: four words of 64 bits a block of Philox."""
    digest = blake3(f"mergeflow mask 1\ndella_drop\n{seed}\n{stream}\n{tensor}".encode()).digest()
    key = int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little")
    words = [philox(block + 1, key) for block in range(-(-n // 8))]
    return np.array([(words[i // 8][i % 8 // 2] >> (32 * (i % 2))) & 0xFFFFFFFF for i in range(n)], np.uint64)


def thinned(delta: Array, density: float, epsilon: float, rescale: str, tensor: str, **more: int) -> Array:
    chance = chances(delta, density, epsilon)
    keep = lots(delta.size, tensor, **more).reshape(delta.shape) < np.rint(chance * 2**32)
    kept = np.where(keep, delta / chance if rescale == "expected" else delta, 0.0)
    under = np.abs(kept).sum()
    return kept * (np.abs(delta).sum() / under if rescale == "l1" and under else 1.0)


def dared(deltas: Sequence[Array], density: Fraction, rescale: str, tensor: str) -> list[Array]:
    """arXiv:2311.03099 over several differences, each with a mask of its own."""
    found = []
    for stream, delta in enumerate(deltas):
        kept = np.where(mask(delta.size, density, tensor, stream=stream).reshape(delta.shape), delta, 0.0)
        under = np.abs(kept).sum()
        whole = np.abs(delta).sum() / under if under else 1.0
        found.append(kept * {"expected": 1 / float(density), "l1": whole, "none": 1.0}[rescale])
    return found


# -- differences put together ----------------------------------------------------------------------------------------


def agreement(deltas: list[np.ndarray], weights: list[float]) -> np.ndarray:
    """arXiv:2009.00329: the mean where all signs are one, else 0."""
    weighed = [w * d for w, d in zip(weights, deltas, strict=True) if w]
    signs = [np.sign(x) for x in weighed]
    agreed = np.all([(s == signs[0]) & (s != 0) for s in signs], axis=0)
    return np.where(agreed, sum(weighed) / sum(abs(w) for w in weights), 0.0)


def train(a: Array, b: Array, c: Array, m: float) -> Array:
    """supermerger's trainDifference: s = sgn(b − c)·|b − a| / (|b − a| + |b − c|); a + 1.8·m·s·|b − c|."""
    total = np.abs(b - a) + np.abs(b - c)
    share = np.divide(np.abs(b - a), total, out=np.zeros_like(a), where=total != 0)
    return a + 1.8 * m * np.sign(b - c) * share * np.abs(b - c)


def similarity(a: Array, b: Array, c: Array, m: float, n: float) -> Array:
    large = np.maximum(np.abs(a), np.abs(b))
    cosine = np.divide(a * b, large**2, out=np.ones_like(a), where=large != 0)
    s = n * (cosine + 1) / 2
    return (1 - s) * (a + m * (b - c)) + s * ((1 - m / 2) * a + m / 2 * b)


def euclidean(a: Array, b: Array, c: Array, m: float) -> Array:
    p, q = a - c, b - c
    u, v = (x / np.linalg.norm(x) if np.any(x) else x for x in (p, q))
    s = (1 - m) * p + m * q
    d = np.sign(s) * np.sqrt((1 - m) * u**2 + m * v**2)
    length = np.sqrt(np.sum((1 - m) * u**2 + m * v**2))
    return c + (d / length * np.linalg.norm(s) if length else 0)


def multiply(a: Array, b: Array, c: Array, m: float, n: float) -> Array:
    p, q = a - c, b - c
    return c + np.sign((1 - n) * p + n * q) * np.abs(p) ** (1 - m) * np.abs(q) ** m


def stock(deltas: Sequence[Array]) -> Array:
    """arXiv:2403.19522, for n models."""
    n = len(deltas)
    cosines = []
    for x, y in itertools.combinations(deltas, 2):
        lengths = np.sqrt(np.sum(x * x)) * np.sqrt(np.sum(y * y))
        cosines.append(np.sum(x * y) / lengths if lengths else 0.0)
    cosine = np.mean(cosines)
    under = 1 + (n - 1) * cosine
    return (n * cosine / under if under >= 1e-6 else 0.0) * sum(deltas) / n


def sce(deltas: Sequence[Array], select: Fraction, *, normalize: bool = True) -> Array:
    """arXiv:2408.07990: select by variance, weights by energy, erase minority signs."""
    together = np.stack(deltas)
    if select < 1:
        variance = np.where((together == together[0]).all(axis=0), 0.0, together.var(axis=0))
        k = floor(select * np.count_nonzero(variance))
        if not k:
            return np.zeros_like(deltas[0])
        least = np.sort(variance.ravel())[-k]
        together = np.where(variance >= least * (1 - 1e-12), together, 0.0)
    energy = np.array([np.sum(x * x) for x in together])
    share = energy / energy.sum() if energy.sum() else np.full(len(deltas), 1 / len(deltas))
    sign = np.sign(together.sum(axis=0))
    agree = np.stack([w * ((np.sign(x) == sign) & (x != 0)) for w, x in zip(share, together, strict=True)])
    total, under = np.sum(agree * together, axis=0), agree.sum(axis=0)
    return np.where(under > 0, total / np.where(under > 0, under, 1), 0.0) if normalize else total


def perpendicular(a: Array, b: Array) -> Array:
    """What Gram and Schmidt leave of b."""
    square = np.sum(a * a)
    return b - a * (np.sum(a * b) / square) if square else b


def ram(deltas: Sequence[Array], epsilon: float) -> Array:
    """arXiv:2601.13572: the mean of those that are active."""
    together = np.stack(deltas)
    active = np.abs(together) > epsilon
    return np.sum(np.where(active, together, 0), axis=0) / np.maximum(active.sum(axis=0), 1)


# -- means -------------------------------------------------------------------------------------------------------------


def geometric(points: Sequence[Array], weights: Sequence[float]) -> Array:
    """The real part of the complex product of powers, without numpy's rounding of cos(π/2)."""
    shares = np.array(weights) / sum(weights)
    size = np.prod([np.abs(x) ** w for x, w in zip(points, shares, strict=True)], axis=0)
    turn = sum((w * (x < 0) for x, w in zip(points, shares, strict=True)), np.zeros(points[0].shape))
    return size * np.where(np.abs(turn - 0.5) < 1e-12, 0.0, np.cos(np.pi * turn))


def sphere(points: Sequence[Array], weights: Sequence[float], *, karcher: bool) -> Array:
    """Tangent means on the unit sphere: one step from the middle (multislerp), or until they stand still (karcher)."""
    share = np.array(weights) / sum(weights)
    lengths = np.array([np.sqrt(np.sum(x * x)) for x in points])
    if sum(lengths > 0) < 2:
        return sum(w * x for w, x in zip(share, points, strict=True))
    units = [x / n for x, n in zip(points, lengths, strict=True) if n]
    part = np.array([w for w, n in zip(share, lengths, strict=True) if n])
    part /= part.sum()
    mean = sum(w * u for w, u in zip(part, units, strict=True))
    if np.sqrt(np.sum(mean * mean)) < 1e-9:
        return sum(w * x for w, x in zip(share, points, strict=True))
    mean = mean / np.sqrt(np.sum(mean * mean))
    for _ in range(500 if karcher else 1):
        if karcher and min(np.sum(u * mean) for u in units) < -1 + 1e-12:  # opposite to the mean
            return sum(w * x for w, x in zip(share, points, strict=True))
        step = np.zeros_like(mean)
        for w, u in zip(part, units, strict=True):
            across = u - np.sum(u * mean) * mean
            sine = np.sqrt(np.sum(across * across))
            angle = 2 * np.arctan2(np.sqrt(np.sum((u - mean) ** 2)), np.sqrt(np.sum((u + mean) ** 2)))
            step += w * across * (angle / sine if karcher and sine > 1e-12 else 1)
        size = np.sqrt(np.sum(step * step))
        if size < 1e-15:
            break
        mean = np.cos(size) * mean + np.sin(size) / size * step
    return mean * float(np.sum(share * lengths))


def nearest(points: Sequence[Array], weights: Sequence[float]) -> Array:
    """The geometric median: the point at which the others pull with less than its weight, or else Weiszfeld's."""
    for x, w in zip(points, weights, strict=True):
        here = [v for y, v in zip(points, weights, strict=True) if np.array_equal(x, y)]
        pull = sum(v * (y - x) / d for y, v in zip(points, weights, strict=True) if (d := np.linalg.norm(y - x)))
        if np.linalg.norm(pull) <= sum(here) and w:
            return x
    found = sum(w * x for x, w in zip(points, weights, strict=True)) / sum(weights)
    for _ in range(3000):
        pulls = [w / np.linalg.norm(x - found) for x, w in zip(points, weights, strict=True)]
        before, found = found, sum(p * x for p, x in zip(pulls, points, strict=True)) / sum(pulls)
        if np.abs(found - before).max() <= 2.0**-52 * np.abs(found).max():
            break
    return found
