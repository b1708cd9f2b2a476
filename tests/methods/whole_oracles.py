"""The formulas of methods over whole tensors in numpy's float64: nothing here knows mergeflow."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import scipy.ndimage
import scipy.special

Array = np.ndarray


def rows(x: Array) -> Array:
    """[out, all others]; a vector is one row."""
    return x.reshape(x.shape[0], -1) if x.ndim > 1 else x.reshape(1, -1)


def columns(x: Array) -> Array:
    """[first axis, all others]; a vector is one column."""
    return x.reshape(x.shape[0] if x.ndim else 1, -1)


def angle(x: Array, y: Array) -> float:
    size = np.linalg.norm(x) * np.linalg.norm(y)
    return float(np.clip(np.dot(x, y) / size, -1, 1)) if size else 0.0


def truncate(x: Array, rank: int) -> Array:
    """Eckart and Young: U_k S_k V_kᵀ."""
    if not rank:
        return np.zeros_like(x)
    u, s, v = np.linalg.svd(columns(x), full_matrices=False)
    return ((u[:, :rank] * s[:rank]) @ v[:rank]).reshape(x.shape)


def cosine_mix(a: Array, b: Array, m: float, *, whole: bool) -> Array:
    left, right, found = columns(a), columns(b), np.empty_like(columns(a))
    for j in range(left.shape[1]):
        s = angle(left[:, j], right[:, j])
        if whole:
            s = (s + angle(a.ravel(), b.ravel())) / 2
        k = min(1.0, max(0.0, s - m))
        found[:, j] = left[:, j] * k + right[:, j] * (1 - k)
    return found.reshape(a.shape)


def extract(o: Array, a: Array, b: Array, m: float, n: float, k: float) -> Array:
    p, q = (np.atleast_1d(x - o) for x in (a, b))
    width = p.shape[-1]
    found = []
    for x, y in zip(p.reshape(-1, width), q.reshape(-1, width), strict=True):
        d = ((angle(x, y) + 1) / 2) ** k
        found.append(((1 - m) * x + m * y) * ((1 - n) * d + n * (1 - d)))
    return o + np.array(found).reshape(o.shape)


def top_k(a: Array, b: Array, m: str, n: str) -> Array:
    flat, size, share, begin = a.ravel(), a.size, Fraction(m), Fraction(n)
    by_size = sorted(abs(flat))
    wraps = share + begin > 1
    first, last = (
        (round((share + begin - 1) * size), round(begin * size))
        if wraps
        else (round(begin * size), round((share + begin) * size))
    )
    above, most = (by_size[k - 1] if k > 0 else -1.0 for k in (first, last))
    found, places = flat.copy(), sorted(range(size), key=lambda i: (b.ravel()[i], i))
    for place_, value in zip(places, sorted(flat), strict=True):
        if (above < abs(value) <= most) != wraps:
            found[place_] = value
    return found.reshape(a.shape)


def crossed(a: Array, b: Array, c: Array, m: float, n: float) -> Array:
    """With the transform written out."""
    if a.size == 1:
        return m * a + (1 - m) * b
    size = a.size
    order = np.argsort(c.ravel(), kind="stable")
    at = np.arange(size // 2 + 1) / (size // 2 + 1)
    part = np.clip((at - m) / n + 0.5, 0, 1) if n else (at >= m) * 1.0
    full = np.array([part[min(k, size - k)] for k in range(size)])
    turn = np.exp(-2j * np.pi * np.outer(np.arange(size), np.arange(size)) / size)
    mixed = (1 - full) * (turn @ a.ravel()[order]) + full * (turn @ b.ravel()[order])
    found = np.empty(size)
    found[order] = (np.conj(turn) @ mixed / size).real
    return found.reshape(a.shape)


def fused(o: Array, a: Array) -> tuple[Array, Array]:
    """The importance, and what is at least the threshold."""
    x, y = rows(a), rows(o)
    apart = scipy.special.rel_entr(scipy.special.softmax(x, axis=1), scipy.special.softmax(y, axis=1)).sum(axis=1)
    importance = np.abs(x - y) * np.maximum(apart, 0)[:, None]
    ordered = np.sort(importance.ravel())
    last = ordered.size - 1
    low, middle, high = (ordered[int(q * last)] for q in (0.25, 0.5, 0.75))
    return importance.reshape(o.shape), np.asarray(importance >= middle + 1.5 * (high - low)).reshape(o.shape)


def smoothed(x: Array) -> Array:
    if not x.ndim:
        return x
    return scipy.ndimage.gaussian_filter(scipy.ndimage.median_filter(x, size=3), sigma=1)


def slerped(a: Array, b: Array, t: float, along: str) -> Array:
    axis = -1 if along == "last" else 0
    x, y = (np.moveaxis(np.atleast_1d(v), axis, -1) for v in (a, b))
    found = np.empty_like(x)
    for at in np.ndindex(x.shape[:-1]):
        u, v = x[at], y[at]
        c = angle(u, v)
        if not np.any(u) or not np.any(v) or abs(c) > 1 - 2.0**-46:
            found[at] = (1 - t) * u + t * v
        else:
            w = np.arccos(c)
            found[at] = (np.sin((1 - t) * w) * u + np.sin(t * w) * v) / np.sin(w)
    return np.moveaxis(found, -1, axis).reshape(a.shape)


def stocked(o: Array, models: list[Array]) -> Array:
    deltas, n = [rows(x - o) for x in models], len(models)
    found = np.empty_like(rows(o))
    for r in range(len(found)):
        pairs = [angle(deltas[i][r], deltas[j][r]) for i in range(n) for j in range(i)]
        cosine = float(np.mean(pairs))
        under = 1 + (n - 1) * cosine
        t = n * cosine / under if under >= 1e-6 else 0.0
        found[r] = t * np.mean([d[r] for d in deltas], axis=0)
    return o + found.reshape(o.shape)


def max_magnitude(p: Array, q: Array) -> Array:
    return np.where((np.abs(p) > np.abs(q)) | ((np.abs(p) == np.abs(q)) & (p > q)), p, q)


def ram_plus(o: Array, models: list[Array], r: float, most: float, epsilon: float) -> Array:
    deltas = [x - o for x in models]
    active = [np.abs(d) > epsilon for d in deltas]
    count = sum(x.astype(int) for x in active)
    total = np.zeros_like(o)
    for d, x in zip(deltas, active, strict=True):
        alone, shared = int((x & (count == 1)).sum()), int((x & (count > 1)).sum())
        factor = 1 + r * min(most, shared / alone) if alone else 1.0
        total += np.where(x, d, 0) * np.where(count == 1, factor, 1 / np.maximum(count, 1))
    return o + total
