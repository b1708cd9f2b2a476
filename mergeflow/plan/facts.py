"""What planning knows of each source: names, shapes, digests, facts. Made from headers and the memo; no tensor data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mergeflow.arch import Architecture, Kind
from mergeflow.tensors import TensorSpec

QUANTISED = (".scale_weight", ".weight_scale", ".absmax", ".quant_map", ".quant_state.bitsandbytes__nf4",
              ".quant_state.bitsandbytes__fp4", ".SCB", "scaled_fp8", ".input_scale")  # fmt: skip


def _no_sample(name: str) -> bytes:
    return b""


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """`digests` and `nonfinite` are by tensor name; `model` is the printable model digest; `delta` says that the file
    holds a difference of models. Tensors start at positions that count through all of `files` (formats.many). `sample`
    gives some values of a tensor as float32, the same ones of every model, or nothing where they are not known. `kind`
    is None of a whole model."""

    name: str
    files: tuple[Path, ...]
    tensors: Mapping[str, TensorSpec]
    digests: Mapping[str, bytes]
    nonfinite: Mapping[str, int]
    model: str
    architecture: Architecture
    delta: bool
    sample: Callable[[str], bytes] = field(default=_no_sample, compare=False)
    kind: Kind | None = None

    def quantised_by(self) -> str:
        """The name of a tensor that shows the file to hold scaled, quantised weights; '' when it does not."""
        return next((name for name in self.tensors if name.endswith(QUANTISED)), "")


Facts = Mapping[int, SourceFacts]
