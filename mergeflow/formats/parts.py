"""Files that appear under their final name only when complete, and what is left of those whose writer died."""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import sys
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from mergeflow.digest import hash_bytes
from mergeflow.errors import IntegrityError, ResourceError
from mergeflow.formats import files
from mergeflow.formats.files import Fingerprint, Positioned, explain_os_error, fingerprint
from mergeflow.formats.processes import process_is_gone, process_mark
from mergeflow.tensors import human_bytes

if TYPE_CHECKING:
    import ctypes

JOURNAL = ".journal"  # after the name of a temporary file: what of it is done (`formats.journal`)
_WRITE_BACK = 2  # SYNC_FILE_RANGE_WRITE
_serial = itertools.count()  # two builds in one process may write the same output


class PartFile:
    """A file on its way to its final name: written at offsets, then committed; anything else discards it.

    The temporary file lies in the target folder and its name says who writes it, so that a later run can tell a
    dead writer's leftovers from a file that somebody is writing now (see `clear_dead_parts`).
    """

    def __init__(self, final: Path, size: int) -> None:
        self.final, self.size = final, size
        self.published = False  # whether the file has its final name
        check_space(final, size)
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explain_os_error(error, "making its folder", final) from error
        self.path = final.parent / _part_name(final.name)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        self._io: Positioned | None = None
        try:
            fd = os.open(self.path, flags, 0o666)
            self._io = Positioned(fd, self.path, "r+b")
        except OSError as error:
            raise explain_os_error(error, "creating a file beside it", final) from error
        except BaseException:  # interrupted in the moment that it was made
            self._unlink()
            raise
        try:
            _preallocate(fd, size)
        except OSError as error:
            self.discard()
            raise explain_os_error(error, f"reserving {human_bytes(size)}", final) from error
        except BaseException:  # interrupted while space was being reserved, which takes a moment
            self.discard()
            raise

    def write(self, view: memoryview, offset: int) -> None:
        assert self._io is not None
        done, wanted = 0, view.nbytes
        try:
            while done < wanted:
                done += self._io.write_from(view[done:] if done else view, offset + done)
        except OSError as error:
            raise explain_os_error(error, "writing it", self.final) from error

    def write_back(self, offset: int, nbytes: int) -> None:
        """Ask the system to start writing this range to the disk now: a hint, so that the fsync finds little to do."""
        if self._io is not None and not files.PORTABLE and (call := _sync_file_range()):
            call(self._io.fd, offset, nbytes, _WRITE_BACK)

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill `view` with what was written from `offset` on."""
        assert self._io is not None
        done, wanted = 0, view.nbytes
        try:
            while done < wanted:
                n = self._io.read_into(view[done:] if done else view, offset + done)
                if n == 0:
                    raise IntegrityError(f"{self.path}: it was cut while it was being written")
                done += n
        except OSError as error:
            raise explain_os_error(error, "reading it back", self.final) from error

    def commit(self) -> Fingerprint:
        """Sync, rename, sync the folder. What is returned was read after the rename, which changes ctime."""
        self.seal()
        return self.publish()

    def seal(self) -> None:
        """Sync what was written, under the temporary name."""
        assert self._io is not None
        try:
            with contextlib.suppress(OSError):
                mode = self.final.stat().st_mode & 0o777
                os.chmod(self.path, mode)  # noqa: PTH101  # the descriptor's own path is known good here
            _full_sync(self._io.fd)
        except OSError as error:
            self.discard()  # after a failed fsync pages may be marked clean: never try it again on the same file
            raise explain_os_error(error, "syncing it to disk", self.final) from error

    def publish(self) -> Fingerprint:
        """Give a sealed file its name."""
        assert self._io is not None
        fd = self._io.fd
        if sys.platform == "win32":  # an open file cannot be renamed there
            self._close()
        try:
            self.path.replace(self.final)
        except PermissionError as error:
            self._close()
            raise ResourceError(
                f"{self.final}: {error.strerror}; another program may hold it open",
                hint=f"the finished file is kept as {self.path.name}: close the other program and rename it",
            ) from error
        except OSError as error:
            self.discard()
            raise explain_os_error(error, "renaming the finished file", self.final) from error
        self.published = True
        sync_folder(self.final.parent)
        after = fingerprint(self.final.stat() if sys.platform == "win32" else os.fstat(fd))
        self._close()
        return after

    def _close(self) -> None:
        if self._io is not None:
            self._io.close()
            self._io = None

    def discard(self) -> None:
        if self._io is None:
            return
        self._close()
        self._unlink()

    def leave(self) -> None:
        """Close it as it is, under its temporary name: a later build takes over what its journal calls done."""
        self._close()

    def _unlink(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.discard()


def write_text_file(path: Path, text: str) -> None:
    """A small file, whole or not at all."""
    write_file(path, text.encode())


def write_file(path: Path, data: bytes) -> Fingerprint:
    """A small file, whole or not at all; what it is then."""
    with PartFile(path, len(data)) as part:
        if data:
            part.write(memoryview(data), 0)
        return part.commit()


def check_space(final: Path, size: int) -> None:
    """Whether the disk has room for a file (or for several), asked before anything is made.

    Raises:
        ResourceError: it has not.
    """
    _, free = disk_of(final)
    if size > free:
        raise ResourceError(
            f"{final}: needs {human_bytes(size)}, the disk has {human_bytes(free)} free",
            hint="free some space, or write it to another disk",
        )


def disk_of(final: Path) -> tuple[int, int]:
    """The disk that a file would lie on, by its number, and how many bytes are free there.

    Raises:
        ResourceError: its folder cannot be looked at.
    """
    try:
        there = next((folder for folder in final.parents if folder.exists()), final.parent)
        return there.stat().st_dev, _free_space(there)
    except OSError as error:
        raise explain_os_error(error, "making its folder", final) from error


def set_aside(path: Path) -> Path | None:
    """Give a file the name of a temporary one, for as long as something else takes its place; None where there is none.
    `clear_dead_parts` removes it when this process dies before it is put back or removed."""
    aside = path.parent / _part_name(path.name)
    try:
        path.replace(aside)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise explain_os_error(error, "moving the old file out of the way", path) from error
    return aside


def sync_folder(folder: Path) -> None:
    if sys.platform == "win32":
        return
    with contextlib.suppress(OSError):  # some file systems refuse; the rename is done either way
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def clear_dead_parts(folder: Path, spare: Collection[Path] = ()) -> list[Path]:
    """Remove temporary files whose writer is known to be dead, and their journals; leave those of live writers, of
    other machines, and those to `spare`."""
    removed = []
    for part in dead_parts(folder):
        if part in spare:
            continue
        for path in (part, journal_path(part)):
            with contextlib.suppress(OSError):
                path.unlink()
                removed.append(path)
    return removed


def dead_parts(folder: Path) -> list[Path]:
    """The temporary files whose writer is known to be dead, also those of which only the journal is left."""
    names = {path.name.removesuffix(JOURNAL) for path in folder.glob(".*.part*")}
    return [folder / name for name in sorted(names) if name.endswith(".part") and process_is_gone(_mark_of(name))]


def journal_path(part: Path) -> Path:
    """Where the journal of a temporary file lies, if it has one."""
    return part.with_name(part.name + JOURNAL)


def _mark_of(name: str) -> str:
    return name.removesuffix(".part").rsplit(".", 1)[-1].rpartition("-")[0]


def _part_name(name: str) -> str:
    if len(name.encode()) > 150:  # file names end at 255 bytes
        name = hash_bytes(name.encode()).hex()[:16]
    return f".{name}.{process_mark()}-{next(_serial)}.part"


def _free_space(folder: Path) -> int:
    import shutil

    return shutil.disk_usage(folder).free


def _preallocate(fd: int, size: int) -> None:
    """Reserve the space now: a full disk is found before any work, and writes into reserved space are faster."""
    if size and not files.PORTABLE and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
        else:
            return
    os.ftruncate(fd, size)


def _full_sync(fd: int) -> None:
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    else:
        os.fsync(fd)


@functools.cache
def _sync_file_range() -> ctypes._NamedFuncPointer | None:
    if not sys.platform.startswith("linux"):
        return None
    import ctypes

    try:
        call = ctypes.CDLL(None, use_errno=True).sync_file_range
    except (OSError, AttributeError):
        return None
    call.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return call
