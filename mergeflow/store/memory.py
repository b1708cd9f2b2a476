"""The store without a disk: what the local one does, for tests and for builds that leave nothing behind."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from mergeflow.errors import IntegrityError
from mergeflow.formats.layout import SafetensorsLayout
from mergeflow.store.eviction import evict, is_kept
from mergeflow.store.objectfile import ObjectFile, final_header, held_in, lay_out_object, payload_of, read_object
from mergeflow.store.objects import (
    Collected,
    Damage,
    Keyed,
    Limits,
    ObjectId,
    ObjectInfo,
    Statistics,
    Store,
    Stored,
    Verified,
    Writing,
)


@dataclass(slots=True)
class _Object:
    file: ObjectFile
    data: bytearray
    written_ns: int
    used_ns: int
    hits: int = 0


@final
class Bytes:
    """What ReadFile is for a file."""

    def __init__(self, path: Path, data: bytearray) -> None:
        self.path, self._data = path, data
        self.size = len(data)

    def read(self, nbytes: int, offset: int) -> bytes:
        data = bytes(self._data[offset : offset + nbytes])
        if len(data) < nbytes:
            raise IntegrityError(f"{self.path}: it ends at byte {offset + len(data):,}")
        return data

    def read_into(self, view: memoryview, offset: int) -> None:
        view[:] = self.read(view.nbytes, offset)

    def close(self) -> None:
        return


@final
class MemoryStore(Store):
    def __init__(self, warn: Callable[[str], None], now: Callable[[], int] = time.time_ns) -> None:
        self._warn, self._now = warn, now
        self._objects: dict[ObjectId, _Object] = {}
        self._pins: set[ObjectId] = set()
        self._leased: Counter[str] = Counter()
        self._statistics = Statistics()

    def find(self, keys: Iterable[str]) -> Mapping[str, Stored]:
        wanted = dict.fromkeys(keys)
        found: dict[str, Stored] = {}
        for object_id, o in sorted(self._objects.items()):
            for key, spec, payload in o.file.held:
                if key in wanted and key not in found:
                    where = (object_id, _path(object_id), spec.start, spec.nbytes, spec.dtype, spec.shape, payload)
                    found[key] = Stored(*where)
        return found

    def open(self, object_id: ObjectId) -> Bytes | None:
        o = self._objects.get(object_id)
        return None if o is None else Bytes(_path(object_id), o.data)

    def reject(self, object_id: ObjectId) -> None:
        if self._objects.pop(object_id, None) is not None:
            self._warn(f"{_path(object_id)} was damaged and is dropped; what it held is computed again")

    def objects(self) -> list[ObjectInfo]:
        return [
            ObjectInfo(
                i, o.file.kind, o.file.title, len(o.file.held), len(o.data), o.written_ns, o.used_ns, o.hits,
                pinned=i in self._pins,
            )
            for i, o in sorted(self._objects.items())
        ]  # fmt: skip

    def statistics(self) -> Statistics:
        return self._statistics

    def begin(self, tensors: Sequence[Keyed], *, kind: str, title: str) -> MemoryWriting:
        object_id, layout = lay_out_object(tensors, kind, title)
        data = bytearray(layout.file_size)

        def publish(payloads: Sequence[bytes]) -> None:
            file = ObjectFile(object_id, kind, title, held_in(layout, payloads), layout.file_size)
            now, before = self._now(), self._objects.get(object_id)
            hits, used = (before.hits, max(before.used_ns, now)) if before else (0, now)
            self._objects[object_id] = _Object(file, data, now, used, hits)

        return MemoryWriting(object_id, layout, data, publish)

    def touch(self, keys: Iterable[str]) -> None:
        for object_id in self._holding(keys):
            o = self._objects[object_id]
            o.used_ns, o.hits = max(o.used_ns, self._now()), o.hits + 1

    def _holding(self, keys: Iterable[str]) -> frozenset[ObjectId]:
        wanted = frozenset(keys)
        return frozenset(i for i, o in self._objects.items() if any(held.key in wanted for held in o.file.held))

    def count(self, *, hits: int, misses: int, bytes_saved: int) -> None:
        s = self._statistics
        self._statistics = replace(
            s, hits=s.hits + hits, misses=s.misses + misses, bytes_saved=s.bytes_saved + bytes_saved
        )

    def pin(self, object_id: ObjectId) -> None:
        self._pins.add(object_id)

    def unpin(self, object_id: ObjectId) -> None:
        self._pins.discard(object_id)

    @contextlib.contextmanager
    def lease(self, keys: Iterable[str]) -> Iterator[None]:
        wanted = Counter(dict.fromkeys(keys, 1))
        self._leased += wanted
        try:
            yield
        finally:
            self._leased -= wanted

    def remove(self, object_id: ObjectId) -> bool:
        there = self._objects.pop(object_id, None) is not None
        if there:
            self.unpin(object_id)
        return there

    def gc(self, limits: Limits, *, dry_run: bool = False) -> Collected:
        objects, kept = self.objects(), self._holding(self._leased)
        removed = evict(objects, kept, limits, self._now())
        if not dry_run:
            for o in removed:
                del self._objects[o.id]
        gone = {o.id for o in removed}
        left = [o for o in objects if o.id not in gone]
        untouchable = sum(o.size for o in left if is_kept(o, kept, limits, self._now()))
        return Collected(tuple(removed), sum(o.size for o in left), untouchable)

    def verify(self, sample: float | None = None, *, progress: Callable[[int], None] | None = None) -> Verified:
        """All of them, whatever the share: there is no disk to spare."""
        objects = sorted(self._objects.items())
        damaged = [Damage(i, o.file.title, reason) for i, o in objects if (reason := _wrong(i, o))]
        for each in damaged:
            del self._objects[each.id]
        if progress is not None:
            progress(sum(held.spec.nbytes for _, o in objects for held in o.file.held))
        tensors, nbytes = sum(len(o.file.held) for _, o in objects), sum(len(o.data) for _, o in objects)
        return Verified(len(objects), tensors, nbytes, tuple(damaged))


@final
class MemoryWriting(Writing):
    def __init__(
        self,
        object_id: ObjectId,
        layout: SafetensorsLayout,
        data: bytearray,
        publish: Callable[[Sequence[bytes]], None],
    ) -> None:
        self.id, self.layout = object_id, layout
        self._data, self._publish = data, publish

    def write(self, view: memoryview, offset: int) -> None:
        self._data[offset : offset + view.nbytes] = view.cast("B")

    def commit(self, payloads: Sequence[bytes]) -> ObjectId:
        self.write(memoryview(final_header(self.layout, payloads)), 0)
        self._publish(payloads)
        return self.id

    def discard(self) -> None:
        return


def _wrong(object_id: ObjectId, o: _Object) -> str:
    file = Bytes(_path(object_id), o.data)
    try:
        said = read_object(file, object_id)
        bad = next((h.spec.name for h in said.held if payload_of(file, h.spec) != h.payload), None)
    except IntegrityError as error:
        return error.message
    return "" if bad is None else f"the bytes of {bad} are not those that were written"


def _path(object_id: ObjectId) -> Path:
    return Path("memory", object_id)
