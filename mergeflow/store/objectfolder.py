"""The files of a store: objects, pins, and what dead builds left behind. Knows nothing of the index."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from mergeflow.errors import MergeflowError, MissingInput
from mergeflow.formats.files import ReadFile
from mergeflow.formats.parts import clear_dead_parts, write_text_file
from mergeflow.store.objectfile import ObjectFile, OtherFormat, object_ids, object_path, payload_of, read_object
from mergeflow.store.objects import ObjectId


class ObjectFolder:
    """`folder` is the cache folder. `say` warns."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder, self._say = folder, say

    def path(self, object_id: ObjectId) -> Path:
        return object_path(self.folder, object_id)

    def name(self, object_id: ObjectId) -> str:
        """Short, for messages."""
        return f"{self.folder.name}/objects/{object_id[:2]}/{object_id[:12]}….safetensors"

    def ids(self) -> list[ObjectId]:
        return object_ids(self.folder)

    @property
    def exists(self) -> bool:
        return (self.folder / "objects").is_dir()

    def size(self, object_id: ObjectId) -> int | None:
        """In bytes; None when it is not there. Raises OSError when that cannot be told."""
        try:
            return self.path(object_id).stat().st_size
        except FileNotFoundError:
            return None

    def written_ns(self, object_id: ObjectId) -> int:
        try:
            return self.path(object_id).stat().st_mtime_ns
        except OSError:
            return 0

    def open(self, object_id: ObjectId) -> ReadFile | None:
        try:
            return ReadFile(self.path(object_id))
        except MissingInput:
            return None
        except MergeflowError as error:
            self._say(f"{error.message}: it is not reused")
            return None

    def read(self, object_id: ObjectId) -> ObjectFile | str | None:
        """What an object says of itself; what is wrong with it; or None when it is gone, or not for us to read."""
        file = self.open(object_id)
        if file is None:
            return None
        with file:
            try:
                return read_object(file, object_id)
            except OtherFormat:
                return None
            except MergeflowError as error:
                return error.message.removeprefix(f"{file.path}: ")

    def read_all(self) -> Iterator[tuple[ObjectFile, int]]:
        """All objects with the time each was written; a damaged one is dropped with a warning."""
        for object_id in self.ids():
            found = self.read(object_id)
            if isinstance(found, ObjectFile):
                yield found, self.written_ns(object_id)
            elif found is not None:
                self.say_damaged(object_id)
                self.unlink(object_id)

    def say_damaged(self, object_id: ObjectId) -> None:
        self._say(f"{self.name(object_id)} was damaged and is dropped; what it held is computed again")

    def check(self, said: ObjectFile, progress: Callable[[int], None]) -> str:
        """Read all its bytes. Returns what is wrong with them, '' for nothing."""
        file = self.open(said.id)
        if file is None:
            return ""
        with file:
            try:
                for held in said.held:
                    if payload_of(file, held.spec) != held.payload:
                        return f"the bytes of {held.spec.name} are not those that were written"
                    progress(held.spec.nbytes)
            except MergeflowError as error:  # cut meanwhile, or the disk fails
                return error.message.removeprefix(f"{file.path}: ")
        return ""

    def unlink(self, object_id: ObjectId) -> bool:
        """Whether the file is gone. On Windows it stays while a build reads it, for another time."""
        try:
            self.path(object_id).unlink(missing_ok=True)
        except OSError:
            return False
        return True

    def clear(self) -> int:
        """Remove what dead builds left behind. Returns how many files."""
        folders = [self.folder, self.folder / "leases", self.folder / "pins", *self.folder.glob("objects/??")]
        return sum(len(clear_dead_parts(folder)) for folder in folders)

    # -- pins: files, so that they outlive the index -----------------------------------------------------------------

    def pin(self, object_id: ObjectId) -> None:
        write_text_file(self._pin(object_id), "")

    def unpin(self, object_id: ObjectId) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._pin(object_id).unlink()

    def pins(self) -> frozenset[ObjectId]:
        return frozenset(path.name for path in self.folder.glob("pins/*"))

    def _pin(self, object_id: ObjectId) -> Path:
        return self.folder / "pins" / object_id
