"""Knowing that there is nothing to do without planning: for the build that is run again and again.

A build that ends well leaves a stamp: the bytes of the recipe files it read (as digests), the fingerprints of its
sources and of its outputs, the paths where no source was that was found elsewhere. When the next build is asked for in
the same words and all of that is as it was, its outputs are up to date. Anything else, however small, and the build is
planned in full: the stamp decides nothing but this.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mergeflow
from mergeflow.build.settings import BuiltOutput, Settings, cache_folder
from mergeflow.digest import NUMERICS, hash_bytes
from mergeflow.formats.files import fingerprint
from mergeflow.sources.memo import quiet_since
from mergeflow.store.records import LocalRecords, Records

if TYPE_CHECKING:
    from mergeflow.build.project import Project
    from mergeflow.plan.plans import Plan


_WHERE_ARCHITECTURES_ARE = ("MERGEFLOW_ARCH", "MERGEFLOW_CONFIG", "XDG_CONFIG_HOME")  # the user's own (arch.registry)


@dataclass(frozen=True, slots=True)
class Asked:
    """How a build is asked for: everything but the content of files that decides what it does."""

    recipe: Path
    outputs: tuple[str, ...]
    overrides: Mapping[str, str]
    sources: Mapping[str, str]
    began_ns: int = field(default_factory=time.time_ns)  # before the recipe was read

    def digest(self, settings: Settings) -> str:
        words = [
            mergeflow.__version__,
            NUMERICS,
            os.path.abspath(self.recipe),  # noqa: PTH100  # a link stays a link: it may lead elsewhere tomorrow
            str(Path.cwd()),  # --source paths are taken from here
            str(settings.output_root.resolve()),
            sorted(self.outputs),
            sorted(self.overrides.items()),
            sorted(self.sources.items()),
            [os.environ.get(name) for name in _WHERE_ARCHITECTURES_ARE],
        ]
        return hash_bytes(json.dumps(words).encode()).hex()


def unchanged(asked: Asked, settings: Settings) -> tuple[BuiltOutput, ...] | None:
    """The outputs, when the stamp of the last build shows that all of them are up to date; None when it does not."""
    if settings.force or settings.locked:
        return None
    records = LocalRecords(cache_folder(settings), lambda message: None)
    try:
        stamp = records.stamp(asked.digest(settings))
    finally:
        records.close()
    if stamp is None or not _holds(stamp):
        return None
    return tuple(
        BuiltOutput(path, Path(target), False, "it is up to date", nbytes, 0, "")
        for path, target, nbytes, _ in stamp["outputs"]
    )


def leave_stamp(asked: Asked, project: Project, plan: Plan, records: Records) -> None:
    """Remember a finished build. Sources and outputs are stamped with what was checked, not with what is there now."""
    with contextlib.suppress(OSError):  # a file that it read is gone: the build is done, and the next one is planned
        stamp = _stamp(asked, project, plan, records)
        if stamp is not None:
            records.put_stamp(asked.digest(project.settings), stamp)


def _stamp(asked: Asked, project: Project, plan: Plan, records: Records) -> dict[str, Any] | None:
    """None where it cannot be said that nothing changed since it was read."""
    from mergeflow.arch import user_files, user_places  # as below: what a build with nothing to do does not need
    from mergeflow.build.published import side_files
    from mergeflow.methods.registry import foreign_files

    own = [Path(name) for name in project.architectures_named() if name.endswith(".toml")]
    files = [*project.bound.files, *own, *(path for path in user_files().values() if path.is_file())]
    files += foreign_files()
    finder = project.sources.finder
    files += [finder.lock_file] if finder.lock_file is not None else []  # sources were found by it
    outputs = []
    for output in plan.outputs:
        at = []
        for path in (*output.files, *side_files(output, project.bound).values()):
            record = records.find(path)
            if record is None:
                return None
            at.append([str(path), list(record.at)])
        outputs.append([output.path, str(output.target), output.layout.file_size, at])
    for path in files:
        if not quiet_since(fingerprint(path.stat()), path, asked.began_ns):
            return None  # it may have been edited after it was read
    sources = [
        (os.path.abspath(path), at)  # noqa: PTH100
        for found in project.sources.known().values()
        for path, at in zip(found.files, found.at, strict=True)
    ]
    if not all(quiet_since(at, Path(path), asked.began_ns) for path, at in sources):
        return None  # as above; and then the memo does not trust them either
    recipes = [[os.path.abspath(path), _digest(path)] for path in files]  # noqa: PTH100
    folders = [[os.path.abspath(path), _listed(path)] for path in user_places()]  # noqa: PTH100
    absent = [os.path.abspath(path) for path in finder.absent]  # noqa: PTH100
    return {"recipes": recipes, "folders": folders, "sources": sources, "outputs": outputs, "absent": absent}


def _holds(stamp: Mapping[str, Any]) -> bool:
    try:
        written = [file for *_, files in stamp["outputs"] for file in files]
        files: Sequence[tuple[str, list[int]]] = [*stamp["sources"], *written]
        return (
            all(_digest(Path(path)) == digest for path, digest in stamp["recipes"])
            and all(_listed(Path(path)) == at for path, at in stamp["folders"])
            and not any(os.path.lexists(path) for path in stamp["absent"])
            and all(list(fingerprint(Path(path).stat())) == at for path, at in files)
        )
    except (OSError, KeyError, TypeError, ValueError):
        return False


def _listed(folder: Path) -> int:
    """What changes when a file comes into a folder or leaves it; 0 where there is none."""
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return 0


def _digest(path: Path) -> str:
    return hash_bytes(path.read_bytes()).hex()
