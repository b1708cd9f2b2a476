"""What a tensor is before anything is known of its values: a name, a dtype, a shape, a place in a file."""

from __future__ import annotations

import math
import re
from enum import Enum
from typing import NamedTuple


class DType(Enum):
    """Element types by their safetensors code: (code, recipe name, bytes per element, mantissa bits or 0).

    `bits` counts the implicit leading bit: the largest n for which every integer up to 2**n is exact.
    """

    F64 = ("F64", "float64", 8, 53)
    F32 = ("F32", "float32", 4, 24)
    F16 = ("F16", "float16", 2, 11)
    BF16 = ("BF16", "bfloat16", 2, 8)
    F8_E4M3 = ("F8_E4M3", "float8_e4m3fn", 1, 4)
    F8_E5M2 = ("F8_E5M2", "float8_e5m2", 1, 3)
    I64 = ("I64", "int64", 8, 0)
    I32 = ("I32", "int32", 4, 0)
    I16 = ("I16", "int16", 2, 0)
    I8 = ("I8", "int8", 1, 0)
    U64 = ("U64", "uint64", 8, 0)
    U32 = ("U32", "uint32", 4, 0)
    U16 = ("U16", "uint16", 2, 0)
    U8 = ("U8", "uint8", 1, 0)
    BOOL = ("BOOL", "bool", 1, 0)

    code: str
    label: str
    size: int
    bits: int
    is_float: bool

    def __init__(self, code: str, label: str, size: int, bits: int) -> None:
        self.code, self.label, self.size, self.bits, self.is_float = code, label, size, bits, bits > 0

    __hash__ = object.__hash__  # Enum's is a function in Python, and dtypes are part of many a key

    @property
    def compute(self) -> DType:
        """The dtype sums for this output are taken in: float32 for 16 bits or fewer, float64 above."""
        return DType.F32 if self.size <= 2 else DType.F64


BY_CODE = {d.code: d for d in DType}
BY_LABEL = {d.label: d for d in DType}
SHORT = {"fp64": "float64", "fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "half": "float16",
         "f64": "float64", "f32": "float32", "f16": "float16", "fp8": "float8_e4m3fn",
         "float8_e4m3": "float8_e4m3fn", "full": "float32"}  # fmt: skip


class TensorSpec(NamedTuple):
    """One tensor: `start` counts bytes from the beginning of its file, not of the data section. `file` says which one
    of a model's files that is; where positions count through all of them (formats.many) it is 0.

    A named tuple and not a dataclass: files with 50,000 tensors are read at every plan, and tuples are made faster.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    start: int
    file: int = 0

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.size


def parse_bytes(text: str) -> int | None:
    """'10GB', '800 M', '1.5 GiB', '0' in bytes, what is less than one left off; None of any other text. K, M, G and T
    are powers of 1000; of 1024 with an i."""
    match = re.fullmatch(r"\s*([0-9]{1,15})(?:\.([0-9]{1,15}))?\s*([KMGT]?)(I?)B?\s*", text.upper())
    if match is None:
        return None
    whole, part, unit, binary = match[1], match[2] or "", match[3], match[4]
    scale: int = (1024 if binary and unit else 1000) ** " KMGT".index(unit or " ")
    return int(whole + part) * scale // int("1" + "0" * len(part))


def human_bytes(n: float) -> str:
    """1536 -> '1.5 KB' (powers of 1000, as disks are sold and as file managers of the day print)."""
    if n < 1000:
        return f"{n:.0f} B"
    unit = ""
    for unit in ("KB", "MB", "GB", "TB"):  # noqa: B007  # the unit it stops at is the one to print
        n /= 1000
        if n < 1000:
            break
    return f"{n:.1f} {unit}" if n < 100 else f"{n:.0f} {unit}"
