"""What planning knows of each source: names, shapes, digests, facts. Made from headers and the memo; no tensor data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mergeflow.arch import Architecture
from mergeflow.tensors import TensorSpec

_QUANTISED = (".scale_weight", ".weight_scale", ".absmax", ".quant_map", ".quant_state.bitsandbytes__nf4",
              ".quant_state.bitsandbytes__fp4", ".SCB", "scaled_fp8", ".input_scale")  # fmt: skip


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """`digests` and `nonfinite` are by tensor name; `model` is the printable model digest; `delta` says that the file
    holds a difference of models. Tensors start at positions that count through all of `files` (formats.many)."""

    name: str
    files: tuple[Path, ...]
    tensors: Mapping[str, TensorSpec]
    digests: Mapping[str, bytes]
    nonfinite: Mapping[str, int]
    model: str
    architecture: Architecture
    delta: bool

    def quantised_by(self) -> str:
        """The name of a tensor that shows the file to hold scaled, quantised weights; '' when it does not."""
        return next((name for name in self.tensors if name.endswith(_QUANTISED)), "")
