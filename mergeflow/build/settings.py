"""What a build is asked and what it answers: small values that import next to nothing."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from mergeflow.errors import MergeflowError, RecipeError, UnknownName

CACHE_VARIABLE = "MERGEFLOW_CACHE"
DEVICES = ("auto", "cpu", "cuda", "mps")


@dataclass(frozen=True, slots=True)
class Settings:
    """What is the machine's business and not the recipe's. `jobs`, `memory` and `vram` (bytes) None: what there
    is. `device`: `auto` is whichever takes least time."""

    output_root: Path = field(default_factory=Path.cwd)
    cache: Path | None = None
    memo: Path | None = None
    jobs: int | None = None
    memory: int | None = None
    vram: int | None = None
    device: str = "auto"
    force: bool = False
    keep_going: bool = False
    locked: bool = False
    fetch: bool = False  # whether sources that are not here are downloaded


class Tally(NamedTuple):
    """How the tensors of an output came to be: by arithmetic, as bytes of a source, as bytes of an earlier build.
    `bytes_alone`: what a build of this output alone, with nothing to reuse, would have read of the sources."""

    computed: int = 0
    copied: int = 0
    reused: int = 0
    bytes_reused: int = 0
    bytes_alone: int = 0


@dataclass(frozen=True, slots=True)
class BuiltOutput:
    """One output of a build. `digest` is the model digest, '' when the file was up to date and is not asked.
    `bytes_read` of an output that was made in one pass with others is told with the first of them."""

    path: str
    target: Path
    built: bool
    reason: str
    nbytes: int
    bytes_read: int
    digest: str
    error: MergeflowError | None = None
    tally: Tally = field(default_factory=Tally)


class StoredResult(NamedTuple):
    """What was put into the store: `nbytes` of it, after reading `bytes_read` of sources."""

    title: str
    nbytes: int
    bytes_read: int


@dataclass(frozen=True, slots=True)
class BuildResult:
    outputs: tuple[BuiltOutput, ...]
    stored: tuple[StoredResult, ...] = ()

    @property
    def failed(self) -> bool:
        return any(o.error is not None for o in self.outputs)


def check_device(name: str) -> str:
    """A name as --device takes it: one of DEVICES, or one card by its number.

    Raises:
        RecipeError: no device is called so.
    """
    if name.lower() in ("gpu", "nvidia", "rocm"):
        raise RecipeError(f"no device is called {name}", hint="did you mean cuda? Cards of AMD are called so as well")
    if name not in DEVICES and not re.fullmatch(r"cuda:[0-9]{1,3}", name):
        raise UnknownName("device", name, [*DEVICES, "cuda:0"], hint="`mergeflow devices` shows what there is")
    return name


def cache_folder(settings: Settings) -> Path:
    """Where records are kept: as set, else MERGEFLOW_CACHE, else cache/ under the output root."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return settings.cache or (Path(chosen) if chosen else settings.output_root / "cache")
