"""A model in several safetensors files with an index, under the names that transformers and diffusers use.

`model.safetensors` in shards is `model-00001-of-00003.safetensors`, …, and `model.safetensors.index.json`, which says
which file each tensor is in. There is an index with a single shard too: which files there are must not depend on how
large the model happens to be. Shards are filled in the canonical order of tensors; one ends where the next tensor would
make it larger than asked for, counting tensors and not headers, as those libraries count. A tensor that is larger than
that has a shard to itself.

Each shard carries the output's whole metadata, with its own digest; that of the whole is in the index.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

from mergeflow.errors import RecipeError
from mergeflow.formats.layout import (
    MODEL_DIGEST,
    Ending,
    Layout,
    Piece,
    SafetensorsLayout,
    Stretch,
    canonical_order,
    digest_of,
    lay_out,
    one_behind_the_other,
)
from mergeflow.formats.shards import SHARD_LIMIT
from mergeflow.tensors import DType, TensorSpec

INDEX = ".index.json"


@dataclass(frozen=True, slots=True)
class ShardedLayout(Layout):
    """Several safetensors files and their index, which is the output's `target`."""

    shards: tuple[SafetensorsLayout, ...]

    @property
    def container(self) -> str:
        return "shards of " + ", ".join(str(len(shard.tensors)) for shard in self.shards)

    @property
    def indexed(self) -> bool:
        return True

    def paths(self, target: Path) -> tuple[Path, ...]:
        return (*(target.with_name(name) for name in self._names(target)), target)

    def sizes(self, target: Path) -> tuple[int, ...]:
        index = self._index(target, {MODEL_DIGEST: self.metadata[MODEL_DIGEST]} if self._signed else {})
        return (*(shard.file_size for shard in self.shards), len(index))

    def holds(self) -> tuple[slice, ...]:
        ends = [0, *accumulate(len(shard.tensors) for shard in self.shards)]
        return (*(slice(a, b) for a, b in pairwise(ends)), slice(0, 0))

    def stretches(self) -> tuple[Stretch, ...]:
        starts = accumulate((s.file_size - len(s.header) for s in self.shards), initial=0)
        shards = enumerate(zip(starts, self.shards, strict=False))
        return tuple(Stretch(start, i, len(shard.header)) for i, (start, shard) in shards)

    def rest(self, target: Path, ending: Ending) -> list[Piece]:
        claims = self.claims(ending)
        pieces = []
        for i, (shard, held) in enumerate(zip(self.shards, self.holds(), strict=False)):
            own = {MODEL_DIGEST: digest_of(shard.tensors, ending.digests[held])} if self._signed else {}
            pieces.append(Piece(i, 0, shard.header_with({**claims, **own})))
        whole = {MODEL_DIGEST: claims[MODEL_DIGEST]} if self._signed else {}
        return [*pieces, Piece(len(self.shards), 0, self._index(target, whole))]

    @property
    def _signed(self) -> bool:
        return MODEL_DIGEST in self.metadata

    def _names(self, target: Path) -> list[str]:
        stem, count = stem_of(target), len(self.shards)
        return [f"{stem}-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]

    def _index(self, target: Path, facts: Mapping[str, str]) -> bytes:
        total = sum(t.nbytes for t in self.tensors)
        names = zip(self._names(target), self.shards, strict=True)
        where = {t.name: name for name, shard in names for t in shard.tensors}
        document = {"metadata": {**facts, "total_size": total}, "weight_map": where}
        return (json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def lay_out_shards(
    tensors: Iterable[tuple[str, DType, tuple[int, ...]]], metadata: Mapping[str, str], shard_size: int
) -> ShardedLayout:
    """The layout of a model whose shards hold at most `shard_size` bytes of tensors each, or one tensor.

    Raises:
        RecipeError: more shards than anything reads.
    """
    ordered = canonical_order(tensors)
    specs, total = one_behind_the_other(ordered)
    groups = _groups(specs, shard_size)
    if len(groups) > SHARD_LIMIT:
        raise RecipeError(
            f"a shard_size of {shard_size:,} bytes would make {len(groups):,} files of {total:,} bytes",
            hint=f"at most {SHARD_LIMIT:,} are read back: give a larger one",
        )
    shards = tuple(lay_out(ordered[group], metadata) for group in groups)
    return ShardedLayout(specs, dict(metadata), sum(shard.file_size for shard in shards), shards)


def _groups(specs: Sequence[TensorSpec], shard_size: int) -> list[slice]:
    """The tensors of each shard; one shard at least."""
    first, size, found = 0, 0, []
    for i, spec in enumerate(specs):
        if i > first and size + spec.nbytes > shard_size:
            found.append(slice(first, i))
            first, size = i, 0
        size += spec.nbytes
    return [*found, slice(first, len(specs))]


def index_of(path: Path) -> Path:
    """The index of the sharded model that a recipe calls `path`."""
    return path.with_name(path.name + INDEX)


def stem_of(target: Path) -> str:
    """`model` of model.safetensors.index.json, whatever the case of the suffix."""
    return target.name.removesuffix(INDEX)[: -len(".safetensors")]


def is_shard(path: Path, target: Path) -> bool:
    """Whether a file is called as the shards of this index are, however many those are."""
    return re.fullmatch(re.escape(stem_of(target)) + r"-\d{5}-of-\d{5}\.safetensors", path.name) is not None


def index_of_shard(path: Path) -> Path | None:
    """The index of the model that a file is a shard of, by its name; None where it has no such name."""
    match = re.fullmatch(r"(.+)-\d{5}-of-\d{5}(\.safetensors)", path.name)
    return path.with_name(match[1] + match[2] + INDEX) if match else None
