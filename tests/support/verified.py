"""With `pytest --verify-outputs`: whatever tests build is accepted by `mergeflow verify`.

An output that is built in this process is checked as soon as it is there. At the end of each test all outputs below its
folder are checked, those that other processes made as well, and at the end of the session those below the folders of
fixtures. Tests marked `forges` leave files that verify must refuse: there only the first is done.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mergeflow.build.ancestors import SUFFIXES
from mergeflow.build.project import Project
from mergeflow.build.settings import BuildResult
from mergeflow.build.verification import OK, UNREAD, check
from mergeflow.errors import MergeflowError
from mergeflow.events import silent
from mergeflow.formats.contents import read_contents
from mergeflow.plan.embed import DIGEST
from mergeflow.provenance.claims import claims_of


class Refused(AssertionError):
    """An output that verify does not accept; says which and why."""


class Verified:
    """What has been checked, so that nothing is checked twice while it stays as it is."""

    def __init__(self) -> None:
        self.checked = 0
        self._seen: set[tuple[str, int, int]] = set()
        self._left_out: list[Path] = []

    def watch_builds(self) -> None:
        """From now on, every build of this process ends with a check of what it made."""
        build = Project.build

        def build_and_verify(project: Project, *given: Any, **named: Any) -> BuildResult:
            result = build(project, *given, **named)
            for output in result.outputs:
                if output.built and output.error is None:
                    self.check(output.target, later=True)
            return result

        Project.build = build_and_verify  # type: ignore[method-assign]

    def leave_out(self, folder: Path) -> None:
        """What lies below this folder is not checked any more."""
        self._left_out.append(folder)

    def check_below(self, folder: Path) -> None:
        """Raises Refused when an output below this folder is not accepted."""
        for file in outputs_below(folder):
            if not any(file.is_relative_to(other) for other in self._left_out):
                self.check(file)

    def check(self, file: Path, *, later: bool = False) -> None:
        """Raises Refused when this output is not accepted, once. `later`: one that cannot be read, as the test has it,
        is checked another time."""
        at = file.stat()
        key = str(file), at.st_mtime_ns, at.st_ino
        if key in self._seen:
            return
        verdict = check(file, {}, silent)
        if later and verdict.verdict == UNREAD:
            return
        self._seen.add(key)
        if verdict.verdict != OK:
            raise Refused(f"{file}: {verdict.verdict}: {verdict.why}")
        self.checked += 1


def outputs_below(folder: Path) -> Iterator[Path]:
    """Model files that say which digest they have, as those do that mergeflow made."""
    for where, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if name.lower().endswith(SUFFIXES) and not name.startswith(".") and claims_digest(Path(where, name)):
                yield Path(where, name)


def claims_digest(file: Path) -> bool:
    try:
        return DIGEST in claims_of(file, read_contents(file).metadata)
    except (MergeflowError, OSError):
        return False  # not everything that ends in .bin is a model
