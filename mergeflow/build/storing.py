"""The store as a build uses it: where it is, how much it may hold, how fast its disk is, what a build keeps from gc."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import astuple
from pathlib import Path

from mergeflow.build.settings import Settings, cache_folder
from mergeflow.errors import MergeflowError, RecipeError
from mergeflow.formats.parts import write_file
from mergeflow.formats.processes import process_mark
from mergeflow.plan.cost import Rates
from mergeflow.plan.plans import Plan
from mergeflow.plan.program import STAGED
from mergeflow.plan.stored import Storing
from mergeflow.store.local import LocalStore
from mergeflow.store.objects import Limits, Store, Stored
from mergeflow.tensors import parse_bytes

SIZE_VARIABLE = "MERGEFLOW_CACHE_SIZE"
LARGEST = 50_000_000_000  # bytes of objects unless told otherwise, and no more than a tenth of the disk
_TRIAL = 32 << 20  # bytes written and read to know how fast a disk is
_RATES = "rates.json"


class Shelf:
    """One project's way to the store. What it finds is kept from gc until it is closed."""

    def __init__(self, settings: Settings, memo: Path, warn: Callable[[str], None]) -> None:
        self._folder, self._memo, self._warn = cache_folder(settings), memo, warn
        self.store: Store = LocalStore(self._folder, warn)
        self._held = ExitStack()
        self._building = False

    def close(self) -> None:
        self._held.close()
        self.store.close()

    def begin_build(self) -> None:
        """From here on, what is found is going to be used."""
        self._building = True

    def storing(self) -> Storing:
        return Storing(self._find, self._room, self._rates)

    def _find(self, keys: Collection[str]) -> Mapping[str, Stored]:
        if self._building:
            self._held.enter_context(self.store.lease(keys))
        return self.store.find(keys)

    def note_use(self, plan: Plan) -> None:
        """Remember what of the store the build of a plan uses, and what it would have had a use for."""
        used = [check for checks in plan.checks.values() for check in checks]
        actions = [work for output in plan.outputs if output.build for work in output.actions]
        misses = sum(work.program == STAGED for work in actions) + sum(len(made.keyed) for made in plan.objects)
        if used or plan.objects:
            self.store.count(hits=len(used), misses=misses, bytes_saved=sum(check.nbytes for check in used))
            self.store.touch([check.key for check in used])
        for declined in plan.declined:
            if declined.asked:
                self._warn(f"{declined.title} is not kept, though the recipe says `keep: true`: {declined.reason}")

    def end_build(self, plan: Plan) -> None:
        """Keep the store within its limit, where a build had to do with it. Its own leases end before, or what it used
        could not go however little the store may hold; no grace, as what others have asked for is leased."""
        self._held.close()
        self._building = False
        if plan.objects or plan.checks or plan.declined:
            self.store.gc(Limits(max_size=size_limit(self._folder), grace=0.0))

    def _room(self) -> int:
        """What new objects may take: no more than the limit, and never more than half of what is free."""
        return min(size_limit(self._folder), shutil.disk_usage(_there(self._folder)).free // 2)

    def _rates(self) -> Rates:
        """How fast the store's disk is: measured the first time that it matters, then remembered on this machine."""
        device = str(_there(self._folder).stat().st_dev)
        path = self._memo / _RATES
        known = _read(path)
        if device not in known:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                known[device] = _measure(self._folder)
                write_file(path, json.dumps(known, indent=1).encode())
            except (OSError, MergeflowError):  # what cannot be written to is said when something is to be stored
                known.setdefault(device, [*astuple(Rates())])
        return Rates(*known[device])


def size_limit(folder: Path) -> int:
    """How many bytes of objects a store keeps after a build: as MERGEFLOW_CACHE_SIZE says, else what is usual.

    Raises:
        RecipeError: MERGEFLOW_CACHE_SIZE is no amount.
    """
    asked = os.environ.get(SIZE_VARIABLE, "").strip()
    return _parse_size(asked) if asked else min(LARGEST, shutil.disk_usage(_there(folder)).total // 10)


def _parse_size(text: str) -> int:
    """Bytes; unlike of memory, none at all is an answer.

    Raises:
        RecipeError: it is no amount.
    """
    size = parse_bytes(text)
    if size is None:
        raise RecipeError(f"{SIZE_VARIABLE} is {text!r}, which is no size", hint="write it as 20GB; 0 keeps nothing")
    return size


def _read(path: Path) -> dict[str, list[float]]:
    try:
        found = json.loads(path.read_text())
        return {str(device): [float(read), float(write)] for device, (read, write) in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _measure(folder: Path) -> list[float]:
    """Bytes per second of reading (from memory, as after a build) and of writing with a sync."""
    path = folder / f".rates.{process_mark()}-0.part"  # a name by which gc knows it for what a dead build left
    block = os.urandom(1 << 20)
    try:
        with path.open("wb", buffering=0) as file:
            began = time.perf_counter()
            for _ in range(_TRIAL >> 20):
                file.write(block)
            os.fsync(file.fileno())
            written = time.perf_counter()
        with path.open("rb", buffering=0) as file:
            opened = time.perf_counter()
            while file.read(1 << 20):
                pass
            done = time.perf_counter()
    finally:
        path.unlink(missing_ok=True)
    return [_TRIAL / max(done - opened, 1e-6), _TRIAL / max(written - began, 1e-6)]


def _there(folder: Path) -> Path:
    """The folder, or the nearest above it that exists; itself where none does (on Windows, a drive)."""
    folder = folder.absolute()
    return next((path for path in (folder, *folder.parents) if path.exists()), folder)
