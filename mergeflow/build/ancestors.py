"""Finding model files by their content, in folders: the sources that a file was made from, and those of its sources.

Cheap ways first: what a file of mergeflow's says of itself, then what the memo knows of files that it has seen; only
then, and only where that is wanted, are files read whole to be hashed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from mergeflow.arch import VAE
from mergeflow.errors import MergeflowError
from mergeflow.events import Reporter
from mergeflow.formats.contents import Contents, read_contents
from mergeflow.formats.files import fingerprint
from mergeflow.plan.embed import DIGEST
from mergeflow.provenance.claims import claims_of
from mergeflow.sources.adapt import adapt
from mergeflow.sources.identify import Identified, identify
from mergeflow.sources.memo import Memo
from mergeflow.sources.places import model_folders

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".safetensors.index.json")
MOST_FILES = 100_000  # of model files in the folders that are searched


class Shelves:
    """The model files under some folders, by digest. Files that nobody knows yet are read whole where they lie in a
    `searched` folder; in those that are only `looked` into, and in the machine's model folders, they are left out."""

    def __init__(
        self, searched: Sequence[Path], looked: Sequence[Path], memo: Memo, report: Reporter, *, workers: int = 1
    ) -> None:
        self._memo, self._report, self._workers = memo, report, workers
        self._searched = tuple(map(_real, searched))
        self._folders = tuple(dict.fromkeys(map(_real, (*searched, *looked, *model_folders()))))
        self._found: dict[str, Path] = {}
        self._files: list[Path] | None = None
        self._search = self._by_effort()

    def find(self, digest: str) -> Path | None:
        """A file of this model digest: one that claims it, or is known to have it. What only claims it is not checked
        here: whoever reads it does that."""
        while digest not in self._found:
            known = next(self._search, None)
            if known is None:
                return None
            path, digests = known
            for each in digests:
                self._found.setdefault(each, path)
        return self._found[digest]

    def named(self, name: str) -> list[Path]:
        """The files with this name."""
        return [path for path in self.files() if path.name == name]

    def files(self) -> list[Path]:
        if self._files is None:
            self._files = list(dict.fromkeys(path for folder in self._folders for path in _models(folder)))[:MOST_FILES]
        return self._files

    def _by_effort(self) -> Iterator[tuple[Path, tuple[str, ...]]]:
        rest: list[tuple[Path, Contents]] = []
        for path in self.files():
            try:
                contents = read_contents(path)
            except MergeflowError:  # not everything that ends in .bin is a model
                continue
            if claimed := claims_of(path, contents.metadata).get(DIGEST):
                yield path, (claimed,)
            rest.append((path, contents))
        unknown = []
        for path, contents in rest:
            if self._is_known(contents):
                yield path, self._identified(path)
            else:
                unknown.append(path)
        for path in unknown:
            if any(path.is_relative_to(folder) for folder in self._searched):
                yield path, self._identified(path)

    def _is_known(self, contents: Contents) -> bool:
        try:
            return all(self._memo.find(fingerprint(file.stat())) is not None for file in contents.files)
        except OSError:
            return False

    def _identified(self, path: Path) -> tuple[str, ...]:
        try:
            return digests_of(identify(path, self._memo, self._report, workers=self._workers))
        except MergeflowError:  # it changes, or is damaged: not the file that is looked for
            return ()


def digests_of(found: Identified) -> tuple[str, ...]:
    """The digests under which a recipe may take a file: as it is, under its architecture's names, its VAE alone."""
    digests = [found.model]
    for kind in (None, VAE):
        try:
            digests.append(adapt(found, found.path.name, kind=kind).model)
        except MergeflowError:
            continue
    return tuple(dict.fromkeys(digests))


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _models(folder: Path) -> Iterator[Path]:
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield Path(where, name)
