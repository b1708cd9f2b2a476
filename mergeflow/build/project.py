"""A recipe, ready to be planned and built: what the command line and the Python API both use."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Self

from mergeflow.arch import find as find_architecture
from mergeflow.build.execution import Execution
from mergeflow.build.kept import clear_interrupted, find_kept
from mergeflow.build.locking import check_lock, make_lock
from mergeflow.build.machine import budget
from mergeflow.build.published import (
    check_apart,
    files_there,
    remove_side_files,
)
from mergeflow.build.quick import Asked, leave_stamp
from mergeflow.build.settings import BuildResult, Settings, cache_folder
from mergeflow.build.sources import Sources
from mergeflow.build.state import is_ours, look
from mergeflow.build.storing import Shelf
from mergeflow.build.targets import choose, targets
from mergeflow.errors import (
    MergeflowError,
    Place,
    RecipeError,
)
from mergeflow.events import Planning, Reporter, Warned, silent
from mergeflow.plan.bind import bind
from mergeflow.plan.bound import Bound
from mergeflow.plan.facts import SourceFacts
from mergeflow.plan.outlook import Machine
from mergeflow.plan.planner import make_plan, needed_sources
from mergeflow.plan.plans import Plan, Request
from mergeflow.provenance import lock as locks
from mergeflow.recipe import Recipe
from mergeflow.recipe.tokens import clip
from mergeflow.sources.memo import Memo, default_folder
from mergeflow.store.records import LocalRecords, Records


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
            lambda done, total: self.report(Planning(done, total)),
        )
        return make_plan(self.bound, facts, request)

    def _machine(self, facts: Mapping[int, SourceFacts]) -> Machine:
        from mergeflow.build import speeds  # only where something is to be built

        files = [path for fact in facts.values() for path in fact.files]
        return speeds.machine(
            self.settings.memo or default_folder(), self.settings.device, files, self.settings.output_root
        )

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
        lock = self._lock() if self.settings.locked else None
        execution = Execution(
            plan, self.settings, self.records, self.memo, self.shelf.store, self.sources.known(), lock, self.report
        )
        strangers = {} if self.settings.force else execution.strangers()
        if strangers and not self.settings.keep_going:
            raise next(iter(strangers.values()))
        self.shelf.note_use(plan)
        stored = tuple(execution.objects())
        result = BuildResult(tuple(execution.outputs(strangers)), stored)
        self.shelf.end_build(plan)
        if not result.failed:
            clear_interrupted(plan)
        if asked is not None and not result.failed:
            leave_stamp(asked, self, plan, self.records)
        return result

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
