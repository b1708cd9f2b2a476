"""Random masks: which elements of a tensor are kept, each with the same chance.

Drawn with Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), a function of a key and a
counter, so that any stretch of a mask can be had without the rest of it. A mask has a name of 32 bytes: a hash of what
it is for. Its words of 32 bits, the lowest byte first, are n0, n1, …

Element i has byte i mod 16 of the block with the key (n0, n1) and the counter (b, b >> 32, n2, n3), where b is i // 16
and every word is its lowest 32 bits. It is kept where that is below density·256. Where it is equal to the whole part of
that, the first 8 bytes of the block with the counter (i, i >> 32, n4, n5) decide, as a number below the rest of it
times 2⁶⁴. So a byte for each element is enough, and the chance is right to 72 digits.

executor/_masks.h draws the same, compiled.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from math import floor
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
_ROUNDS = 10
_FACTORS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_STEPS = 0x9E3779B9, 0xBB67AE85  # of the key, from round to round
_LOW, _HIGH = np.uint64(0xFFFFFFFF), np.uint64(32)


@lru_cache(maxsize=64)
def limits(density: Fraction) -> tuple[int, int]:
    """Bytes below the first number keep their element, equal ones where 64 more bits are below the second."""
    limit = density * 256
    whole = floor(limit)
    return whole, floor((limit - whole) * (1 << 64))


def mask(name: bytes, density: Fraction, begin: int, n: int) -> npt.NDArray[np.bool_]:
    """Which of the `n` elements from `begin` on are kept."""
    whole, rest = limits(density)
    if whole == 256:
        return np.ones(n, np.bool_)
    words = [int(word) for word in np.frombuffer(name, "<u4")]
    first = begin // 16
    blocks = np.arange(first, -(-(begin + n) // 16), dtype=np.uint64)
    drawn = _philox(blocks, words[:2], words[2:4])[begin - 16 * first :][:n]
    keep: npt.NDArray[np.bool_] = drawn < whole
    if rest:
        equal = np.flatnonzero(drawn == whole)
        more = _philox(equal.astype(np.uint64) + np.uint64(begin), words[:2], words[4:6]).view("<u8")[::2]
        keep[equal] = more < np.uint64(rest)
    return keep


def _philox(counters: Array, key: list[int], upper: list[int]) -> npt.NDArray[np.uint8]:
    """The blocks with these counters below `upper`: 16 bytes each, one after the other."""
    a, b = counters & _LOW, counters >> _HIGH
    c, d = (np.full(counters.size, word, np.uint64) for word in upper)
    for i in range(_ROUNDS):
        one, two = (np.uint64((word + i * step) & 0xFFFFFFFF) for word, step in zip(key, _STEPS, strict=True))
        p, q = a * _FACTORS[0], c * _FACTORS[1]
        a, b, c, d = (q >> _HIGH) ^ b ^ one, q & _LOW, (p >> _HIGH) ^ d ^ two, p & _LOW
    return np.stack((a, b, c, d), axis=1).astype("<u4").reshape(-1).view(np.uint8)
