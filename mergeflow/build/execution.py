"""A plan carried out: outputs made, published and remembered, and what came of each of them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mergeflow.build.kept import note_keys, tally
from mergeflow.build.published import (
    configs,
    leave_side_files,
    made_now,
    remember,
    retire,
    strange_side_file,
)
from mergeflow.build.settings import BuiltOutput, Settings, StoredResult
from mergeflow.build.state import is_ours
from mergeflow.digest import printable
from mergeflow.errors import MergeflowError, RecipeError, ResourceError
from mergeflow.events import OutputDone, Reporter, Warned
from mergeflow.plan.plans import OutputPlan, Plan
from mergeflow.provenance import lock as locks
from mergeflow.provenance.sidecar import sidecar_path, write_sidecar
from mergeflow.sources.identify import Identified
from mergeflow.sources.memo import Memo
from mergeflow.store.objects import Store
from mergeflow.store.records import Records

if TYPE_CHECKING:
    from mergeflow.executor.outputs import Written


class Execution:
    """Of one plan. `known` are the sources as they were identified: reading them checks that they still are. With a
    `lock`, outputs must be what it says.

    Raises:
        MergeflowError: what is to be written beside the outputs cannot be had.
    """

    def __init__(
        self, plan: Plan, settings: Settings, records: Records, memo: Memo, store: Store,
        known: Mapping[int, Identified], lock: locks.Lock | None, report: Reporter,
    ) -> None:  # fmt: skip
        self._plan, self._settings, self._records, self._memo = plan, settings, records, memo
        self._store, self._lock, self._report = store, lock, report
        self._expected = {i: found.at for i, found in known.items()}
        self._configs = configs(plan)

    def strangers(self) -> dict[str, MergeflowError]:
        """Outputs in whose place lies a file that some other program or hand has written: looked for before anything
        is made."""
        found: dict[str, MergeflowError] = {}
        for output in self._plan.outputs:
            there = [path for path in output.files if output.build and path.exists()]
            strange = next((p for p in there if not is_ours(p, self._records, self._memo, self._report)), None)
            strange = strange or strange_side_file(output, self._plan.bound, self._configs, self._records)
            if strange is not None:
                name = output.path if strange == output.target else f"{strange.name}, which is part of {output.path},"
                found[output.path] = RecipeError(
                    f"{name} exists and is not what mergeflow built there: it is not overwritten",
                    place=self._plan.bound.outputs[output.path][1].place,
                    hint="--force overwrites it; another output path keeps it",
                )
        return found

    def objects(self) -> Iterator[StoredResult]:
        """What the outputs begin from and is to be kept for other builds."""
        from mergeflow.executor.devices import find
        from mergeflow.executor.objects import write_object

        for planned in self._plan.objects:
            assert planned.placement is not None
            device = find(planned.placement.device)
            bytes_read = write_object(self._plan, planned, device, self._report, self._expected, self._store)
            yield StoredResult(planned.title, planned.layout.file_size, bytes_read)

    def outputs(self, refused: Mapping[str, MergeflowError]) -> Iterator[BuiltOutput]:
        """What came of each output, in the order of the recipe; those of one pass are made when the first is due. Those
        `refused` are not made."""
        passes = {output.path: members for members in self._plan.passes() for output in members}
        done: dict[str, BuiltOutput] = {}
        for output in self._plan.outputs:
            for warning in output.warnings:
                self._report(Warned(warning))
        for output in self._plan.outputs:
            if output.path in refused:
                yield _failed(output, refused[output.path])
                continue
            if not output.build:
                error = self._leave_side_files(output)
                self._report(OutputDone(output.path, False, output.reason, output.layout.file_size))
                yield BuiltOutput(
                    output.path, output.target, False, output.reason, output.layout.file_size, 0, "", error
                )
                continue
            if output.path not in done:
                members = [member for member in passes[output.path] if member.path not in refused]
                done |= {built.path: built for built in self._make(members)}
            yield done[output.path]

    def _make(self, members: Sequence[OutputPlan]) -> list[BuiltOutput]:
        """The outputs of one pass. Without `keep_going` the first error is raised, once the others are published."""
        from mergeflow.executor.devices import find
        from mergeflow.executor.outputs import write_outputs

        placement = members[0].placement
        assert placement is not None

        def check(output: OutputPlan, digest: str) -> None:
            if self._lock is not None:
                locks.check_result(self._lock, output.path, digest)

        began = time.monotonic()
        try:
            finished = write_outputs(
                self._plan, members, find(placement.device), self._report, self._expected, self._store, check,
                partial=self._settings.keep_going,
            )  # fmt: skip
        except MergeflowError as error:
            if not self._settings.keep_going:
                raise
            return [_failed(output, error) for output in members]
        results = []
        took = time.monotonic() - began  # of the pass, like the bytes, which are told once
        bytes_read = finished.bytes_read
        for output, result in zip(members, finished.results, strict=True):
            if isinstance(result, MergeflowError):
                results.append(_failed(output, result))
                continue
            results.append(self._register(output, result, bytes_read, took))
            bytes_read = 0
        first = next((built.error for built in results if built.error is not None), None)
        if first is not None and not self._settings.keep_going:
            raise first
        return results

    def _register(self, output: OutputPlan, written: Written, bytes_read: int, took: float) -> BuiltOutput:
        """Remember a published output, by record and memo."""
        digest = printable(written.content.model)
        counts = tally(self._plan, output)
        remember(output, written, self._records, self._memo, made_now(counts, took))
        note_keys(output, written.at, self._records)
        for line in retire(output, self._records):
            self._report(Warned(line))
        declared = self._plan.bound.outputs[output.path][1]
        if declared.embed == "sidecar" and self._plan.bound.recipe.text:
            self._leave_recipe(output.target)
        error = self._leave_side_files(output)
        self._report(OutputDone(output.path, True, output.reason, output.layout.file_size))
        size = output.layout.file_size
        return BuiltOutput(output.path, output.target, True, output.reason, size, bytes_read, digest, error, counts)

    def _leave_side_files(self, output: OutputPlan) -> MergeflowError | None:
        """What `sidecars:` asks for beside the output. The output is complete without it, but it was asked for."""
        try:
            leave_side_files(output, self._plan, self._configs, self._records, self._memo, self._report)
        except MergeflowError as error:
            if not self._settings.keep_going:
                raise
            return error
        return None

    def _leave_recipe(self, target: Path) -> None:
        """The recipe beside the output. The output is complete without it, so that it fails is only worth a warning."""
        try:
            if not write_sidecar(self._plan.bound.recipe, target):
                self._report(Warned(f"{sidecar_path(target).name} was not written by mergeflow and is left as it is"))
        except ResourceError as error:
            self._report(Warned(f"the recipe was not written beside the output: {error.message}"))


def _failed(output: OutputPlan, error: MergeflowError) -> BuiltOutput:
    return BuiltOutput(output.path, output.target, False, output.reason, 0, 0, "", error)
