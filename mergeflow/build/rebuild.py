"""Building a file again from what it says of its making, to see whether the same comes out.

The recipe is the one that is given, the one inside the file, or the one beside it; its sources are found by what the
file says they are (`ingredients`). First the plan is compared with what the file says, then what the build makes with
the tensors that the file holds.
"""

from __future__ import annotations

import filecmp
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mergeflow.build.compare import Compared, compare, farthest
from mergeflow.build.ingredients import Ingredients
from mergeflow.build.project import Project
from mergeflow.build.settings import Settings
from mergeflow.build.targets import file_of
from mergeflow.digest import shortened
from mergeflow.errors import MergeflowError, NotReproducible, RecipeError
from mergeflow.events import Event, PhaseEnded, PhaseStarted, Progressed, Reporter
from mergeflow.exchange import graph
from mergeflow.formats.layout import MODEL_DIGEST, TENSOR_HASH
from mergeflow.formats.sharded import index_of_shard
from mergeflow.plan.embed import GRAPH, RECIPE
from mergeflow.plan.plans import OutputPlan, Plan
from mergeflow.provenance.beside import plain_name
from mergeflow.provenance.claims import claims_of
from mergeflow.provenance.making import Making, read_making
from mergeflow.provenance.sidecar import is_ours, sidecar_path
from mergeflow.recipe import Recipe, Source, load, loads
from mergeflow.recipe.overrides import override
from mergeflow.recipe.shared import without_overrides
from mergeflow.sources.identify import Identified, identify
from mergeflow.sources.memo import Memo

CLOSE = 1e-3  # of a tensor's size: how far methods that are not exact may be off elsewhere
_LATE = (MODEL_DIGEST, TENSOR_HASH)  # of the tensors themselves


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What came of it: nothing differs (`differing` is empty), or these tensors do, the most different first.
    `identical`: byte for byte, header and all. `off`: how far tensors of methods that are not exact are off, relative
    to their size, where that is within `CLOSE`. `sources`: the file that each name of the recipe stood for."""

    differing: tuple[Compared, ...]
    tensors: int
    identical: bool
    sources: Mapping[str, Path]
    off: float = 0.0


class Rebuilder:
    """Builds files again. `given` are files by the recipe's names of sources; `scratch` is where results go, the folder
    of each file when it is None."""

    def __init__(
        self, settings: Settings, memo: Memo, report: Reporter, *, folders: Sequence[Path] = (),
        given: Mapping[str, Path] | None = None, scratch: Path | None = None, workers: int = 1,
    ) -> None:  # fmt: skip
        self._settings, self._memo, self._report, self._workers = settings, memo, report, workers
        self._ingredients = Ingredients(memo, report, folders=folders, given=given or {}, workers=workers)
        self._scratch = scratch

    def rebuild(self, found: Identified, recipe_file: Path | None = None, wanted: str | None = None) -> Rebuilt:
        """`wanted`: the output of the recipe that the file is, where its name does not tell.

        Raises:
            RecipeError: it cannot be tried: the file does not say how it was made, its recipe cannot be found, or it is
                a shard.
            MissingInput: a source is not to be found.
            NotReproducible: another version of the arithmetic made it, or its recipe makes something else.
        """
        if (index := index_of_shard(found.path)) is not None:
            raise RecipeError(
                "it is one of the files of a model, which are built together",
                hint=f"verify {index.name}, which lists them",
            )
        claims = claims_of(found.path, found.metadata)
        making = read_making(claims)
        if making is None and recipe_file is None:
            raise RecipeError("it does not say how it was made", hint="--recipe FILE names the recipe")
        recipe = _without_side_files(_recipe_of(found.path, claims, recipe_file))
        with tempfile.TemporaryDirectory(prefix=".mergeflow-", dir=self._scratch or found.path.parent) as folder:
            return self._in(Path(folder), recipe, found, claims, making, wanted)

    def _in(
        self, folder: Path, recipe: Recipe, found: Identified, claims: Mapping[str, str], making: Making | None,
        wanted: str | None,
    ) -> Rebuilt:  # fmt: skip
        settings = replace(self._settings, output_root=folder, cache=folder / "cache", locked=False, force=True)
        problem: MergeflowError | None = None
        for sources in self._ingredients.choices(recipe, found.path, making):
            with Project(_with(recipe, sources), settings, _subdued(self._report)) as project:
                plan, output = self._planned(project, found.path, wanted, claims)
                try:
                    _check_claims(plan, output, claims, making)
                except NotReproducible as error:
                    problem = problem or error
                    continue
                if (built := project.build([output.path]).outputs[0]).error is not None:
                    raise built.error
                return self._compared(found, output, sources, close=bool(making and making.environments))
        assert problem is not None
        raise problem

    def _planned(
        self, project: Project, file: Path, wanted: str | None, claims: Mapping[str, str]
    ) -> tuple[Plan, OutputPlan]:
        """The output that a file is: the one that is named, the one of its name, the only one, the one whose graph it
        carries."""
        bound = project.bound
        names = [path for path in bound.outputs if file_of(bound, path, Path()).name == file.name]
        chosen = [wanted] if wanted is not None else names if len(names) == 1 else list(bound.outputs)
        plan = project.plan(chosen)
        outputs = plan.outputs
        alike = [o for o in outputs if o.layout.metadata.get(GRAPH) == claims.get(GRAPH, "")]
        if len(outputs) > 1 and not alike:
            raise NotReproducible(
                f"none of the {len(outputs)} outputs of its recipe is called {file.name} or made as it says it was",
                hint="--recipe FILE names another recipe",
            )
        return plan, alike[0] if alike else outputs[0]

    def _compared(self, found: Identified, output: OutputPlan, sources: Mapping[str, Path], *, close: bool) -> Rebuilt:
        again = identify(output.target, self._memo, self._report, workers=self._workers)
        if again.model == found.model:
            pairs = list(zip(found.files, again.files, strict=False))
            same = len(found.files) == len(again.files) and all(filecmp.cmp(a, b, shallow=False) for a, b in pairs)
            return Rebuilt((), len(found.tensors), same, sources)
        result = compare(again, found, report=self._report, workers=self._workers)
        differing = farthest(result.tensors)
        far = [t for t in differing if not close or t.sums.relative is None or t.sums.relative > CLOSE]
        off = max((t.sums.relative or 0.0 for t in differing if t not in far), default=0.0)
        return Rebuilt(tuple(far), len(result.tensors), False, sources, off)


def _recipe_of(file: Path, claims: Mapping[str, str], given: Path | None) -> Recipe:
    """The recipe that is given, the one inside the file, or the one beside it, with what the command line changed when
    the file was made; else the one that the file's graph comes to, which knows its sources by their digests."""
    if given is not None:
        return load(given)
    if RECIPE in claims:
        text, name = claims[RECIPE], f"the recipe inside {file.name}"
    else:
        beside = sidecar_path(file)
        if is_ours(beside):
            text, name = beside.read_text(encoding="utf-8").partition("\n")[2], beside.name
        else:
            text, name = graph.read(claims, plain_name(file)).text, f"the graph of {file.name}"
    text, changes = without_overrides(text)
    recipe = loads(text, name, file.parent)
    sources = {name: value for name, value in changes.items() if name in recipe.sources}
    params = {name: value for name, value in changes.items() if name not in recipe.sources}
    return override(recipe, params, sources)


def _without_side_files(recipe: Recipe) -> Recipe:
    """What lies beside an output is not asked for: its config may be elsewhere by now."""
    outputs = {path: output.model_copy(update={"sidecars": ()}) for path, output in recipe.outputs.items()}
    return recipe.model_copy(update={"outputs": outputs})


def _with(recipe: Recipe, files: Mapping[str, Path]) -> Recipe:
    """The recipe with these files. What it claims of files (sha256) is left out: the digests of tensors are stronger,
    and the same in another container."""
    sources = dict(recipe.sources)
    for name, path in files.items():
        old = sources[name]
        sources[name] = Source(path=str(path), kind=old.kind, ema=old.ema, arch=old.arch, place=old.place)
    return recipe.model_copy(update={"sources": sources})


def _check_claims(plan: Plan, output: OutputPlan, claims: Mapping[str, str], making: Making | None) -> None:
    """That the plan would write what the file says.

    Raises:
        NotReproducible: it would not; with what is different.
    """
    planned = output.layout.metadata
    names = {facts.model: facts.name for facts in plan.facts.values()}

    def name(digest: str) -> str:
        return names.get(digest) or shortened(digest)

    if making is not None and planned[GRAPH] != claims[GRAPH]:
        would = read_making(planned)
        assert would is not None
        if would.numerics != making.numerics:
            raise NotReproducible(
                f"numerics version {making.numerics} made it, this mergeflow has {would.numerics}",
                hint="the mergeflow that made it would make it again",
            )
        if would.essence() != making.essence():
            raise NotReproducible(f"its recipe makes something else than it says: {would.differs(making, name)}")
    for key in sorted({*planned, *claims} - {*_LATE, GRAPH}):
        if key not in claims:
            raise NotReproducible(f"its recipe would have it say {key}, and it does not")
        if key not in planned:
            raise NotReproducible(f"it says {key}, which its recipe does not")
        if planned[key] != claims[key]:
            raise NotReproducible(f"its recipe would have it say another {key}")


def _subdued(report: Reporter) -> Reporter:
    """What moves is shown; that a file is built is not said, as it is gone in a moment."""

    def tell(event: Event) -> None:
        if isinstance(event, PhaseStarted | PhaseEnded | Progressed):
            report(event)

    return tell


def damage_of(rebuilt: Rebuilt) -> str:
    """Which tensors differ and by how much, in a line."""
    shown = [f"{t.name} ({_amount(t)})" for t in rebuilt.differing[:3]]
    more = f" and {len(rebuilt.differing) - 3:,} more" if len(rebuilt.differing) > 3 else ""
    return f"{len(rebuilt.differing):,} of {rebuilt.tensors:,} tensors differ: {', '.join(shown)}{more}"


def _amount(tensor: Compared) -> str:
    relative = tensor.sums.relative
    if relative is None:
        return tensor.why or tensor.state
    return f"by {relative:.2g} of its size" if relative else "in values that are equal as numbers"
