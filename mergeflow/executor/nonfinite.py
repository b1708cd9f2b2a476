"""NaN in results: counted by where it came from, and written with one bit pattern.

Vectorised and scalar casts of one processor write different patterns, so a NaN that must be written is canonical.
"""

from __future__ import annotations

import numpy as np

from mergeflow.executor.device import Bytes
from mergeflow.tensors import DType

_NAN = {
    DType.F64: 0x7FF8_0000_0000_0000,
    DType.F32: 0x7FC0_0000,
    DType.F16: 0x7E00,
    DType.BF16: 0x7FC0,
    DType.F8_E4M3: 0x7F,
    DType.F8_E5M2: 0x7E,
}
_UNSIGNED = {8: np.uint64, 4: np.uint32, 2: np.uint16, 1: np.uint8}
_INFINITY = {
    DType.F64: 0x7FF0_0000_0000_0000,
    DType.F32: 0x7F80_0000,
    DType.F16: 0x7C00,
    DType.BF16: 0x7F80,
    DType.F8_E4M3: 0x7E,  # it has none: everything above the largest number is NaN
    DType.F8_E5M2: 0x7C,
}


def make_canonical(data: Bytes, dtype: DType) -> bool:
    """Give every NaN the one pattern of its dtype; True when there was one."""
    unsigned = _UNSIGNED[dtype.size]
    values = data.view(unsigned)
    magnitude = values & unsigned((1 << (8 * dtype.size - 1)) - 1)
    nan = magnitude > unsigned(_INFINITY[dtype])
    values[nan] = unsigned(_NAN[dtype])
    return bool(nan.any())
