"""Tiny checkpoints of every dtype, written and read as bytes by code of their own."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from support.exact import FORMATS, Format, encode

SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4, "I16": 2, "I8": 1,
         "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1}  # fmt: skip


class Tensor(NamedTuple):
    code: str
    shape: tuple[int, ...]
    data: bytes

    @property
    def elements(self) -> int:
        return int(np.prod(self.shape, dtype=object))


Model = dict[str, Tensor]


def header_bytes(entries: object) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


def write(path: Path, model: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    """A safetensors file with the tensors in the order given."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, t in model.items():
        assert len(t.data) == t.elements * SIZES[t.code], name
        entries[name] = {"dtype": t.code, "shape": list(t.shape), "data_offsets": [at, at + len(t.data)]}
        at += len(t.data)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(header_bytes(entries))
        for t in model.values():
            file.write(t.data)
    return path


def read(path: Path) -> Model:
    raw = path.read_bytes()
    header, start = read_header(raw)
    header.pop("__metadata__", None)
    result = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        result[name] = Tensor(entry["dtype"], tuple(entry["shape"]), raw[start + begin : start + end])
    return result


def metadata(path: Path) -> dict[str, str]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length)).get("__metadata__", {})


def read_header(raw: bytes) -> tuple[dict, int]:
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), 8 + length


def cast(f: Format, x: np.ndarray) -> bytes:
    """Doubles in a format, by our own rounding (slow) or numpy's where numpy has the dtype (exactly the same)."""
    kind = {"F64": np.float64, "F32": np.float32, "F16": np.float16}.get(f.code)
    if kind is not None:
        return x.astype(kind).tobytes()
    from fractions import Fraction

    return np.array([encode(f, Fraction(float(v))) for v in x.reshape(-1)], f.unsigned).tobytes()


def weights(rng: np.random.Generator, code: str, shape: tuple[int, ...], scale: float = 0.05) -> Tensor:
    """Normal numbers, as the weights of a model are."""
    f = FORMATS[code]
    return Tensor(code, shape, cast(f, rng.normal(size=shape) * (scale if f.size > 1 else 1.0)))


def any_bits(rng: np.random.Generator, code: str, shape: tuple[int, ...], *, finite: bool = True) -> Tensor:
    """Any bit patterns at all: subnormals, zeros of both signs, the largest numbers."""
    n = int(np.prod(shape, dtype=object)) * SIZES[code]
    data = rng.integers(0, 2 if code == "BOOL" else 256, n, np.uint8)
    if finite and code in FORMATS:
        f = FORMATS[code]
        bits = data.view(f.unsigned)
        mask = (1 << f.exponent) - 1
        top = (bits >> f.mantissa) & f.unsigned(mask) == mask
        bits[top] ^= f.unsigned(1 << f.mantissa)
    return Tensor(code, shape, data.tobytes())


def numbers(code: str, x: object, shape: tuple[int, ...] | None = None) -> Tensor:
    """Given numbers."""
    array = np.asarray(x, np.float64)
    if code in FORMATS:
        return Tensor(code, array.shape if shape is None else shape, cast(FORMATS[code], array))
    kinds = {"I64": "i8", "I32": "i4", "I16": "i2", "I8": "i1", "U64": "u8", "U32": "u4", "U16": "u2", "U8": "u1"}
    kind = kinds.get(code, "u1")
    return Tensor(code, array.shape if shape is None else shape, np.asarray(x).astype(f"<{kind}").tobytes())


def related(rng: np.random.Generator, base: Tensor, step: float = 0.002) -> Tensor:
    """A fine-tune of `base`: most of the values moved a little."""
    from support.exact import doubles

    f = FORMATS[base.code]
    x = doubles(f, base.data)
    return Tensor(base.code, base.shape, cast(f, x + rng.normal(size=x.shape) * step))
