"""Random masks one element at a time, from the paper and the description in docs/numerics.md."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import cache

import numpy as np

M32 = (1 << 32) - 1


def philox_32(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """Four words from a counter of four and a key of two: Philox4x32-10, Salmon et al. 2011, "Parallel random numbers:
    as easy as 1, 2, 3", section 3.3."""
    (a, b, c, d), (k0, k1) = counter, key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * a, M32 + 1)
        high1, low1 = divmod(0xCD9E8D57 * c, M32 + 1)
        a, b, c, d = high1 ^ b ^ k0, low1, high0 ^ d ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & M32, (k1 + 0xBB67AE85) & M32
    return [a, b, c, d]


def named_mask(name: bytes, density: Fraction, n: int, begin: int = 0) -> np.ndarray:
    """A byte for each element, and 64 bits more where that does not decide."""
    words = [int.from_bytes(name[i : i + 4], "little") for i in range(0, 24, 4)]
    block = cache(lambda number, upper: philox_32([number & M32, number >> 32, *words[upper : upper + 2]], words[:2]))
    keep = np.zeros(n, bool)
    for at in range(n):
        i = begin + at
        part = block(i // 16, 2)[i % 16 // 4] >> (8 * (i % 4)) & 0xFF
        if Fraction(part + 1, 256) <= density:
            keep[at] = True
        elif Fraction(part, 256) < density:
            low, high, *_ = block(i, 4)
            keep[at] = Fraction(part + Fraction(low + (high << 32) + 1, 1 << 64), 256) <= density
    return keep
