"""What a model file is once it is open: names, and for each the bytes that hold it. Every reader returns this."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mergeflow.tensors import TensorSpec


@dataclass(frozen=True, slots=True)
class Contents:
    """A model wherever it came from.

    `tensors` is ordered by file and offset: contiguous little-endian values from byte `start` of `files[file]`. Two
    names may share bytes, wholly or in part: tied weights in a pickle are one storage.

    `extras` are facts beside the tensors that a person may want to see
    (`global_step`, what was chosen, what was left out). `other` maps what the file was recognised as, when that is not
    a whole model ("hypernetwork", "textual inversion", "vae", "lora"), to what gave it away.
    """

    container: str
    files: tuple[Path, ...]
    tensors: Mapping[str, TensorSpec]
    metadata: Mapping[str, str] = field(default_factory=dict)
    extras: Mapping[str, str] = field(default_factory=dict)
    other: Mapping[str, str] = field(default_factory=dict)


def in_file_order(tensors: Iterable[TensorSpec]) -> dict[str, TensorSpec]:
    return {t.name: t for t in sorted(tensors, key=lambda t: (t.file, t.start, t.name))}


def listed(names: Iterable[str], limit: int = 5) -> str:
    """Names for a message: the first few, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(n if len(n) <= 120 else n[:117] + "…" for n in names[:limit]) + more


_VAE = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "loss.", "model_ema.")
_LORA = (".lora_up.", ".lora_down.", ".lora_A.", ".lora_B.", ".hada_w1_a", ".lokr_w1", ".lora_linear_layer.")


def recognise(tensors: Iterable[TensorSpec]) -> dict[str, str]:
    """What a file that is not a whole model is, judged by its names (and, for embeddings, shapes)."""
    tensors = list(tensors)
    names = {t.name for t in tensors}
    text = "\n".join(names)  # to be searched once, and not name by name: files have tens of thousands
    if any(mark in text for mark in _LORA):
        return {"lora": f"it has {next(t.name for t in tensors if any(mark in t.name for mark in _LORA))}"}
    if (
        names
        and {"encoder.conv_in.weight", "decoder.conv_in.weight"} <= names
        and all(n.startswith(_VAE) for n in names)
    ):
        return {"vae": "every name begins as in an autoencoder"}
    if names and names <= {"clip_l", "clip_g"}:
        return {"textual inversion": "it holds only " + listed(sorted(names))}
    if len(tensors) == 1 and len(tensors[0].shape) in (1, 2):
        name = tensors[0].name
        if name == "emb_params" or (name.startswith("<") and name.endswith(">")):
            return {"textual inversion": f"its one tensor is {name}"}
    return {}
