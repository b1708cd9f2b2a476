"""Writing a .ckpt: where every byte of it goes is known before the first tensor is computed.

The same tensors give the same bytes, always: entries and pickle are in the canonical order of tensors, dates are 1980's
first day, and nothing random is put in. Data begin at multiples of 64 bytes, as torch's own do. There is no `byteorder`
entry, without which torch takes numbers to be little-endian: A1111's loader refuses an archive that has one.

The zip format wants a checksum of each entry before and behind its data, and these are known last. So the layout is
given first, and the bytes around the tensors when the checksums are there: nothing moves in between.
"""

from __future__ import annotations

import functools
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mergeflow.formats.layout import canonical_order
from mergeflow.tensors import DType, TensorSpec

ALIGNMENT = 64
_ROOT = "archive"
_WIDE = 0xFFFFFFFF  # from here on a field is given in 64 bits
_STORAGE = {
    DType.F64: "DoubleStorage", DType.F32: "FloatStorage", DType.F16: "HalfStorage", DType.BF16: "BFloat16Storage",
    DType.I64: "LongStorage", DType.I32: "IntStorage", DType.I16: "ShortStorage", DType.I8: "CharStorage",
    DType.U8: "ByteStorage", DType.BOOL: "BoolStorage",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Entry:
    """A file in the archive. `data` is None for a tensor's, whose bytes are somebody else's to write."""

    name: bytes
    header: int
    start: int
    nbytes: int
    data: bytes | None = None


@dataclass(frozen=True, slots=True)
class TorchPlan:
    """The layout of a .ckpt. `tensors` are in file order with their offsets in the file; gaps of up to 63 bytes and
    the entries' headers lie between them, so each is to be written by itself."""

    tensors: tuple[TensorSpec, ...]
    file_size: int
    _entries: tuple[_Entry, ...] = field(repr=False)
    _directory: int = field(repr=False)

    def pieces(self, crcs: Sequence[int]) -> list[tuple[int, bytes]]:
        """(offset, bytes) of all that is not a tensor; `crcs` are the CRC-32 of the tensors, in the order of `tensors`.

        With the tensors these fill the file from 0 to `file_size` without a hole.
        """
        if len(crcs) != len(self.tensors):
            raise ValueError("one checksum for each tensor is needed")
        remaining = iter(crcs)
        result, directory = [], []
        for e in self._entries:
            crc = next(remaining) if e.data is None else zlib.crc32(e.data)
            head = _local_header(e, crc)
            result.append((e.header, head + (e.data or b"")))
            directory.append(_directory_entry(e, crc))
        result.append((self._directory, _end(b"".join(directory), len(self._entries), self._directory)))
        return result


def write_torch_zip_plan(
    tensors: Iterable[tuple[str, DType, tuple[int, ...]]],
    extras: Mapping[str, str | int] | None = None,
    *,
    nested: bool = True,
) -> TorchPlan:
    """The layout of a .ckpt with these (name, dtype, shape), read back by torch.load(weights_only=True) as
    {"state_dict": {name: tensor}, **extras}; where it is not `nested` as {name: tensor}, and there are no extras."""
    ordered = canonical_order(tensors)
    if extras and not nested:
        raise ValueError("what is not a tensor has no place beside those of a flat table")
    pickled = _pickle(ordered, extras or {}) if nested else _flat_pickle(ordered)
    entries: list[_Entry] = []
    specs: list[TensorSpec] = []
    position = 0
    entries.append(_place("data.pkl", position, len(pickled), pickled))
    position = entries[-1].start + len(pickled)
    for i, (name, dtype, shape) in enumerate(ordered):
        nbytes = TensorSpec(name, dtype, shape, 0).nbytes
        entries.append(_place(f"data/{i}", position, nbytes, None))
        specs.append(TensorSpec(name, dtype, shape, entries[-1].start))
        position = entries[-1].start + nbytes
    entries.append(_place("version", position, 2, b"3\n"))
    position = entries[-1].start + 2
    end = _end(b"".join(_directory_entry(e, 0) for e in entries), len(entries), position)
    return TorchPlan(tuple(specs), position + len(end), tuple(entries), position)


def combine_crc32(first: int, second: int, second_size: int) -> int:
    """The CRC-32 of two stretches one after another from those of each: so that they may be taken in any order."""
    row, power = first, 0
    size = second_size
    while size:
        if size & 1:
            row = _times(_zeros(power), row)
        size >>= 1
        power += 1
    return row ^ second


@functools.cache
def _zeros(power: int) -> tuple[int, ...]:
    """What 2**power zero bytes do to a CRC, as a matrix over GF(2) with one number for each column."""
    if power == 0:
        matrix: tuple[int, ...] = (0xEDB88320, *(1 << n for n in range(31)))  # one zero bit
        for _ in range(3):
            matrix = tuple(_times(matrix, column) for column in matrix)
        return matrix
    half = _zeros(power - 1)
    return tuple(_times(half, column) for column in half)


def _times(matrix: tuple[int, ...], vector: int) -> int:
    result, i = 0, 0
    while vector:
        if vector & 1:
            result ^= matrix[i]
        vector >>= 1
        i += 1
    return result


# The archive


def _place(name: str, position: int, nbytes: int, data: bytes | None) -> _Entry:
    full = f"{_ROOT}/{name}".encode()
    fixed = position + 30 + len(full) + (20 if nbytes >= _WIDE else 0) + 4
    return _Entry(full, position, -(-fixed // ALIGNMENT) * ALIGNMENT, nbytes, data)


def _local_header(e: _Entry, crc: int) -> bytes:
    wide = struct.pack("<HHQQ", 1, 16, e.nbytes, e.nbytes) if e.nbytes >= _WIDE else b""
    size = min(e.nbytes, _WIDE)
    padding = e.start - e.header - 30 - len(e.name) - len(wide) - 4
    extra = wide + b"FB" + struct.pack("<H", padding) + b"Z" * padding  # torch's own way to align
    version = 45 if wide else 20
    return struct.pack(
        "<4sHHHHHIIIHH", b"PK\3\4", version, 0x800, 0, 0, 0x21, crc, size, size, len(e.name), len(extra)
    ) + (e.name + extra)


def _directory_entry(e: _Entry, crc: int) -> bytes:
    wide = [n for n in (e.nbytes, e.nbytes, e.header) if n >= _WIDE]
    extra = struct.pack(f"<HH{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
    size, version = min(e.nbytes, _WIDE), 45 if wide else 20
    return struct.pack(
        "<4sHHHHHHIIIHHHHHII", b"PK\1\2", version, version, 0x800, 0, 0, 0x21, crc, size, size, len(e.name), len(extra),
        0, 0, 0, 0, min(e.header, _WIDE),
    ) + (e.name + extra)  # fmt: skip


def _end(directory: bytes, count: int, start: int) -> bytes:
    size, wide = len(directory), b""
    if count >= 0xFFFF or start >= _WIDE or size >= _WIDE:
        wide = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, start)
        wide += struct.pack("<4sIQI", b"PK\6\7", 0, start + size, 1)
    count = min(count, 0xFFFF)
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, count, count, min(size, _WIDE), min(start, _WIDE), 0)
    return directory + wide + end


# The pickle, in protocol 2 as torch writes it


def _pickle(tensors: Sequence[tuple[str, DType, tuple[int, ...]]], extras: Mapping[str, str | int]) -> bytes:
    out = _Pickle()
    out.raw(b"\x80\x02}(")
    for key, value in sorted(extras.items()):
        out.text(key)
        if isinstance(value, str):
            out.text(value)
        else:
            out.number(value)
    out.text("state_dict")
    out.table(tensors)
    out.raw(b"u.")
    return b"".join(out.parts)


def _flat_pickle(tensors: Sequence[tuple[str, DType, tuple[int, ...]]]) -> bytes:
    out = _Pickle()
    out.raw(b"\x80\x02")
    out.table(tensors)
    out.raw(b".")
    return b"".join(out.parts)


class _Pickle:
    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self._memo: dict[bytes, bytes] = {}

    def raw(self, data: bytes) -> None:
        self.parts.append(data)

    def text(self, value: str) -> None:
        data = value.encode()
        self.raw(b"X" + struct.pack("<I", len(data)) + data)

    def number(self, n: int) -> None:
        if -(1 << 31) <= n < 1 << 31:
            self.raw(b"J" + struct.pack("<i", n) if n < 0 or n > 255 else b"K" + bytes([n]))
        else:
            data = n.to_bytes(n.bit_length() // 8 + 1, "little", signed=True)
            self.raw(b"\x8a" + bytes([len(data)]) + data)

    def once(self, code: bytes) -> None:
        """Opcodes that make something used again and again: made the first time, remembered after that."""
        if code in self._memo:
            self.raw(self._memo[code])
        else:
            at = bytes([len(self._memo)])
            self._memo[code] = b"h" + at
            self.raw(code + b"q" + at)

    def numbers(self, values: Sequence[int]) -> None:
        self.raw(b"(")
        for n in values:
            self.number(n)
        self.raw(b"t")

    def table(self, tensors: Sequence[tuple[str, DType, tuple[int, ...]]]) -> None:
        self.raw(b"}(")
        for i, (name, dtype, shape) in enumerate(tensors):
            self.text(name)
            self.tensor(str(i), dtype, shape)
        self.raw(b"u")

    def tensor(self, key: str, dtype: DType, shape: tuple[int, ...]) -> None:
        spec = TensorSpec("", dtype, shape, 0)
        typed = _STORAGE.get(dtype)
        self.once(b"ctorch._utils\n_rebuild_tensor_v" + (b"2" if typed else b"3") + b"\n")
        self.raw(b"((")
        self.once(b"X\7\0\0\0storage")
        self.once(f"ctorch\n{typed}\n".encode() if typed else b"ctorch.storage\nUntypedStorage\n")
        self.text(key)
        self.once(b"X\3\0\0\0cpu")
        self.number(spec.elements if typed else spec.nbytes)
        self.raw(b"tQK\0")
        self.numbers(shape)
        self.numbers(_strides(shape))
        self.raw(b"\x89")
        self.once(b"ccollections\nOrderedDict\n")
        self.raw(b")R")
        if not typed:
            self.once(f"ctorch\n{dtype.label}\n".encode())
        self.raw(b"tR")


def _strides(shape: tuple[int, ...]) -> list[int]:
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return strides[::-1]
