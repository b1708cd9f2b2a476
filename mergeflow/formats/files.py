"""Positioned reads, and the errors of the operating system in the user's words.

Together with `formats.parts`, which writes, the one place that calls the operating system for bytes. Each POSIX-only
call has a portable fallback, which MERGEFLOW_PORTABLE_IO=1 forces everywhere (the tests run the same suite both ways).
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import threading
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from mergeflow.errors import IntegrityError, MissingInput, ResourceError, nearest

PORTABLE = os.environ.get("MERGEFLOW_PORTABLE_IO") == "1"
_POSITIONED = hasattr(os, "preadv") and hasattr(os, "pwrite")


class Fingerprint(NamedTuple):
    """What the file system says of a file; unchanged means that nobody wrote to it in between."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


def fingerprint(status: os.stat_result) -> Fingerprint:
    return Fingerprint(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def explain_os_error(error: OSError, doing: str, path: Path) -> ResourceError:
    """An error of the operating system in the user's words."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(f"{path}: the disk is full while {doing}", hint="free some space, then build again")
    if error.errno == errno.EFBIG:
        return ResourceError(
            f"{path}: the file would be larger than this system allows ({doing})",
            hint="`ulimit -f` shows the limit; some file systems take at most 4 GB",
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return ResourceError(f"{path}: {error.strerror} while {doing}", hint="choose a folder that can be written to")
    return ResourceError(f"{path}: {error.strerror or error} while {doing}")


class Positioned:
    """Reads and writes at offsets on one descriptor, from any thread; with seek on systems that lack the calls."""

    def __init__(self, fd: int, path: Path, mode: str) -> None:
        self.fd, self._path, self._mode = fd, path, mode
        self._portable = PORTABLE or not _POSITIONED
        self._local = threading.local()
        self._handles: list[io.FileIO] = []

    def _handle(self) -> io.FileIO:
        found: io.FileIO | None = getattr(self._local, "handle", None)
        if found is not None:
            return found
        handle = io.FileIO(self._path, self._mode)  # one per thread: seek and read are two calls
        self._local.handle = handle
        self._handles.append(handle)
        return handle

    def read_into(self, view: memoryview, offset: int) -> int:
        if not self._portable:
            return os.preadv(self.fd, [view], offset)
        handle = self._handle()
        handle.seek(offset)
        return handle.readinto(view) or 0

    def write_from(self, view: memoryview, offset: int) -> int:
        if not self._portable:
            return os.pwrite(self.fd, view, offset)
        handle = self._handle()
        handle.seek(offset)
        return handle.write(view)

    def close(self) -> None:
        for handle in self._handles:
            handle.close()
        os.close(self.fd)


class ReadFile:
    """An input, read at offsets by any number of threads. `bytes_read` counts what was asked of the file so far."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            _refuse_other_than_files(path)
            fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise _not_there(error, path) or explain_os_error(error, "opening it", path) from error
        self._io = Positioned(fd, path, "rb")
        self.opened = self.fingerprint()
        self.size = self.opened.size
        self._count = threading.Lock()
        self.bytes_read = 0

    def fingerprint(self) -> Fingerprint:
        return fingerprint(os.fstat(self._io.fd))

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill `view` from `offset`; a file that ends before that is an error."""
        done, wanted = 0, view.nbytes
        while done < wanted:
            try:
                n = self._io.read_into(view[done:] if done else view, offset + done)
            except OSError as error:
                raise explain_os_error(error, "reading it", self.path) from error
            if n == 0:
                raise IntegrityError(f"{self.path}: it ends at byte {offset + done:,}, it was cut while being read")
            done += n
        with self._count:
            self.bytes_read += done

    def read(self, nbytes: int, offset: int) -> bytes:
        buffer = bytearray(nbytes)
        self.read_into(memoryview(buffer), offset)
        return bytes(buffer)

    def check_unchanged(self) -> None:
        """Refuse what was read when the file was written to, replaced in place or cut since it was opened."""
        if self.fingerprint() != self.opened:
            raise IntegrityError(f"{self.path}: the file changed while it was being read", hint="build again")

    def close(self) -> None:
        self._io.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _refuse_other_than_files(path: Path) -> None:
    """Before it is opened: Linux opens folders, and opening a pipe waits for somebody to write into it."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise MissingInput(f"{path}: is {'a folder' if stat.S_ISDIR(mode) else 'a pipe or a device'}, not a file")


def _not_there(error: OSError, path: Path) -> MissingInput | None:
    """The answer where no file can be at this path; None for any other error."""
    if error.errno == errno.ELOOP:
        return MissingInput(f"{path}: is a link that leads back to itself")
    if error.errno == errno.ENAMETOOLONG:
        return MissingInput(f"{shown_path(path)}: there is no such file, its name is too long for one")
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        return None
    if path.is_symlink():
        return MissingInput(f"{path}: is a link to {path.readlink()}, and there is no such file")
    folder = path.parent
    if not folder.is_dir():
        found = f", {folder} is a file and no folder" if folder.exists() else ""
        return MissingInput(f"{path}: there is no such file{found}", hint="" if found else _meant(folder))
    return MissingInput(f"{path}: there is no such file", hint=_meant(path))


_NO_MODELS = (".yaml", ".yml", ".lock", ".md", ".txt", ".sha256")  # what lies beside models


def _meant(path: Path) -> str:
    """The files beside it that are called almost the same."""
    with contextlib.suppress(OSError):
        beside = {p.stem: p.name for p in path.parent.iterdir() if p.suffix not in _NO_MODELS}
        close = nearest(path.stem, beside)
        if close:
            return f"did you mean {' or '.join(beside[stem] for stem in close)}?"
    return ""


def shown_path(path: Path) -> str:
    """A path short enough for a message."""
    text = str(path)
    return text if len(text) <= 200 else f"{text[:60]}…{text[-30:]}"
