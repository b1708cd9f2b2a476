"""The store on a disk: objects as files, found through the index, kept by pins and leases."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import final

from mergeflow.errors import MergeflowError
from mergeflow.formats.files import ReadFile
from mergeflow.formats.layout import SafetensorsLayout
from mergeflow.formats.parts import PartFile
from mergeflow.store.eviction import evict, is_kept
from mergeflow.store.folder import prepare
from mergeflow.store.index import ObjectIndex
from mergeflow.store.leases import Leases
from mergeflow.store.objectfile import ObjectFile, final_header, held_in, lay_out_object
from mergeflow.store.objectfolder import ObjectFolder
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


@final
class LocalStore(Store):
    """In a folder that is made by the first write. `warn` is told once of each thing that is wrong; `now` is the time
    in nanoseconds since the epoch."""

    def __init__(self, folder: Path, warn: Callable[[str], None], now: Callable[[], int] = time.time_ns) -> None:
        self._warn, self._now = warn, now
        self._said: set[str] = set()
        self._files = ObjectFolder(folder, self._say)
        self._index = ObjectIndex(folder, self._say, self._files.read_all)
        self._leases = Leases(folder)

    def _say(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            self._warn(message)

    def close(self) -> None:
        self._index.close()

    # -- reading ---------------------------------------------------------------------------------------------------

    def find(self, keys: Iterable[str]) -> Mapping[str, Stored]:
        self._begin()
        usable: dict[ObjectId, bool] = {}
        found: dict[str, Stored] = {}
        for row in self._index.find(dict.fromkeys(keys)):
            object_id = row.stored.object
            if object_id not in usable:
                usable[object_id] = self._is_there(object_id, row.size)
            if usable[object_id]:
                found.setdefault(row.key, row.stored)
        return found

    def _begin(self) -> None:
        """Have the index made, where somebody deleted it and the objects are still there."""
        if self._files.exists:
            self._index.begin()

    def _is_there(self, object_id: ObjectId, size: int) -> bool:
        try:
            length = self._files.size(object_id)
        except OSError as error:
            self._say(f"{self._files.name(object_id)}: {error.strerror}: it is not reused")
            return False
        if length is None:
            self._index.forget(object_id)
        elif length != size:
            self.reject(object_id)
        return length == size

    def open(self, object_id: ObjectId) -> ReadFile | None:
        return self._files.open(object_id)

    def path(self, object_id: ObjectId) -> Path:
        return self._files.path(object_id)

    def reject(self, object_id: ObjectId) -> None:
        self._files.say_damaged(object_id)
        self._drop(object_id)

    def objects(self) -> list[ObjectInfo]:
        self._begin()
        pins = self._files.pins()
        return [replace(o, pinned=True) if o.id in pins else o for o in self._index.objects()]

    def statistics(self) -> Statistics:
        return self._index.statistics()

    # -- writing ---------------------------------------------------------------------------------------------------

    def begin(self, tensors: Sequence[Keyed], *, kind: str, title: str) -> LocalWriting:
        object_id, layout = lay_out_object(tensors, kind, title)
        with contextlib.suppress(OSError):  # what stands in the way is said when the object itself is made
            prepare(self._files.folder)
        part = PartFile(self._files.path(object_id), layout.file_size)

        def publish(payloads: Sequence[bytes]) -> None:
            self._index.begin()  # before the file is there, or it would be found missing in a new index
            part.commit()
            held = held_in(layout, payloads)
            self._index.add(ObjectFile(object_id, kind, title, held, layout.file_size), self._now())

        return LocalWriting(object_id, layout, part, publish)

    def touch(self, keys: Iterable[str]) -> None:
        self._index.use(dict.fromkeys(keys), self._now())

    def count(self, *, hits: int, misses: int, bytes_saved: int) -> None:
        self._index.count(Statistics(hits, misses, bytes_saved))

    # -- what stays ------------------------------------------------------------------------------------------------

    def pin(self, object_id: ObjectId) -> None:
        self._files.pin(object_id)

    def unpin(self, object_id: ObjectId) -> None:
        self._files.unpin(object_id)

    @contextlib.contextmanager
    def lease(self, keys: Iterable[str]) -> Iterator[None]:
        wanted = list(keys)
        path = None
        try:
            prepare(self._files.folder)
            path = self._index.exclusively(lambda: self._leases.take(wanted)) if wanted else None
        except (OSError, MergeflowError) as error:
            self._say(f"what this build uses is not kept from a gc that runs meanwhile: {error}")
        try:
            yield
        finally:
            if path is not None:
                with contextlib.suppress(OSError):
                    path.unlink()

    # -- what goes -------------------------------------------------------------------------------------------------

    def remove(self, object_id: ObjectId) -> bool:
        removed = self._drop(object_id)
        if removed:
            self.unpin(object_id)
        return removed

    def _drop(self, object_id: ObjectId) -> bool:
        there = self._files.path(object_id).exists()
        return self._index.remove(object_id, lambda keys: self._files.unlink(object_id)) and there

    def gc(self, limits: Limits, *, dry_run: bool = False) -> Collected:
        adopted, _ = self._adopt()
        cleared = 0 if dry_run else self._leases.clear() + self._files.clear()
        objects = self.objects()
        names = self._leases.names()
        leased = self._leases.keys(names)
        kept = self._index.holding(leased)
        removed: dict[ObjectId, ObjectInfo] = {}
        while chosen := evict([o for o in objects if o.id not in removed], kept, limits, self._now()):
            for o in chosen:
                if dry_run or self._evict(o, names, leased):
                    removed[o.id] = o
                else:
                    kept |= {o.id}  # another one may have to go in its place
        left = [o for o in objects if o.id not in removed]
        untouchable = sum(o.size for o in left if is_kept(o, kept, limits, self._now()))
        return Collected(tuple(removed.values()), sum(o.size for o in left), untouchable, cleared, adopted)

    def _evict(self, o: ObjectInfo, names: frozenset[str], leased: frozenset[str]) -> bool:
        """Remove an object, unless a lease holds it after all: one beyond those known, or on an object that somebody
        else removed and made again. Leases are taken while nobody else writes the index, and so is this done: a lease
        comes before it, or finds the object gone."""

        def removal(keys: frozenset[str]) -> bool:
            if not keys:  # somebody else removed it, or is just making it again
                return not self._files.path(o.id).exists()
            held = leased | self._leases.keys(self._leases.names() - names)
            return held.isdisjoint(keys) and self._files.unlink(o.id)

        return self._index.remove(o.id, removal)

    def verify(self, sample: float | None = None, *, progress: Callable[[int], None] | None = None) -> Verified:
        adopted, damaged = self._adopt()
        objects = self.objects()
        if sample is not None and objects:
            count = min(len(objects), max(1, ceil(sample * len(objects))))
            objects = random.sample(objects, count)  # others the next time
        tensors = nbytes = 0
        for o in objects:
            said = self._files.read(o.id)
            if isinstance(said, ObjectFile):
                reason = self._files.check(said, progress or _silent)
                tensors, nbytes = tensors + len(said.held), nbytes + said.size
                if not reason and not self._index.agrees(said):
                    self._index.add(said, o.written_ns)
            else:
                reason = said or ""
            if reason:
                damaged.append(Damage(o.id, o.title, reason))
        for each in damaged:
            self._drop(each.id)
        return Verified(len(objects), tensors, nbytes, tuple(damaged), adopted)

    def _adopt(self) -> tuple[int, list[Damage]]:
        """Make the index know the files that are there, and no others. Returns how many it did not know, and those
        that are no objects, which stay for the caller to drop."""
        known, there = {o.id for o in self.objects()}, set(self._files.ids())
        for object_id in sorted(known - there):
            self._index.forget(object_id)
        adopted, damaged = 0, []
        for object_id in sorted(there - known):
            said = self._files.read(object_id)
            if isinstance(said, ObjectFile):
                self._index.add(said, self._files.written_ns(object_id))
                adopted += 1
            elif said is not None:
                damaged.append(Damage(object_id, "", said))
        return adopted, damaged


@final
class LocalWriting(Writing):
    def __init__(
        self, object_id: ObjectId, layout: SafetensorsLayout, part: PartFile, publish: Callable[[Sequence[bytes]], None]
    ) -> None:
        self.id, self.layout = object_id, layout
        self._part, self._publish = part, publish

    def write(self, view: memoryview, offset: int) -> None:
        self._part.write(view, offset)

    def write_back(self, offset: int, nbytes: int) -> None:
        self._part.write_back(offset, nbytes)

    def commit(self, payloads: Sequence[bytes]) -> ObjectId:
        self._part.write(memoryview(final_header(self.layout, payloads)), 0)
        self._publish(payloads)
        return self.id

    def discard(self) -> None:
        self._part.discard()


def _silent(nbytes: int) -> None:
    return
