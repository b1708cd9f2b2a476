"""Writes checkpoints for measurements: real names and shapes, random weights, no network, numpy only.

    python -m bench.layout FOLDER                         sd15-A, -B, -C.safetensors: 1,131 tensors, F16, 2.13 GB each
    python -m bench.layout FOLDER --models 6              A to F
    python -m bench.layout FOLDER --shrink 16             the same names, wide dimensions divided by 16: 9 MB each
    python -m bench.layout FOLDER --layout sdxl           sdxl-A, -B, -C.safetensors: 2,515 tensors, F16, 6.94 GB each
    python -m bench.layout FOLDER --layout many           50,000 tensors of 1 to 4 KB (F16)
    python -m bench.layout FOLDER --sparse-times 10       files of ten times the size that take almost no disk

C is the common base; every other model is C plus its own small difference in the text encoder and the UNet. The VAE
is the same in all, as it is among real fine-tunes. Each chunk of numbers is seeded by (seed, model, tensor, chunk):
the bytes depend neither on the number of threads nor on what else is written. Memory: one chunk per thread.
"""

import argparse
import json
import math
import struct
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import sd15, sdxl

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
BASE = "C"
SIZES = {"F16": 2, "BF16": 2, "F32": 4, "I64": 8}
CHUNK = 1 << 20  # elements
MARK = 64  # elements at the start of each tensor of a sparse file that are not zero
MANY = 50_000

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Tensor:
    """One tensor of a layout; `shared` ones are the same in all models."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    shared: bool = False

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * SIZES[self.dtype]


@dataclass(frozen=True)
class Model:
    """What a file's numbers depend on, apart from the layout."""

    letter: str
    seed: int = 0
    delta: float = 0.05  # size of a model's difference, relative to the base's weights

    @property
    def metadata(self) -> dict[str, str]:
        return {"format": "pt", "made_by": f"bench.layout model={self.letter} seed={self.seed} delta={self.delta}"}


# ---------------------------------------------------------------------------------------------------------- layouts


def sd15_layout(dtype: str = "F16", *, shrink: int = 1, times: int = 1) -> list[Tensor]:
    """The SD1.5 layout; `shrink` divides dimensions of 64 and more, `times` multiplies every tensor's first one."""
    return _checkpoint(sd15.tensors(), sd15.POSITION_IDS, dtype, shrink, times)


def sdxl_layout(dtype: str = "F16", *, shrink: int = 1) -> list[Tensor]:
    """The SDXL layout; `shrink` divides dimensions of 64 and more."""
    return _checkpoint(sdxl.tensors(), sdxl.POSITION_IDS, dtype, shrink, 1)


def _checkpoint(rows: Iterable[sd15.Row], ids: str, dtype: str, shrink: int, times: int) -> list[Tensor]:
    return [
        Tensor(name, shape, "I64", shared=True)
        if name == ids
        else Tensor(name, _resized(shape, shrink, times), dtype, shared=name.startswith(sd15.VAE))
        for name, shape in rows
    ]


def many_layout(dtype: str = "F16", *, count: int = MANY) -> list[Tensor]:
    """`count` tensors of 512 to 2,048 elements, the case where the cost per tensor is all there is."""
    rows = np.random.Generator(np.random.PCG64(count)).integers(8, 33, count)
    return [
        Tensor(f"layers.{at // 50:04d}.part.{at % 50:02d}.weight", (int(row), 64), dtype) for at, row in enumerate(rows)
    ]


def _resized(shape: tuple[int, ...], shrink: int, times: int) -> tuple[int, ...]:
    small = [-(-side // shrink) if side >= 64 and side != 77 else side for side in shape]
    return (small[0] * times, *small[1:]) if small else ()


# ---------------------------------------------------------------------------------------------------------- the file


def ordered(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The order in which the safetensors library lays tensors out: wide element types first, then by name."""
    return sorted(tensors, key=lambda tensor: (-SIZES[tensor.dtype], tensor.name))


def header(tensors: Sequence[Tensor], metadata: dict[str, str]) -> bytes:
    """A file's bytes up to its data: a length, then JSON padded with spaces to a multiple of eight."""
    entries: dict[str, object] = {"__metadata__": metadata}
    at = 0
    for tensor in tensors:
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.bytes],
        }
        at += tensor.bytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def write(path: Path, layout: Iterable[Tensor], model: Model, *, sparse: bool = False, jobs: int = 2) -> bool:
    """Writes one file, or leaves it if it is there already with the same header and size; says whether it wrote."""
    tensors = ordered(layout)
    metadata = model.metadata | ({"sparse": "true"} if sparse else {})
    head = header(tensors, metadata)
    size = len(head) + sum(tensor.bytes for tensor in tensors)
    if _is_written(path, head, size):
        return False
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        file.write(head)
        file.truncate(size)
    offsets = len(head) + np.cumsum([0, *(tensor.bytes for tensor in tensors)])
    with ThreadPoolExecutor(jobs) as pool:
        batches = [range(first, len(tensors), jobs * 8) for first in range(jobs * 8)]
        done = pool.map(lambda batch: _write_batch(part, tensors, offsets, batch, model, sparse=sparse), batches)
        for _ in done:
            pass
    part.replace(path)
    return True


def _is_written(path: Path, head: bytes, size: int) -> bool:
    if not path.exists() or path.stat().st_size != size:
        return False
    with path.open("rb") as file:
        return file.read(len(head)) == head


def _write_batch(path: Path, tensors: list[Tensor], offsets: Array, at: range, model: Model, *, sparse: bool) -> None:
    with path.open("r+b") as file:
        for tensor, offset in ((tensors[index], offsets[index]) for index in at):
            file.seek(int(offset))
            if sparse:  # a few numbers each: no two models may have an equal tensor where full files would differ
                file.write(numbers(tensor, 0, model, MARK).tobytes())
                continue
            for chunk in range(-(-tensor.elements // CHUNK)):
                file.write(numbers(tensor, chunk, model, CHUNK).tobytes())


# -------------------------------------------------------------------------------------------------------- the numbers


def numbers(tensor: Tensor, chunk: int, model: Model, most: int) -> Array:
    """The encoded values of one chunk of a tensor, the first `most` of them."""
    count = min(tensor.elements - chunk * CHUNK, most)
    if tensor.dtype == "I64":
        return np.arange(chunk * CHUNK, chunk * CHUNK + count, dtype="<i8")
    values = _noise(model.seed, BASE, tensor.name, chunk, count)
    if model.letter != BASE and not tensor.shared:
        values += np.float32(model.delta) * _noise(model.seed, model.letter, tensor.name, chunk, count)
    centre, spread = _scale(tensor.name, tensor.shape)
    values *= np.float32(spread)
    values += np.float32(centre)
    return _encoded(values, tensor.dtype)


def _noise(seed: int, letter: str, name: str, chunk: int, count: int) -> Array:
    key = [seed, ord(letter), zlib.crc32(name.encode()), chunk]
    return np.random.Generator(np.random.SFC64(key)).standard_normal(count, dtype=np.float32)


def _scale(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Centre and spread: gains near 1, biases near 0, matrices about 1 / sqrt(fan in)."""
    if len(shape) < 2:
        return (1.0 if name.endswith("weight") else 0.0), 0.02
    return 0.0, min(max(1 / math.sqrt(math.prod(shape[1:])), 0.005), 0.05)


def _encoded(values: Array, dtype: str) -> Array:
    if dtype == "F16":
        return values.astype("<f2")
    if dtype == "BF16":  # round to nearest, ties to even, on the upper half of the bits
        bits = values.astype("<f4").view("<u4")
        nearest: Array = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return nearest.astype("<u2")
    return values.astype("<f4")


# ------------------------------------------------------------------------------------------------------- command line


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="bench.layout", description="Write checkpoints for measurements.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layout", choices=("sd15", "sdxl", "many"), default="sd15")
    parser.add_argument("--models", type=int, default=3, metavar="N", help="the first N of A, B, C, ... (default 3)")
    parser.add_argument("--dtype", choices=("F16", "BF16", "F32"), default="F16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--delta", type=float, default=0.05, help="relative size of a model's difference from C")
    parser.add_argument("--shrink", type=int, default=1, metavar="N", help="divide dimensions of 64 and more by N")
    parser.add_argument("--sparse-times", type=int, metavar="N", help="sparse files, N times as large")
    parser.add_argument("--count", type=int, default=MANY, help="tensors of --layout many")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="threads (default 2)")
    options = parser.parse_args(arguments)
    times = options.sparse_times
    if options.layout == "many":
        stem, layout = "many", many_layout(options.dtype, count=options.count)
    elif options.layout == "sdxl":
        if times is not None:
            parser.error("--sparse-times is for --layout sd15")
        stem, layout = "sdxl", sdxl_layout(options.dtype, shrink=options.shrink)
    else:
        stem = f"sd15x{times}" if times else "sd15"
        layout = sd15_layout(options.dtype, shrink=options.shrink, times=times or 1)
    options.folder.mkdir(parents=True, exist_ok=True)
    for letter in LETTERS[: options.models]:
        path = options.folder / f"{stem}-{letter}.safetensors"
        model = Model(letter, options.seed, options.delta)
        wrote = write(path, layout, model, sparse=times is not None, jobs=options.jobs)
        print(f"{path}: {len(layout):,} tensors, {path.stat().st_size:,} bytes, {'written' if wrote else 'reused'}")


if __name__ == "__main__":
    main()
