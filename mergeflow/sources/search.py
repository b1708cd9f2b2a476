"""Finding a file by what is in it: by sha256, by the short hashes that merge tools and model sites print, or by the
digest of its model.

Nothing is read that need not be: files of another size are no candidates where the size is known, the memo and the
names in the cache of Hugging Face say what is known already, and A1111's old hash takes 64 KiB of each file. What is
found has been hashed as it lies there; a name proves nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mergeflow.digest import printable
from mergeflow.errors import MergeflowError, MissingInput, RecipeError
from mergeflow.events import Reporter, Warned
from mergeflow.formats.contents import is_safetensors
from mergeflow.formats.files import Fingerprint, ReadFile, fingerprint
from mergeflow.sources.adapt import adapt
from mergeflow.sources.hashes import autov3, old_hash, sha256
from mergeflow.sources.identify import identify
from mergeflow.sources.memo import Memo, Part
from mergeflow.tensors import human_bytes

SUFFIXES = frozenset({".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin"})
MOST_UNASKED = 32 << 30  # bytes that are hashed in search of a file whose size is not known
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is known of a file: its sha256, a `short` hash of 8 (A1111's old), 10 (sha256) or 12 digits (AutoV3), or the
    digest of its `model` (b3:…), whatever the container."""

    sha256: str | None = None
    short: str | None = None
    size: int | None = None
    model: str | None = None

    @property
    def told(self) -> bool:
        """Whether it can be looked for."""
        return self.sha256 is not None or self.short is not None or self.model is not None

    @property
    def shown(self) -> str:
        """The hash as messages quote it."""
        if self.sha256:
            return f"sha256 {self.sha256[:12]}…"
        return f"hash {self.short}" if self.short else f"digest {(self.model or '')[:15]}…"


@dataclass(frozen=True, slots=True)
class File:
    path: Path
    size: int


class Search:
    """Over some folders, which are listed once, when the first file is looked for."""

    def __init__(self, folders: Sequence[Path], memo: Memo, report: Reporter) -> None:
        self._folders, self._memo, self._report = folders, memo, report
        self._listed: list[File] | None = None

    def find(self, wanted: Wanted, beside: Iterable[Path] = ()) -> Path | None:
        """The file that is wanted; the first of several that are the same. `beside`: folders to look into as well,
        without those in them.

        Raises:
            RecipeError: a short hash is that of files that differ.
            MissingInput: too much would have to be read to know.
        """
        files = self._candidates(wanted, beside)
        if wanted.sha256 is not None or wanted.short is None:
            return next((file.path for file in self._likeliest_first(files, wanted) if self._is(file, wanted)), None)
        found = [file for file in self._affordable(files, wanted) if self._is(file, wanted)]
        if len(found) > 1 and not self._all_the_same(found):
            shown = "".join(f"\n    {file.path} ({human_bytes(file.size)})" for file in found[:8])
            more = f"\n    and {len(found) - 8:,} more" if len(found) > 8 else ""
            raise RecipeError(
                f"{len(found)} files that differ have the hash {wanted.short}:{shown}{more}",
                hint="`mergeflow hash FILE` prints the sha256, which tells them apart: write it in the recipe",
            )
        return found[0].path if found else None

    def has(self, path: Path, short: str) -> bool:
        """Whether a file has a short hash."""
        return self._short(path, len(short)) == short

    def of_this_size(self, wanted: Wanted, beside: Iterable[Path] = ()) -> list[Path]:
        """Files that are as long as the wanted one, to be named where none of them is it."""
        return [file.path for file in self._candidates(wanted, beside)] if wanted.size is not None else []

    def _candidates(self, wanted: Wanted, beside: Iterable[Path]) -> list[File]:
        if self._listed is None:
            self._listed = list(_files(self._folders))
        near = [file for folder in dict.fromkeys(beside) for file in _in_folder(folder)]
        files = list({_real(file.path): file for file in (*near, *self._listed)}.values())
        return [file for file in files if wanted.size in (None, file.size)]

    def _likeliest_first(self, files: list[File], wanted: Wanted) -> Iterator[File]:
        """Those that are known or said to be it, then those of which nothing is known."""
        said = {file: self._said(file, wanted) for file in files}
        yield from (file for file in files if said[file] == (wanted.sha256 or wanted.model))
        yield from self._affordable([file for file in files if said[file] is None], wanted)

    def _affordable(self, files: list[File], wanted: Wanted) -> list[File]:
        """The same files.

        Raises:
            MissingInput: too many bytes of them have to be hashed.
        """
        if wanted.size is not None or (wanted.short is not None and len(wanted.short) == 8):
            return files
        new = [file for file in files if not self._is_known(file, wanted)]
        total = sum(file.size for file in new)
        if total > MOST_UNASKED:
            raise MissingInput(
                f"no file is known to have the {wanted.shown}, and {len(new):,} files in the model folders "
                f"({human_bytes(total)}) have not been hashed yet",
                hint="size: in the recipe leaves out most of them; `mergeflow hash FILE…` hashes files once for all",
            )
        return files

    def _is_known(self, file: File, wanted: Wanted) -> bool:
        """Whether nothing of it has to be read; so it is with a file that is gone."""
        at = _at(file)
        if at is None:
            return True
        if wanted.sha256 is None and wanted.short is None:
            return self._memo.find(at) is not None
        part: Part = "body" if wanted.short is not None and len(wanted.short) == 12 else "whole"
        return self._memo.find_sha256(at, part) is not None

    def _said(self, file: File, wanted: Wanted) -> str | None:
        """The sha256 that a file had when it was hashed, or that its name in the cache of Hugging Face claims; the
        digest of its model, where that is what is wanted and it is the right one."""
        at = _at(file)
        if wanted.sha256 is None:
            content = self._memo.find(at) if at is not None else None
            return wanted.model if content is not None and printable(content.model) == wanted.model else None
        known = self._memo.find_sha256(at) if at is not None else None
        blob = _real(file.path).name
        return known or (blob if _SHA256.fullmatch(blob) else None)

    def _is(self, file: File, wanted: Wanted) -> bool:
        try:
            if wanted.sha256 is not None:
                return sha256(file.path, self._memo, self._report) == wanted.sha256
            if wanted.short is not None:
                return self._short(file.path, len(wanted.short)) == wanted.short
            found = identify(file.path, self._memo, self._report)
            return found.model == wanted.model or adapt(found, file.path.name).model == wanted.model
        except MergeflowError as error:
            self._report(Warned(f"{error.message}; it is left out of the search"))
            return False

    def _short(self, path: Path, digits: int) -> str:
        if digits == 10:
            return sha256(path, self._memo, self._report)[:10]
        with ReadFile(path) as file:
            if digits == 8:
                return old_hash(file)
            return autov3(file, self._memo, self._report)[:12] if is_safetensors(file) else ""

    def _all_the_same(self, files: list[File]) -> bool:
        if len({file.size for file in files}) > 1:
            return False
        return len({sha256(file.path, self._memo, self._report) for file in files}) == 1


def _files(folders: Sequence[Path]) -> Iterator[File]:
    """The model files in folders and those under them. Links are followed, each folder is seen once."""
    seen: set[str] = set()
    for folder in folders:
        for here, below, _ in os.walk(folder, followlinks=True):
            real = os.path.realpath(here)
            if real in seen:
                below.clear()
                continue
            seen.add(real)
            below[:] = sorted(name for name in below if not name.startswith("."))
            yield from _in_folder(Path(here))


def _in_folder(folder: Path) -> Iterator[File]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return  # a folder that is not there, or not ours to look into, holds nothing that can be used
    for entry in entries:
        name = entry.name
        if name.startswith(".") or os.path.splitext(name)[1].lower() not in SUFFIXES:  # noqa: PTH122
            continue
        try:
            if entry.is_file():
                yield File(Path(entry.path), entry.stat().st_size)
        except OSError:
            continue  # a link that leads nowhere, or a file that was removed meanwhile


def _at(file: File) -> Fingerprint | None:
    try:
        return fingerprint(file.path.stat())
    except OSError:
        return None


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))
