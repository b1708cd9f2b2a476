"""The sources of a recipe: where their files are, what they are, and all that planning has to know of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from mergeflow.build.finding import Finder
from mergeflow.build.machine import budget
from mergeflow.build.settings import Settings
from mergeflow.errors import IntegrityError, MergeflowError, MissingInput
from mergeflow.events import Reporter
from mergeflow.formats.files import ReadFile
from mergeflow.plan.bound import Bound, SourceRef
from mergeflow.plan.embed import DIGEST, KIND
from mergeflow.plan.facts import SourceFacts
from mergeflow.plan.originals import Originals
from mergeflow.provenance.claims import claims_of
from mergeflow.sources.adapt import adapt, check_is_model
from mergeflow.sources.hashes import check_claims, check_model, old_hash, sha256
from mergeflow.sources.identify import Identified, identify
from mergeflow.sources.memo import Memo


class Sources:
    """Of one recipe. What is asked of a source is remembered; its file is looked for when it is first asked for."""

    def __init__(self, bound: Bound, settings: Settings, memo: Memo, report: Reporter) -> None:
        self._bound, self._memo, self._report = bound, memo, report
        self.finder = Finder(bound, settings, memo, report)
        self._identified: dict[int, Identified] = {}
        self._notes: dict[int, tuple[str, ...]] = {}

    def locate(self, sources: Iterable[int]) -> bool:
        """Find their files; whether any was elsewhere than the recipe says."""
        moved = [self.finder.locate(source) for source in sources]
        return any(moved)

    def path_of(self, source: int) -> Path:
        """Where the file of a source is; where it should be, when it is nowhere."""
        with contextlib.suppress(MissingInput):
            self.finder.locate(source)
        return self._bound.sources[source].path

    def paths(self) -> dict[str, Path]:
        """All files that the recipe calls sources, those that are not read this time too."""
        return {ref.name: ref.path for ref in self._bound.sources}

    def notes(self, sources: Iterable[int]) -> list[str]:
        """What the user should know of sources whose facts were asked for."""
        return [note for source in sources for note in self._notes[source]]

    def known(self) -> Mapping[int, Identified]:
        """The sources identified so far."""
        return self._identified

    def originals(self) -> Originals:
        return Originals(self._metadata, self._hashes)

    def facts(self, source: int) -> SourceFacts:
        """What is known of one source, its claims checked."""
        found = self.identified(source)
        ref = self._bound.sources[source]
        declared = ref.declared
        asked = declared.hash if declared.hash and declared.hash.startswith("b3:") else None
        try:
            check_claims(
                ref.path,
                self._memo,
                self._report,
                sha256_claim=declared.sha256,
                short=None if asked else declared.hash,
                size=declared.size,
            )
            adapted = adapt(
                found,
                ref.name,
                arch=declared.arch,
                otherwise=self._bound.recipe.arch,
                ema=declared.ema or "keep",
                kind=declared.kind,
            )
            check_is_model(adapted, ref.name)
            if asked is not None and adapted.model != asked:
                check_model(ref.path, found.model, asked)
        except MergeflowError as error:
            error.place = error.place or declared.place
            raise
        said = self._metadata(source)
        says_delta = said.get(KIND) == "delta" and (said is found.metadata or said.get(DIGEST) == found.model)
        delta = says_delta if declared.kind in (None, "vae") else declared.kind == "delta"
        self._notes[source] = adapted.notes
        return SourceFacts(
            ref.name,
            found.files,
            adapted.tensors,
            adapted.digests,
            adapted.nonfinite,
            adapted.model,
            adapted.architecture,
            delta,
            lambda name: found.sample(adapted.origins.get(name, name)),
            adapted.kind,
        )

    def _metadata(self, source: int) -> Mapping[str, str]:
        """What the file of a source says of itself."""
        found = self.identified(source)
        return claims_of(found.path, found.metadata)

    def _hashes(self, source: int) -> tuple[str, str] | None:
        """The sha256 and the old hash of a source's file; None where it is not one file."""
        found = self.identified(source)
        path = found.path
        if found.files != (path,):
            return None
        whole = sha256(path, self._memo, self._report)
        with ReadFile(path) as file:
            return whole, old_hash(file)

    def identified(self, source: int) -> Identified:
        """The content of a source's file.

        Raises:
            MissingInput: it is nowhere to be found.
            IntegrityError: it is no model.
        """
        if source not in self._identified:
            self.finder.locate(source)
            ref = self._bound.sources[source]
            try:
                found = identify(ref.path, self._memo, self._report, name=ref.name, workers=budget(1).cores)
            except MergeflowError as error:
                if error.place is None:
                    error.place = ref.declared.place
                error.hint = _way_out(error, ref)
                raise
            self._identified[source] = found
        return self._identified[source]


def _not_as_typed(path: str) -> str:
    """What a shell or an editor would have made of this path, and mergeflow does not; '' when nothing."""
    if path[:1] in tuple("“”„‟‘’«»"):
        return "these are typographic quotes, which belong to the path here: write \" or ' in their place"
    if path.startswith("~") or "$" in path or "%" in path:
        return "~ and variables are not filled in: write the path out"
    if "*" in path:
        return "* is not filled in: a source is one file, or a list: [a.safetensors, b.safetensors]"
    return ""


def _way_out(error: MergeflowError, ref: SourceRef) -> str:
    """What helps when a source is not there or is not what it should be."""
    first = error.hint
    if isinstance(error, MissingInput) and ref.declared.path:
        _, path, rest = ref.declared.place.text.partition(ref.declared.path)
        if rest.startswith(" #") and os.path.exists(f"{ref.path}{rest}"):  # noqa: PTH110  # which answers any path
            return f"in YAML # after a space begins a comment: quote the path, '{path}{rest}'"
    if isinstance(error, MissingInput):
        first = _not_as_typed(ref.declared.path or "") or first or "put the file there"
    elif not first and isinstance(error, IntegrityError):
        first = "fetch it again"
    if not first:
        return ""
    joint = " Or" if first.endswith("?") else "; or" if error.hint else ", or"
    return f"{first}{joint} point elsewhere with --source {ref.name}=PATH"
