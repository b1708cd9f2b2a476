"""A recipe, ready to be planned and built: what the command line and the Python API both use."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Self

from mergeflow.arch import find as find_architecture
from mergeflow.build.kept import clear_interrupted, find_kept, note_keys, tally
from mergeflow.build.locking import check_lock, make_lock
from mergeflow.build.machine import budget
from mergeflow.build.published import (
    check_apart,
    configs,
    files_there,
    leave_side_files,
    made_now,
    remember,
    remove_side_files,
    retire,
    strange_side_file,
)
from mergeflow.build.quick import Asked, leave_stamp
from mergeflow.build.settings import BuildResult, BuiltOutput, Settings, StoredResult, cache_folder
from mergeflow.build.sources import Sources
from mergeflow.build.state import is_ours, look
from mergeflow.build.storing import Shelf
from mergeflow.build.targets import choose, targets
from mergeflow.digest import printable
from mergeflow.errors import (
    MergeflowError,
    Place,
    RecipeError,
    ResourceError,
)
from mergeflow.events import OutputDone, Reporter, Warned, silent
from mergeflow.formats.files import write_text_file
from mergeflow.plan.bind import bind
from mergeflow.plan.bound import Bound
from mergeflow.plan.facts import SourceFacts
from mergeflow.plan.outlook import Machine
from mergeflow.plan.planner import make_plan, needed_sources
from mergeflow.plan.plans import OutputPlan, Plan, Request
from mergeflow.provenance import lock as locks
from mergeflow.provenance.sidecar import sidecar_path, write_sidecar
from mergeflow.recipe import Recipe
from mergeflow.recipe.tokens import clip
from mergeflow.sources.memo import Memo, default_folder
from mergeflow.store.records import LocalRecords, Records

if TYPE_CHECKING:
    from mergeflow.executor.outputs import Written


class Project:
    """One recipe with the settings of one run. Close it, or use it in a with statement."""

    def __init__(self, recipe: Recipe, settings: Settings | None = None, report: Reporter = silent) -> None:
        self.recipe, self.settings, self.report = recipe, settings or Settings(), report
        self.bound: Bound = bind(recipe)
        memo = self.settings.memo or default_folder()
        self.memo = Memo(memo, self._warn)
        self.records: Records = LocalRecords(cache_folder(self.settings), self._warn)
        self.shelf = Shelf(self.settings, memo, self._warn)
        self.sources = Sources(self.bound, self.settings, self.memo, report)
        self._configs: dict[Path, bytes] = {}

    def _warn(self, message: str) -> None:
        self.report(Warned(message))

    def close(self) -> None:
        self.memo.close()
        self.records.close()
        self.shelf.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- planning ------------------------------------------------------------------------------------------------

    def plan(self, outputs: Sequence[str] = ()) -> Plan:
        """What a build of these outputs (all when none is named) would do. Hashes sources that are new to this
        machine; opens no tensor otherwise."""
        plan = self._plan(outputs)
        if self.settings.locked:
            check_lock(plan, self._lock(), self.lock_file().name)
        return plan

    def _plan(self, outputs: Sequence[str]) -> Plan:
        with collector_paused():
            return self._planned(outputs)

    def _planned(self, outputs: Sequence[str]) -> Plan:
        chosen = choose(self.bound, outputs)
        wanted = needed_sources(self.bound, chosen)
        files = targets(self.bound, chosen, self.settings.output_root, self.sources.paths())
        self._check_architecture()
        if self.sources.locate(wanted):  # and no output may be written over what was found
            files = targets(self.bound, chosen, self.settings.output_root, self.sources.paths())
        facts = {i: self.sources.facts(i) for i in wanted}
        settings = self.settings
        machine = budget(settings.memory, settings.vram)
        request = Request(
            files,
            lambda output: look(output, self.records, self.memo, self.report, machine.cores),
            machine,
            settings.jobs,
            settings.device,
            settings.force,
            self.sources.originals(),
            lambda keys: find_kept(keys, self.records, self.memo, sorted({path.parent for path in files.values()})),
            self.shelf.storing(),
            cache(lambda: self._machine(facts)),
        )
        return make_plan(self.bound, facts, request)

    def _machine(self, facts: Mapping[int, SourceFacts]) -> Machine:
        from mergeflow.build import speeds  # only where something is to be built

        files = [path for fact in facts.values() for path in fact.files]
        return speeds.machine(self.settings.memo or default_folder(), self.settings.device, files)

    def facts(self, source: int) -> SourceFacts:
        """What is known of one source, its claims checked."""
        return self.sources.facts(source)

    def _check_architecture(self) -> None:
        """That the architecture of all sources exists: asked once, as its name is no source's mistake."""
        name = self.recipe.arch
        try:
            if name is not None:
                find_architecture(name)
        except MergeflowError as error:
            error.place = error.place or Place(str(self.recipe.path or ""), text=f"arch: {clip(str(name))}")
            raise

    def architectures_named(self) -> list[str]:
        """What the recipe calls architectures: names, and paths of files."""
        named = [self.recipe.arch, *(ref.declared.arch for ref in self.bound.sources)]
        return [name for name in dict.fromkeys(named) if name is not None]

    # -- building ------------------------------------------------------------------------------------------------

    def build(self, outputs: Sequence[str] = (), *, asked: Asked | None = None) -> BuildResult:
        """Make what is out of date. With `asked`, a stamp is left that lets the same build be recognised as done.

        Raises:
            MergeflowError: of the first output that fails; with `keep_going` the others are tried first and the errors
                are in the result.
        """
        self.shelf.begin_build()
        plan = self.plan(outputs)
        for note in self.sources.notes(plan.facts):
            self._warn(note)
        check_apart(plan)
        self._configs = configs(plan)
        strangers = {} if self.settings.force else self._strangers(plan)
        if strangers and not self.settings.keep_going:
            raise next(iter(strangers.values()))
        self.shelf.note_use(plan)
        stored = tuple(self._make_objects(plan))
        result = BuildResult(tuple(self._run(plan, strangers)), stored)
        self.shelf.end_build(plan)
        if not result.failed:
            clear_interrupted(plan)
        if asked is not None and not result.failed:
            leave_stamp(asked, self, plan, self.records)
        return result

    def _strangers(self, plan: Plan) -> dict[str, MergeflowError]:
        """Outputs in whose place lies a file that some other program or hand has written: looked for before anything
        is made."""
        found: dict[str, MergeflowError] = {}
        for output in plan.outputs:
            there = [path for path in output.files if output.build and path.exists()]
            strange = next((p for p in there if not is_ours(p, self.records, self.memo, self.report)), None)
            strange = strange or strange_side_file(output, self.bound, self._configs, self.records)
            if strange is not None:
                name = output.path if strange == output.target else f"{strange.name}, which is part of {output.path},"
                found[output.path] = RecipeError(
                    f"{name} exists and is not what mergeflow built there: it is not overwritten",
                    place=self.bound.outputs[output.path][1].place,
                    hint="--force overwrites it; another output path keeps it",
                )
        return found

    def _make_objects(self, plan: Plan) -> Iterator[StoredResult]:
        """What the outputs begin from and is to be kept for other builds."""
        from mergeflow.executor.devices import find
        from mergeflow.executor.objects import write_object

        expected = {i: found.at for i, found in self.sources.known().items()}
        for planned in plan.objects:
            assert planned.placement is not None
            device = find(planned.placement.device)
            bytes_read = write_object(plan, planned, device, self.report, expected, self.shelf.store)
            yield StoredResult(planned.title, planned.layout.file_size, bytes_read)

    def _run(self, plan: Plan, refused: Mapping[str, MergeflowError]) -> Iterator[BuiltOutput]:
        """What came of each output, in the order of the recipe; those of one pass are made when the first is due."""
        lock = self._lock() if self.settings.locked else None
        passes = {output.path: members for members in plan.passes() for output in members}
        done: dict[str, BuiltOutput] = {}
        for output in plan.outputs:
            for warning in output.warnings:
                self._warn(warning)
        for output in plan.outputs:
            if output.path in refused:
                yield _failed(output, refused[output.path])
                continue
            if not output.build:
                error = self._leave_side_files(plan, output)
                self.report(OutputDone(output.path, False, output.reason, output.layout.file_size))
                yield BuiltOutput(
                    output.path, output.target, False, output.reason, output.layout.file_size, 0, "", error
                )
                continue
            if output.path not in done:
                members = [member for member in passes[output.path] if member.path not in refused]
                done |= {built.path: built for built in self._make(plan, members, lock)}
            yield done[output.path]

    def _make(self, plan: Plan, members: Sequence[OutputPlan], lock: locks.Lock | None) -> list[BuiltOutput]:
        """The outputs of one pass. Without `keep_going` the first error is raised, once the others are published."""
        from mergeflow.executor.devices import find
        from mergeflow.executor.outputs import write_outputs

        placement = members[0].placement
        assert placement is not None
        expected = {i: found.at for i, found in self.sources.known().items()}

        def check(output: OutputPlan, digest: str) -> None:
            if lock is not None:
                locks.check_result(lock, output.path, digest)

        began = time.monotonic()
        try:
            finished = write_outputs(
                plan, members, find(placement.device), self.report, expected, self.shelf.store, check
            )
        except MergeflowError as error:
            if not self.settings.keep_going:
                raise
            return [_failed(output, error) for output in members]
        results = []
        took = time.monotonic() - began  # of the pass, like the bytes, which are told once
        bytes_read = finished.bytes_read
        for output, result in zip(members, finished.results, strict=True):
            if isinstance(result, MergeflowError):
                results.append(_failed(output, result))
                continue
            results.append(self._register(plan, output, result, bytes_read, took))
            bytes_read = 0
        first = next((built.error for built in results if built.error is not None), None)
        if first is not None and not self.settings.keep_going:
            raise first
        return results

    def _register(self, plan: Plan, output: OutputPlan, written: Written, bytes_read: int, took: float) -> BuiltOutput:
        """Remember a published output, by record and memo."""
        digest = printable(written.content.model)
        counts = tally(plan, output)
        remember(output, written, self.records, self.memo, made_now(counts, took))
        note_keys(output, written.at, self.records)
        for line in retire(output, self.records):
            self._warn(line)
        declared = self.bound.outputs[output.path][1]
        if declared.embed == "sidecar" and self.recipe.text:
            self._leave_recipe(output.target)
        error = self._leave_side_files(plan, output)
        self.report(OutputDone(output.path, True, output.reason, output.layout.file_size))
        size = output.layout.file_size
        return BuiltOutput(output.path, output.target, True, output.reason, size, bytes_read, digest, error, counts)

    def _leave_side_files(self, plan: Plan, output: OutputPlan) -> MergeflowError | None:
        """What `sidecars:` asks for beside the output. The output is complete without it, but it was asked for."""
        try:
            leave_side_files(output, plan, self._configs, self.records, self.memo, self.report)
        except MergeflowError as error:
            if not self.settings.keep_going:
                raise
            return error
        return None

    def _leave_recipe(self, target: Path) -> None:
        """The recipe beside the output. The output is complete without it, so that it fails is only worth a warning."""
        try:
            if not write_sidecar(self.recipe, target):
                self._warn(f"{sidecar_path(target).name} was not written by mergeflow and is left as it is")
        except ResourceError as error:
            self._warn(f"the recipe was not written beside the output: {error.message}")

    # -- the lock ------------------------------------------------------------------------------------------------

    def lock_file(self) -> Path:
        if self.recipe.path is None:
            raise RecipeError("only a recipe that is a file has a lock")
        return locks.lock_path(self.recipe.path)

    def _lock(self) -> locks.Lock:
        return locks.read(self.lock_file())

    def make_lock(self) -> locks.Lock:
        """The lock as it should be now; its outputs' digests where they are built and up to date."""
        return make_lock(self._plan(()), self.sources, self.records, self.memo, self.report)

    # -- cleaning ------------------------------------------------------------------------------------------------

    def clean(self, outputs: Sequence[str] = (), *, dry_run: bool = False) -> Iterator[tuple[Path, bool]]:
        """Remove built outputs and their sidecars; (path, removed) for each that is there. Files that are not what
        we built stay, unless forced."""
        chosen = choose(self.bound, outputs)
        files = targets(self.bound, chosen, self.settings.output_root, self.sources.paths())
        for target in files.values():
            there = files_there(target)
            for path in there:
                ours = self.settings.force or is_ours(path, self.records, self.memo, self.report)
                if ours and not dry_run:
                    path.unlink()
                    self.records.forget(path)
                yield path, ours
            if there and not dry_run:
                remove_side_files(target, self.records)


def _failed(output: OutputPlan, error: MergeflowError) -> BuiltOutput:
    return BuiltOutput(output.path, output.target, False, output.reason, 0, 0, "", error)


@contextmanager
def collector_paused() -> Iterator[None]:
    """Planning makes a million small values and no cycles: looking for those is a third of its time."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def save_recipe(recipe: Recipe, path: Path) -> None:
    if path.exists():
        raise RecipeError(f"{path} exists already", hint="choose another name for --save-recipe")
    write_text_file(path, recipe.text)
