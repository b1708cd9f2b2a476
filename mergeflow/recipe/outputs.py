"""What an output is written as: its suffix, the size of its shards, what it says to other tools, what lies beside
it."""

from __future__ import annotations

import posixpath

from mergeflow.formats.torchlayout import SUFFIXES as TORCH_SUFFIXES
from mergeflow.recipe import nodes
from mergeflow.recipe.fields import choice, line_of_text
from mergeflow.recipe.tokens import clip
from mergeflow.tensors import parse_bytes

SAFETENSORS = ".safetensors"
SUFFIXES = (SAFETENSORS, *TORCH_SUFFIXES)
METADATA_FOR = ("a1111", "modelspec")
SIDECARS = ("config", "sha256", "provenance", "card")
SMALLEST_SHARD = 10**6
_SIZES_ARE = "write it as 5GB or 500MB (GiB and MiB are those of 1024)"


def suffix_of(path: str) -> str:
    return posixpath.splitext(posixpath.basename(path.replace("\\", "/")))[1].lower()


def suffixes() -> str:
    """All of them, for a message."""
    return f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"


def shard_size(node: nodes.Node) -> int:
    """The most bytes of tensors in a shard."""
    text = line_of_text(node, "shard_size").strip()
    size = parse_bytes(text)
    if size is None or text[-1] not in "bB":
        raise node.error(f"{clip(text)} is not a size", _SIZES_ARE)
    if size < SMALLEST_SHARD:
        raise node.error(f"shards of {clip(text)} would be too small to be of use", "1MB is the least; 5GB is usual")
    return size


def check_shards(path: str, at: nodes.Node) -> None:
    """Only safetensors files have an index that their readers follow."""
    if (suffix := suffix_of(path)) != SAFETENSORS:
        raise at.error(
            f"a {suffix} file is not written in shards", "name the output .safetensors, or leave shard_size: out"
        )


def words(node: nodes.Node, what: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
    """One of the words that are allowed, or a list of them, each once."""
    items = node.items if isinstance(node, nodes.Sequence) else [node]
    return tuple(dict.fromkeys(choice(item, what, allowed) for item in items))


def unsuitable(stem: str, suffix: str) -> tuple[str, str]:
    """Message and hint for a name that ends in something that is not written."""
    found = f"a {suffix} file" if suffix else "a file without a suffix"
    name = clip(stem.strip(".") or "mix")
    return f"{found} cannot be written", f"outputs end in {suffixes()}: {name}{SAFETENSORS}"
