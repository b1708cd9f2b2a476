"""Where a source's file is: at its path, else among the models of this machine by its hashes, else fetched.

The hashes are those of the recipe and of the lock beside it. A path that is there is always taken, whatever it holds:
whether that is what it must be is asked later.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from mergeflow.build.settings import Settings
from mergeflow.errors import MergeflowError, MissingInput
from mergeflow.events import Noted, Reporter
from mergeflow.plan.bound import Bound, SourceRef
from mergeflow.provenance.lock import Lock, LockedSource, lock_path, read
from mergeflow.recipe import Source
from mergeflow.sources.memo import Memo
from mergeflow.sources.search import Search, Wanted


class Finder:
    """For one recipe. `absent` are paths of the recipe where nothing was, and `lock_file` the lock, if one was asked:
    what was found holds as long as these are as they were."""

    def __init__(self, bound: Bound, settings: Settings, memo: Memo, report: Reporter) -> None:
        self._bound, self._settings, self._memo, self._report = bound, settings, memo, report
        self._search: Search | None = None
        self._lock: Lock | None = None
        self._done: set[int] = set()
        self.absent: list[Path] = []
        self.fetched: set[int] = set()
        self.lock_file: Path | None = None

    def locate(self, source: int) -> bool:
        """Put the path where the file is into the bound recipe; whether it is another than before.

        Raises:
            MissingInput: hashes are known, and no file has them; or there is nothing to look for.
            RecipeError: a short hash is that of several files.
            IntegrityError: what was fetched is not what is wanted, or the lock cannot be read.
        """
        ref = self._bound.sources[source]
        if source in self._done:
            return False
        if ref.declared.path is not None and (ref.declared.given or os.path.lexists(ref.path)):
            return False
        try:
            found = self._elsewhere(source, ref)
        except MergeflowError as error:
            error.place = error.place or ref.declared.place
            raise
        self._done.add(source)
        if found is None:
            return False
        if ref.declared.path is not None:
            self.absent.append(ref.path)
            self._report(Noted(f"{ref.name}: {ref.declared.path} is not there; by its content it is {found}"))
        self._bound.sources[source] = replace(ref, path=found)
        return True

    def _elsewhere(self, source: int, ref: SourceRef) -> Path | None:
        """None where nothing is known of a file but its path."""
        entry = self._locked(ref)
        wanted = _wanted(ref.declared, entry)
        origin = (entry.resolved or entry.url if entry else None) or ref.declared.url
        if not wanted.told and origin is None:
            return None
        found = self._kept(origin, wanted) if origin is not None else None
        if found is not None:
            return found
        near = [] if ref.declared.path is None else [ref.path.parent]
        near.append(ref.declared.folder)
        search = self._searching()
        if wanted.told:
            try:
                found = search.find(wanted, near)
                if wanted.sha256 and wanted.short and not (found and search.has(found, wanted.short)):
                    wanted = _wanted(ref.declared, None)  # what was locked is not what the recipe quotes now
                    found = search.find(wanted, near)
            except MissingInput:  # too much to read in search of it
                if origin is None or not self._settings.fetch:
                    raise
        if found is None and origin is not None and self._settings.fetch:
            from mergeflow.sources.downloads import fetch

            found = fetch(origin, wanted, self._memo, self._report)
            self.fetched.add(source)
        if found is None:
            raise self._missing(ref, wanted, entry, origin, search.of_this_size(wanted, near))
        return found

    def _kept(self, origin: str, wanted: Wanted) -> Path | None:
        """What was fetched from an address before, where it is what is wanted."""
        from mergeflow.sources.downloads import kept, record_of

        record = record_of(origin)
        if record is None or wanted.sha256 not in (None, record.sha256):
            return None
        found = kept(origin, self._memo, self._report)
        right = found is not None and (wanted.short is None or self._searching().has(found, wanted.short))
        return found if right else None

    def _missing(
        self, ref: SourceRef, wanted: Wanted, entry: LockedSource | None, origin: str | None, near: list[Path]
    ) -> MissingInput:
        what = f"{ref.path}: there is no such file" if ref.declared.path is not None else f"{ref.name} is not here"
        if wanted.told:
            locked = entry is not None and wanted.sha256 == entry.sha256 and not ref.declared.sha256
            what += f", and no file in the model folders has the {wanted.shown}{' of the lock' if locked else ''}"
        if near:
            shown = ", ".join(map(str, near[:3])) + (f" and {len(near) - 3:,} more" if len(near) > 3 else "")
            what += f" (as long as it, but not the same: {shown})"
        first = "put the file there, list its folder" if ref.declared.path is not None else "list the file's folder"
        hint = f"{first} in MERGEFLOW_MODELS, or point elsewhere with --source {ref.name}=PATH"
        if origin is not None:
            hint = f"`mergeflow fetch`, or a build without --offline, gets it from {origin}; or {hint}"
        return MissingInput(what, place=ref.declared.place, hint=hint)

    def _locked(self, ref: SourceRef) -> LockedSource | None:
        """What the lock says of a source, unless the recipe asks for something else than when it was locked."""
        recipe, declared = self._bound.recipe, ref.declared
        if recipe.path is None or declared.given:
            return None
        if self._lock is None:
            path = lock_path(recipe.path)
            if not os.path.lexists(path):
                return None
            self._lock, self.lock_file = read(path), path
        entry = self._lock.sources.get(ref.name)
        return entry if entry is not None and _same_request(declared, entry) else None

    def _searching(self) -> Search:
        if self._search is None:
            from mergeflow.sources.places import model_folders

            self._search = Search(model_folders(), self._memo, self._report)
        return self._search


def _same_request(declared: Source, entry: LockedSource) -> bool:
    """Whether the file that was locked can be the one that the recipe names now."""
    if declared.path is not None and entry.file not in (None, file_of(declared.path)):
        return False
    if declared.url is not None and entry.url not in (None, declared.url):
        return False
    digest, short = entry.sha256, declared.hash.lower() if declared.hash else None
    if short is not None and short.startswith("b3:") and short != entry.digest:
        return False
    if short is not None and len(short) in (10, 64) and digest is not None and not digest.startswith(short):
        return False
    return declared.sha256 in (None, digest)


def _wanted(declared: Source, entry: LockedSource | None) -> Wanted:
    digest, short = declared.sha256, declared.hash.lower() if declared.hash else None
    model = short if short is not None and short.startswith("b3:") else None
    if short is not None and len(short) == 64:
        digest, short = digest or short, None
    short = None if model else short
    if entry is not None and entry.sha256:
        return Wanted(entry.sha256, short, entry.size, model)
    return Wanted(digest, short, declared.size, model)


def file_of(path: str) -> str:
    """What a path of a recipe calls the file, without its folders."""
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2]
