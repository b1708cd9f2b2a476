"""Knowledge about tensor names: what belongs to which part of a model, and what must never be averaged.

The knowledge itself is in data/*.toml, one file an architecture; data/README.md is their format. Nothing here sees
the values of a tensor: names and shapes are all there is.
"""

from mergeflow.arch.base import UNKNOWN, Architecture
from mergeflow.arch.detect import detect
from mergeflow.arch.registry import get, names

__all__ = ["UNKNOWN", "Architecture", "detect", "get", "names"]
