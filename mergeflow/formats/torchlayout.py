"""A .ckpt as an output: the torch zip, and beside it a small file with what the output says of itself.

A torch file has no place for metadata that its readers would leave alone, so it goes into `mix.ckpt.mergeflow.json`:
`{"metadata": {…}, "schema": "mergeflow/claims/1"}`, texts by name as in the header of a safetensors file. That file is
published first: a build that dies in between leaves the old model, which its record knows, beside the new claims.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mergeflow.formats.layout import Ending, Layout, Piece, Stretch, one_behind_the_other
from mergeflow.formats.torchwriter import TorchPlan, write_torch_zip_plan
from mergeflow.tensors import DType

CLAIMS = ".mergeflow.json"
CLAIMS_SCHEMA = "mergeflow/claims/1"
SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
NESTED = ".ckpt"  # the one whose tensors lie under `state_dict`, as trainers of Stable Diffusion write them


@dataclass(frozen=True, slots=True)
class TorchLayout(Layout):
    """`plan` says where the tensors lie in the file; here they are one behind the other."""

    plan: TorchPlan
    nested: bool

    @property
    def container(self) -> str:
        return "torch zip, nested" if self.nested else "torch zip"

    @property
    def checksums(self) -> bool:
        return True

    def paths(self, target: Path) -> tuple[Path, ...]:
        return (claims_path(target), target)

    def sizes(self, target: Path) -> tuple[int, ...]:
        return (len(_claims(self.metadata)), self.plan.file_size)

    def holds(self) -> tuple[slice, ...]:
        return (slice(0, 0), slice(0, len(self.tensors)))

    def stretches(self) -> tuple[Stretch, ...]:
        pairs = zip(self.tensors, self.plan.tensors, strict=True)
        return tuple([Stretch(here.start, 1, there.start) for here, there in pairs])

    def rest(self, target: Path, ending: Ending) -> list[Piece]:
        pieces = [Piece(1, at, data) for at, data in self.plan.pieces(ending.crcs)]
        return [Piece(0, 0, _claims(self.claims(ending))), *pieces]


def lay_out_torch(
    tensors: Iterable[tuple[str, DType, tuple[int, ...]]], metadata: Mapping[str, str], *, nested: bool
) -> TorchLayout:
    """The layout of a torch file with these (name, dtype, shape), under `state_dict` where it is `nested`."""
    plan = write_torch_zip_plan(tensors, nested=nested)
    specs, _ = one_behind_the_other((t.name, t.dtype, t.shape) for t in plan.tensors)
    return TorchLayout(specs, dict(metadata), plan.file_size, plan, nested)


def claims_path(target: Path) -> Path:
    return target.with_name(target.name + CLAIMS)


def read_claims(path: Path) -> dict[str, str] | None:
    """What the file beside a torch file says; None where there is none, or none that this version can read."""
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or document.get("schema") != CLAIMS_SCHEMA:
        return None
    found = document.get("metadata")
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        return None
    return found


def _claims(metadata: Mapping[str, str]) -> bytes:
    document = {"schema": CLAIMS_SCHEMA, "metadata": dict(metadata)}
    return (json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
