"""Digests of content that exists and keys of actions that could be run. All BLAKE3, all written `b3:<64 hex>`.

A tensor digest is taken over chunks of 1 MiB, so that workers can hash the pieces of one tensor in any order:

    chunk digest   BLAKE3(chunk bytes)
    payload digest BLAKE3("mergeflow payload 1\\n" chunk digests)
    tensor digest  BLAKE3("mergeflow tensor 1\\n" dtype "\\n" shape "\\n" payload digest)
    model digest   BLAKE3("mergeflow model 1\\n" then, by name in code point order: length, name, tensor digest)

Neither says anything of the container: not the order of the tensors, not the metadata, not the shards.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from blake3 import blake3

from mergeflow.tensors import DType

CHUNK = 1 << 20
DIGEST_SIZE = 32
NUMERICS = 1  # what every key begins with: raised when the same action would give other bytes


def chunk_count(nbytes: int) -> int:
    """How many chunks a tensor has; an empty tensor has none."""
    return -(-nbytes // CHUNK)


def hash_bytes(data: bytes | memoryview) -> bytes:
    return blake3(data).digest()


def payload_digest(chunks: bytes | memoryview) -> bytes:
    """Of a tensor's bytes; `chunks` is the concatenation of the chunk digests, in order."""
    return blake3(b"mergeflow payload 1\n" + chunks).digest()


def tensor_digest(dtype: DType, shape: Sequence[int], payload: bytes) -> bytes:
    return blake3(f"mergeflow tensor 1\n{dtype.label}\n{','.join(map(str, shape))}\n".encode() + payload).digest()


def model_digest(tensors: Iterable[tuple[str, bytes]]) -> bytes:
    parts = [b"mergeflow model 1\n"]
    for name, digest in sorted(tensors):
        encoded = name.encode()
        parts += (struct.pack("<I", len(encoded)), encoded, digest)
    return blake3(b"".join(parts)).digest()


def action_key(preimage: str) -> str:
    """The key of an action is the hash of a text that a person can read (`explain --key` prints it)."""
    return "k3:" + blake3(preimage.encode()).hexdigest()


def printable(digest: bytes) -> str:
    return "b3:" + digest.hex()


def shortened(digest: str) -> str:
    """A printed digest or key for messages: as much of it as tells files apart."""
    return f"{digest[:15]}…"


def parse_digest(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("b3:"))
