"""Knowledge about tensor names: what belongs to which part of a model, and what must never be averaged.

The knowledge itself is in data/*.toml, one file an architecture; data/README.md is their format. Nothing here sees
the values of a tensor: names and shapes are all there is.
"""

from collections.abc import Mapping

from mergeflow.arch import aliases as _aliases
from mergeflow.arch.aliases import Alias, Shape
from mergeflow.arch.base import UNKNOWN, Architecture
from mergeflow.arch.contents import ema_names, junk, variant
from mergeflow.arch.detect import VAE, detect, recognise
from mergeflow.arch.kinds import Header, Kind, understand, vae_kind
from mergeflow.arch.lists import mbw
from mergeflow.arch.registry import (
    config_folder,
    find,
    get,
    is_ours,
    is_path,
    load_file,
    names,
    read,
    user_digest,
    user_files,
    user_names,
    user_places,
)
from mergeflow.arch.selectors import Rank, blocks_of, select
from mergeflow.arch.tables import preset, preset_like, presets

__all__ = [
    "UNKNOWN",
    "VAE",
    "Alias",
    "Architecture",
    "Header",
    "Kind",
    "Rank",
    "blocks_of",
    "canonical",
    "config_folder",
    "detect",
    "ema_names",
    "find",
    "get",
    "is_ours",
    "is_path",
    "junk",
    "load_file",
    "mbw",
    "names",
    "preset",
    "preset_like",
    "presets",
    "read",
    "recognise",
    "select",
    "to_diffusers",
    "understand",
    "user_digest",
    "user_files",
    "user_names",
    "user_places",
    "vae_kind",
    "variant",
]


def canonical(architecture: Architecture, shapes: Mapping[str, Shape]) -> Mapping[str, Alias]:
    """The tensors that have another name or another shape in this architecture, and which. Empty if there are none."""
    return _aliases.canonical(architecture.aliases, shapes)


def to_diffusers(architecture: Architecture, shapes: Mapping[str, Shape]) -> Mapping[str, Alias]:
    """What diffusers calls the tensors, where each has a counterpart of its own: `unet.conv_in.weight`."""
    return _aliases.to_diffusers(architecture.aliases, shapes)
