"""Objects for tests of the store: the bytes of a tensor follow from its key, so every reader knows what is right."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blake3 import blake3

from mergeflow.store.objects import Keyed, Readable, Store, Stored
from mergeflow.tensors import DType

MIB = 1 << 20
TESTS = os.pathsep.join([str(Path(__file__).resolve().parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])


def key(name: str) -> str:
    return "k3:" + hashlib.sha256(name.encode()).hexdigest()


def content(of: str, nbytes: int) -> bytes:
    """What the tensor with this key holds."""
    return hashlib.shake_128(of.encode()).digest(nbytes)


def payload(data: bytes) -> bytes:
    """As docs/decisions/0008 states it, by the library alone."""
    chunks = b"".join(blake3(data[i : i + MIB]).digest() for i in range(0, len(data), MIB))
    return blake3(b"mergeflow payload 1\n" + chunks).digest()


def tensors(names: Sequence[str], elements: int = 100, dtype: DType = DType.F32) -> list[Keyed]:
    return [Keyed(key(name), name, dtype, (elements,)) for name in names]


def put(store: Store, wanted: Sequence[Keyed], title: str = "a step", kind: str = "step") -> str:
    """An object with the content that belongs to the keys, written in pieces from the end on."""
    keys = {t.name: t.key for t in wanted}
    with store.begin(wanted, kind=kind, title=title) as writing:
        payloads = []
        for t in writing.layout.tensors:
            data = content(keys[t.name], t.nbytes)
            half = len(data) // 2
            writing.write(memoryview(data)[half:], t.start + half)
            writing.write(memoryview(data)[:half], t.start)
            writing.write_back(t.start, t.nbytes)
            payloads.append(payload(data))
        return writing.commit(payloads)


def read(store: Store, stored: Stored) -> bytes | None:
    """As a build reads: what is not what the store says is rejected, and None."""
    file = store.open(stored.object)
    if file is None:
        return None
    try:
        data = file.read(stored.nbytes, stored.offset)
    except Exception:
        data = b""
    finally:
        file.close()
    if payload(data) != stored.payload:
        store.reject(stored.object)
        return None
    return data


def unlock_sqlite() -> None:
    """For the rest of the process no database is locked by anybody: as on file systems whose locks do nothing."""
    real = sqlite3.connect

    def unlocked(path: str | Path, **options: Any) -> sqlite3.Connection:
        return real(f"file:{path}?vfs=unix-none", uri=True, **options)

    sqlite3.connect = unlocked  # type: ignore[assignment]


def everything(file: Readable) -> bytes:
    try:
        return file.read(file.size, 0)
    finally:
        file.close()


def right(store: Store, keys: Sequence[str]) -> Mapping[str, bytes]:
    """All of the keys that are found and read; each is checked against what it must be."""
    found = {}
    for k, stored in store.find(keys).items():
        data = read(store, stored)
        if data is not None:
            assert data == content(k, stored.nbytes), "the store returned other bytes than were put there"
            found[k] = data
    return found
