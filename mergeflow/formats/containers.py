"""The containers that outputs are written in, by the suffix of their name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from mergeflow.formats.layout import Layout, lay_out
from mergeflow.formats.sharded import lay_out_shards
from mergeflow.formats.torchlayout import NESTED, SUFFIXES, lay_out_torch
from mergeflow.tensors import DType


def lay_out_as(
    path: str,
    tensors: Iterable[tuple[str, DType, tuple[int, ...]]],
    metadata: Mapping[str, str],
    shard_size: int | None = None,
) -> Layout:
    """The layout of an output of this name. `shard_size` is in bytes, for safetensors alone.

    Raises:
        RecipeError: more shards than anything reads.
    """
    suffix = PurePosixPath(path).suffix.lower()
    if suffix in SUFFIXES:
        return lay_out_torch(tensors, metadata, nested=suffix == NESTED)
    if shard_size is not None:
        return lay_out_shards(tensors, metadata, shard_size)
    return lay_out(tensors, metadata)
