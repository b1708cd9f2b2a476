"""Knowledge about tensor names: what belongs to which part of a model, and what must never be averaged.

The knowledge itself is in data/*.toml, one file an architecture; data/README.md is their format. Nothing here sees
the values of a tensor: names and shapes are all there is.
"""

from collections.abc import Mapping

from mergeflow.arch import aliases as _aliases
from mergeflow.arch.aliases import Alias, Shape
from mergeflow.arch.base import UNKNOWN, Architecture
from mergeflow.arch.contents import ema_names, junk, variant
from mergeflow.arch.detect import detect, recognise
from mergeflow.arch.lists import mbw
from mergeflow.arch.registry import get, load_file, names
from mergeflow.arch.selectors import Rank, blocks_of, select
from mergeflow.arch.tables import preset, preset_like, presets

__all__ = [
    "UNKNOWN",
    "Alias",
    "Architecture",
    "Rank",
    "blocks_of",
    "canonical",
    "detect",
    "ema_names",
    "get",
    "junk",
    "load_file",
    "mbw",
    "names",
    "preset",
    "preset_like",
    "presets",
    "recognise",
    "select",
    "to_diffusers",
    "variant",
]


def canonical(architecture: Architecture, shapes: Mapping[str, Shape]) -> Mapping[str, Alias]:
    """The tensors that have another name or another shape in this architecture, and which. Empty if there are none."""
    return _aliases.canonical(architecture.aliases, shapes)


def to_diffusers(architecture: Architecture, shapes: Mapping[str, Shape]) -> Mapping[str, Alias]:
    """What diffusers calls the tensors, where each has a counterpart of its own: `unet.conv_in.weight`."""
    return _aliases.to_diffusers(architecture.aliases, shapes)
