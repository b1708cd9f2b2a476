"""An output on its way: tensors written at positions of its space by any thread, then all that is around them, and then
its files under their final names.

How several files become one output. All of them are complete and synced before the first gets its name. The file that
leads to the others (the index of a sharded model) is taken away first and comes last: a build that is killed in between
leaves no index at all, so nobody reads shards of two builds as one model, and the next build makes it again. Where an
error stops it, what was there before is put back, every file of it. A file that is replaced waits beside its place
under the name of a temporary file, which a later build clears away when its writer is dead.

What is done of each file is noted in a journal beside it (`formats.journal`), so that a build that is killed has not
worked for nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from mergeflow.digest import chunk_count
from mergeflow.formats.files import Fingerprint
from mergeflow.formats.journal import Entry, Journal, SourceFile
from mergeflow.formats.layout import Ending, Layout, Stretch
from mergeflow.formats.parts import PartFile, check_space, set_aside, sync_folder
from mergeflow.formats.torchwriter import combine_crc32

_STEP = 1 << 22
Read = Callable[[memoryview, int, int], None]  # fill the view from a file (by number), at an offset


class _Sum(NamedTuple):
    """The CRC-32 of `nbytes` of a tensor."""

    tensor: int
    at: int
    nbytes: int
    crc: int


class OutputFiles:
    """The temporary files of one output. `write` and `write_back` may be called from several threads at once."""

    def __init__(self, target: Path, layout: Layout) -> None:
        self._target, self.layout = target, layout
        self._space = Space(layout)
        self._sums: list[_Sum] = []
        self._parts: list[PartFile] = []
        self._journals: list[Journal] = []
        sizes = layout.sizes(target)
        check_space(target, sum(sizes))
        try:
            for path, size in zip(layout.paths(target), sizes, strict=True):
                self._parts.append(PartFile(path, size))  # those made must go when one cannot be
        except BaseException:
            self.discard()
            raise

    def keep_journals(
        self, output: str, keys: Sequence[str], payloads: Sequence[bytes], sources: Sequence[SourceFile]
    ) -> None:
        """From here on, what is `done` is noted beside the files. `output` is its name for people; `keys` and
        `payloads` (what the bytes are known to be, b'' where they are not) are by tensor in the order of the layout;
        `sources` are the files that all of it is made of."""
        chunk = 0
        for part, held in zip(self._parts, self.layout.holds(), strict=True):
            entries = []
            first = chunk
            for key, payload, spec in zip(keys[held], payloads[held], self.layout.tensors[held], strict=True):
                entries.append(Entry(key, self._space.offset(spec.start), spec.nbytes, payload))
                chunk += chunk_count(spec.nbytes)
            if entries:
                journal = Journal(part.path)
                self._journals.append(journal)
                journal.begin(output, first, entries, sources)

    def done(self, chunk: int, digests: bytes) -> None:
        """Note that chunks were written: the number of the first among those of all tensors, and their digests."""
        for journal in self._journals:
            journal.note(chunk, digests)

    def write(self, view: memoryview, position: int) -> None:
        for i, at, begin, end in self._space.cut(position, view.nbytes):
            stretch, piece = self._space.stretches[i], view[begin:end]
            if self.layout.checksums:
                self._sums.append(_Sum(i, at, piece.nbytes, zlib.crc32(piece)))
            self._parts[stretch.file].write(piece, stretch.at + at)

    def write_back(self, position: int, nbytes: int) -> None:
        """Ask the system to start writing this range to the disk now."""
        for i, at, begin, end in self._space.cut(position, nbytes):
            stretch = self._space.stretches[i]
            self._parts[stretch.file].write_back(stretch.at + at, end - begin)

    def finish(self, digests: Sequence[bytes]) -> None:
        """Write all that is not a tensor; `digests` are those of the tensors, in the order of the layout."""
        sha256 = hash_tensors(self.layout, self._read) if self.layout.hashed else ""
        for piece in self.layout.rest(self._target, Ending(digests, self._checksums(), sha256)):
            self._parts[piece.file].write(memoryview(piece.data), piece.at)

    def commit(self) -> tuple[Fingerprint, ...]:
        """Publish all files, or none. What they are then, in the order of the layout's paths."""
        for part in self._parts:
            part.seal()
        at = (self._parts[0].publish(),) if len(self._parts) == 1 else self._publish()
        self._end_journals()
        return at

    def _publish(self) -> tuple[Fingerprint, ...]:
        before: list[tuple[Path, Path]] = []  # where a file was, where it waits
        *others, main = self._parts
        try:
            for part in [*([main] if self.layout.indexed else []), *others]:
                aside = set_aside(part.final)
                if aside is not None:
                    before.append((part.final, aside))  # one by one: an error must find all that were moved
            sync_folder(self._target.parent)
            return tuple([part.publish() for part in self._parts])
        finally:
            if main.published:
                for _, aside in before:
                    with contextlib.suppress(OSError):
                        aside.unlink()
            else:
                self._put_back(before)

    def _put_back(self, before: Sequence[tuple[Path, Path]]) -> None:
        for part in self._parts:
            if part.published:
                with contextlib.suppress(OSError):
                    part.final.unlink()
        for path, aside in reversed(before):
            with contextlib.suppress(OSError):
                aside.replace(path)

    def _checksums(self) -> list[int]:
        """The CRC-32 of each tensor from those of its pieces, which came in any order."""
        found = [0] * len(self.layout.tensors) if self.layout.checksums else []
        for s in sorted(self._sums):
            found[s.tensor] = combine_crc32(found[s.tensor], s.crc, s.nbytes) if s.at else s.crc
        return found

    def _read(self, view: memoryview, file: int, offset: int) -> None:
        self._parts[file].read_into(view, offset)

    def discard(self) -> None:
        for part in self._parts:
            part.discard()
        self._end_journals()

    def leave(self) -> None:
        """As they are, with their journals: what is done is not to be done again."""
        for part in self._parts:
            part.leave()
        self._end_journals()

    def _end_journals(self) -> None:
        for journal in self._journals:
            journal.end()
        self._journals.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.discard()


class Space:
    """The stretches of a layout, to be looked up by position."""

    def __init__(self, layout: Layout) -> None:
        self.stretches: tuple[Stretch, ...] = layout.stretches()
        self._starts = [stretch.start for stretch in self.stretches]
        last = layout.tensors[-1] if layout.tensors else None
        self.end = last.start + last.nbytes if last else 0

    def offset(self, position: int) -> int:
        """Where in its file the byte at a position lies."""
        stretch = self.stretches[bisect_right(self._starts, position) - 1]
        return stretch.at + position - stretch.start

    def cut(self, position: int, nbytes: int) -> Iterator[tuple[int, int, int, int]]:
        """The parts of a range that lie together: (stretch, offset in it, begin and end in the range)."""
        i, begin = bisect_right(self._starts, position) - 1, 0
        while begin < nbytes:
            at = position + begin - self._starts[i]
            stop = self._starts[i + 1] if i + 1 < len(self._starts) else position + nbytes
            end = min(nbytes, stop - position)
            if end > begin:  # a tensor without elements is a stretch without length
                yield i, at, begin, end
            begin, i = end, i + 1


def hash_tensors(layout: Layout, read: Read) -> str:
    """The sha256 of all tensors' bytes in file order, read back. Not taken while they are written: workers finish in
    any
    order, and a hash that cannot be combined would make them wait for each other."""
    hasher = hashlib.sha256()
    for view in _stream(layout, read, layout.tensors[0].start if layout.tensors else 0, None):
        hasher.update(view)
    return hasher.hexdigest()


def checksums(layout: Layout, read: Read) -> list[int]:
    """The CRC-32 of each tensor, read back: of a file that somebody else may have written."""
    found = []
    for t in layout.tensors:
        crc = 0
        for view in _stream(layout, read, t.start, t.start + t.nbytes):
            crc = zlib.crc32(view, crc)
        found.append(crc)
    return found


def _stream(layout: Layout, read: Read, position: int, stop: int | None) -> Iterator[memoryview]:
    space = Space(layout)
    buffer = memoryview(bytearray(_STEP))
    stop = space.end if stop is None else stop
    while position < stop:
        n = min(_STEP, stop - position)
        for i, at, begin, end in space.cut(position, n):
            read(buffer[begin:end], space.stretches[i].file, space.stretches[i].at + at)
        yield buffer[:n]
        position += n
