"""The store of intermediates: what a build may ask of it, with a disk (`store.local`) or without (`store.memory`).

An object is a safetensors file that holds results of one step, some or all of its tensors, in their compute dtype. It
is found by the action keys of its tensors. Nothing that the store says makes a byte right: who reads hashes what was
read, compares it with `Stored.payload`, and on a difference calls `reject` and computes the tensor instead. Losing any
part of the store, at any moment, loses time only. The format: cache/README.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Protocol, Self, TypeAlias

from mergeflow.formats.layout import SafetensorsLayout
from mergeflow.tensors import DType

GRACE = 600.0  # seconds for which gc leaves a new object alone, unless told otherwise

ObjectId: TypeAlias = str
"""64 hex digits: the digest of all that an object says of itself before its bytes are known."""


class Keyed(NamedTuple):
    """A tensor to be stored: its action key, the name that it has in the object, dtype and shape."""

    key: str
    name: str
    dtype: DType
    shape: tuple[int, ...]


class Stored(NamedTuple):
    """Where a tensor lies: `offset` counts from the beginning of the file, `payload` is digest.payload_digest of its
    bytes. In memory there is no file, and `path` only names the object; `Store.open` reads both."""

    object: ObjectId
    path: Path
    offset: int
    nbytes: int
    dtype: DType
    shape: tuple[int, ...]
    payload: bytes


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object: `size` in bytes of its file, `written_ns` and `used_ns` since the epoch, `hits`: how often it was
    touched. `title` and `kind` are in the words of whoever wrote it."""

    id: ObjectId
    kind: str
    title: str
    tensors: int
    size: int
    written_ns: int
    used_ns: int
    hits: int
    pinned: bool


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of all builds since the index was begun: tensors found and not found, bytes that were not computed anew."""

    hits: int = 0
    misses: int = 0
    bytes_saved: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """What gc keeps to. `max_size` in bytes, `older_than` and `grace` in seconds; None: no such limit."""

    max_size: int | None = None
    older_than: float | None = None
    grace: float = GRACE


@dataclass(frozen=True, slots=True)
class Collected:
    """What gc removed, in order, or would have; bytes of the objects that are left, and of those of them that no gc
    with this grace may remove now; how many leftovers of dead builds were cleared and forgotten objects found."""

    removed: tuple[ObjectInfo, ...]
    left: int
    untouchable: int
    cleared: int = 0
    adopted: int = 0

    @property
    def freed(self) -> int:
        return sum(o.size for o in self.removed)


@dataclass(frozen=True, slots=True)
class Damage:
    """An object that was not what it said; `reason` in one line."""

    id: ObjectId
    title: str
    reason: str


@dataclass(frozen=True, slots=True)
class Verified:
    """What verify read, and what it dropped."""

    objects: int
    tensors: int
    nbytes: int
    damaged: tuple[Damage, ...]
    adopted: int = 0


class Readable(Protocol):
    """The bytes of one object; what formats.files.ReadFile offers."""

    @property
    def path(self) -> Path: ...

    @property
    def size(self) -> int: ...

    def read(self, nbytes: int, offset: int) -> bytes: ...

    def read_into(self, view: memoryview, offset: int) -> None: ...

    def close(self) -> None: ...


class Writing(ABC):
    """An object on its way into the store. `layout` says where each tensor goes, by name and in file order; `write`
    takes any piece of it at its place in the file, from any thread. Leaving the with statement discards it, unless it
    was committed.

    Raises:
        ResourceError: from any call, when the disk is full or cannot be written to; the build can go on without.
    """

    id: ObjectId
    layout: SafetensorsLayout

    @abstractmethod
    def write(self, view: memoryview, offset: int) -> None: ...

    def write_back(self, offset: int, nbytes: int) -> None:
        """A hint that this range is complete."""
        return

    @abstractmethod
    def commit(self, payloads: Sequence[bytes]) -> ObjectId:
        """Make it found: `payloads` are the payload digests of the tensors in the order of `layout.tensors`."""

    @abstractmethod
    def discard(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.discard()


class Store(ABC):
    """Objects by the keys of their tensors. Reading never raises for what is missing, damaged or forbidden: that is a
    miss, and warned of once where it is not plainly absent."""

    @abstractmethod
    def find(self, keys: Iterable[str]) -> Mapping[str, Stored]:
        """Those of the keys that are stored, in one go for any number of them."""

    @abstractmethod
    def open(self, object_id: ObjectId) -> Readable | None:
        """The bytes of an object; None when it is gone or cannot be read. To be closed by the caller."""

    @abstractmethod
    def begin(self, tensors: Sequence[Keyed], *, kind: str, title: str) -> Writing:
        """A new object. `kind` is one word, `title` the step's name in the recipe's words.

        Raises:
            ValueError: no tensors, two of one name, or a key with a space in it.
            ResourceError: the disk is full or cannot be written to.
        """

    @abstractmethod
    def reject(self, object_id: ObjectId) -> None:
        """Drop an object whose bytes are not what they should be, with one warning. Its pin stays, for when it is made
        again."""

    @abstractmethod
    def touch(self, keys: Iterable[str]) -> None:
        """The objects that hold these were used now."""

    @abstractmethod
    def pin(self, object_id: ObjectId) -> None:
        """Keep it from gc until `unpin`."""

    @abstractmethod
    def unpin(self, object_id: ObjectId) -> None: ...

    @abstractmethod
    def remove(self, object_id: ObjectId) -> bool:
        """Remove an object and its pin; False when it is not there or is held open (Windows)."""

    @abstractmethod
    def objects(self) -> list[ObjectInfo]:
        """All objects by id."""

    @abstractmethod
    def statistics(self) -> Statistics: ...

    @abstractmethod
    def count(self, *, hits: int, misses: int, bytes_saved: int) -> None:
        """Add to the statistics."""

    @abstractmethod
    def lease(self, keys: Iterable[str]) -> AbstractContextManager[None]:
        """While it is held, gc removes no object with any of these keys, those that are stored later included. To be
        taken before `find`. It ends with the process, however that ends."""

    @abstractmethod
    def gc(self, limits: Limits, *, dry_run: bool = False) -> Collected:
        """Remove what was not used for `older_than`, then the least recently used until no more than `max_size` is
        left; never what is pinned, leased or was written within `grace`. Clears what dead builds left behind."""

    @abstractmethod
    def verify(self, sample: float | None = None, *, progress: Callable[[int], None] | None = None) -> Verified:
        """Read and hash all objects, or this share of them (0 to 1, chosen at random, at least one), and drop those
        that are damaged. `progress` is told of bytes as they are read."""

    def close(self) -> None:
        """Give back what is held open."""
        return
