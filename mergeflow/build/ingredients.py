"""The files that the sources of a recipe are by now, where a file says what it was made of: found by the digests of
their tensors, whatever they are called.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, permutations
from pathlib import Path

from mergeflow.build.ancestors import Shelves, digests_of
from mergeflow.digest import shortened
from mergeflow.errors import MergeflowError, MissingInput, NotReproducible, RecipeError
from mergeflow.events import Reporter
from mergeflow.provenance.making import Making
from mergeflow.recipe import Recipe, Source
from mergeflow.recipe.shared import file_name
from mergeflow.sources.identify import identify
from mergeflow.sources.memo import Memo

MOST_TRIES = 24  # ways to give files to names, where only digests say what is what


class Ingredients:
    """Looks in `folders`, in those of the recipe and of the file, and where this machine keeps models. `given` are
    files by the recipe's names of sources, which are not looked for."""

    def __init__(
        self, memo: Memo, report: Reporter, *, folders: Sequence[Path], given: Mapping[str, Path], workers: int
    ) -> None:
        self._memo, self._report, self._workers = memo, report, workers
        self._folders, self._given = folders, given

    def choices(self, recipe: Recipe, file: Path, making: Making | None) -> Iterator[dict[str, Path]]:
        """Files for the recipe's sources: by name where one of that name has a digest that the file was made of, else
        by digest; where several digests are left for several names, every way to give them, up to a limit.

        Raises:
            RecipeError: a file is given for a source that the recipe does not have.
            MissingInput: one that the file was made of is not to be found.
            NotReproducible: there is a file of its name, which is another one by now.
        """
        sources = {name: source for name, source in recipe.sources.items() if source.called}
        if unknown := next((name for name in self._given if name not in recipe.sources), None):
            raise RecipeError(f"its recipe has no source {unknown}", hint=f"it has {', '.join(recipe.sources)}")
        digests = making.sources if making is not None else ()
        shelves = Shelves(self._folders, [file.parent, Path()], self._memo, self._report, workers=self._workers)
        chosen = {name: path.absolute() for name, path in self._given.items()}
        for name in sources.keys() - chosen.keys():
            if (at := self._known(sources[name], shelves, digests)) is not None:
                chosen[name] = at
        taken = {digest for path in chosen.values() for digest in self._digests(path)}
        left = [digest for digest in digests if digest not in taken]
        open_names = [name for name in sources if name not in chosen]
        by_name = {name: at for name in open_names if (at := self._by_name(sources[name], shelves, ())) is not None}
        if not open_names or not left:  # what cancels out is in no file: its name has to do
            yield {**by_name, **chosen}
            return
        found = [path for digest in left if (path := shelves.find(digest)) is not None]
        if len(found) < min(len(open_names), len(left)):
            raise self._not_found(open_names[0], sources, by_name, left)
        for order in islice(permutations(open_names, min(len(open_names), len(found))), MOST_TRIES):
            yield {**by_name, **chosen, **dict(zip(order, found, strict=False))}

    def _known(self, source: Source, shelves: Shelves, digests: Sequence[str]) -> Path | None:
        """The file of a source, where its recipe tells which of the digests it is: by the digest itself, as recipes
        that were read out of a graph do, or by the file's name."""
        if source.hash is not None and source.hash in digests:
            return shelves.find(source.hash)
        return self._by_name(source, shelves, digests)

    def _by_name(self, source: Source, shelves: Shelves, digests: Sequence[str]) -> Path | None:
        """The file where the recipe has it, else one of that name in the folders; of one of these digests, where there
        are any."""
        there = source.folder / source.called
        others = [there] if there.is_file() else []
        others += [path for path in shelves.named(file_name(source.called)) if path not in others]
        if not digests:
            return others[0].absolute() if others else None
        return next((p.absolute() for p in others if not {*self._digests(p)}.isdisjoint(digests)), None)

    def _digests(self, path: Path) -> tuple[str, ...]:
        return digests_of(identify(path, self._memo, self._report, workers=self._workers))

    def _not_found(
        self, name: str, sources: Mapping[str, Source], by_name: Mapping[str, Path], left: Sequence[str]
    ) -> MergeflowError:
        elsewhere = f"--models FOLDER names a folder to search, --source {name}=PATH the file"
        source = sources[name]
        digest = source.hash if source.hash in left else left[0] if len(left) == 1 else None
        if name in by_name:
            said = (
                f"its source {name} has changed: {by_name[name].name} is {shortened(self._digests(by_name[name])[0])}"
            )
            return NotReproducible(f"{said}, not {shortened(digest)}" if digest else said, hint=elsewhere)
        called = f" ({file_name(source.path)})" if source.path else ""
        said = f"its source {name}{called} is not to be found"
        return MissingInput(f"{said}; it was {shortened(digest)}" if digest else said, hint=elsewhere)
