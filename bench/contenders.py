"""Who takes part in a round, and how each is started: one whole process, its output gone beforehand.

A contender's process starts from nothing each time: its output, and mergeflow's store and record of what it built, are
removed before. mergeflow's memo of digests is kept between runs (what a second merge of the same files pays), except by
the contender that measures the first merge.
"""

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from bench.workloads import Workload

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = "out.safetensors"

Command = list[str | Path]


@dataclass(frozen=True)
class Place:
    """Where a workload's files are: `inputs` holds the models, everything a contender writes goes under `scratch`."""

    inputs: Path
    scratch: Path
    prefix: str = ""  # of the models' file names, where it is not the layout's name

    def models(self, workload: Workload) -> list[Path]:
        return [self.inputs / file for file in workload.files(self.prefix).values()]

    def fresh(self, name: str) -> Path:
        """An empty folder of a contender's own."""
        folder = self.scratch / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder


class Contender(Protocol):
    """Something that can run a workload."""

    @property
    def name(self) -> str: ...

    @property
    def env(self) -> Mapping[str, str]: ...

    def prepare(self, workload: Workload, place: Place) -> tuple[Command, Path, Path | None]:
        """Clears what an earlier run left; the command, the folder to run it in, and the file it will make."""
        ...

    def takes(self, workload: Workload) -> bool: ...


@dataclass(frozen=True)
class Floor:
    """What the machine needs to read the inputs once and to write one output and sync it, with no merge at all."""

    name: str = "floor"
    env: Mapping[str, str] = field(default_factory=dict)

    def takes(self, workload: Workload) -> bool:
        return True

    def prepare(self, workload: Workload, place: Place) -> tuple[Command, Path, Path | None]:
        folder = place.fresh(self.name)
        script = 'cat "$@" > /dev/null && cp --reflink=never "$1" out && sync out'
        return ["sh", "-c", script, "sh", *place.models(workload)], folder, None


@dataclass(frozen=True)
class ImportTorch:
    """Starting Python and importing torch: what every contender in Python pays before it begins."""

    name: str = "import torch"
    env: Mapping[str, str] = field(default_factory=dict)

    def takes(self, workload: Workload) -> bool:
        return True

    def prepare(self, workload: Workload, place: Place) -> tuple[Command, Path, Path | None]:
        return [sys.executable, "-c", "import torch"], place.fresh("import-torch"), None


@dataclass(frozen=True)
class Mergeflow:
    """`mergeflow build` of a recipe file; `first` has an empty memo, so it hashes its inputs too."""

    memo: Path
    first: bool = False

    @property
    def name(self) -> str:
        return "mergeflow, first" if self.first else "mergeflow"

    @property
    def env(self) -> Mapping[str, str]:
        memo = self.memo / ("first" if self.first else "kept")
        return {"MERGEFLOW_MEMO": str(memo), "MERGEFLOW_CACHE": "cache"}  # the store: in the folder that is emptied

    def takes(self, workload: Workload) -> bool:
        return True

    def prepare(self, workload: Workload, place: Place) -> tuple[Command, Path, Path | None]:
        if self.first:
            shutil.rmtree(self.env["MERGEFLOW_MEMO"], ignore_errors=True)
        folder = place.fresh("mergeflow")
        (folder / "recipe.yaml").write_text(recipe(workload, place, folder))
        return [executable(), "build", "recipe.yaml"], folder, folder / OUTPUT


@dataclass(frozen=True)
class Peer:
    """An adapter of this folder, run in the peers' environment."""

    name: str
    module: str
    python: Path
    output: str

    @property
    def env(self) -> Mapping[str, str]:
        return {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}  # mergekit must not look local paths up on a hub

    def takes(self, workload: Workload) -> bool:
        return workload.peers

    def prepare(self, workload: Workload, place: Place) -> tuple[Command, Path, Path | None]:
        folder = place.fresh(self.name)
        target = folder / self.output
        made = target if target.suffix else target / "model.safetensors"
        return [self.python, "-m", self.module, workload.name, place.inputs, target], folder, made


def recipe(workload: Workload, place: Place, folder: Path) -> str:
    """The recipe file that a person would write for a workload."""
    sources = [
        f"  {model}: {os.path.relpath(place.inputs / file, folder)}\n"
        for model, file in workload.files(place.prefix).items()
    ]
    return f"mergeflow: 1\nsources:\n{''.join(sources)}outputs:\n  {OUTPUT}: {workload.formula}\n"


def executable() -> Path:
    """The `mergeflow` command of the environment that runs this."""
    return Path(sys.executable).with_name("mergeflow")


def sd_mecha(python: Path) -> Peer:
    return Peer("sd-mecha", "bench.peer_sd_mecha", python, OUTPUT)


def mergekit(python: Path) -> Peer:
    return Peer("mergekit-pytorch", "bench.peer_mergekit", python, "out")
