"""A model under the names that its architecture uses, with the weights that the recipe asks for.

Tensors that a tool calls otherwise (NAI's text encoder, diffusers' folders, a VAE on its own) get the architecture's
names and shapes: the same bytes in the same order. `ema:` chooses among the running averages that training files keep:

    keep   they stay tensors of their own, as in the file (what A1111's merger does)
    drop   they are left out
    use    they take the place of the weights that they are averages of
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from mergeflow.arch import UNKNOWN, Alias, Architecture, ema_names, get, recognise
from mergeflow.digest import model_digest, printable, tensor_digest
from mergeflow.errors import RecipeError
from mergeflow.sources.identify import Identified
from mergeflow.tensors import TensorSpec

_AVERAGES = "model_ema."


@dataclass(frozen=True, slots=True)
class Adapted:
    """A source as the recipe sees it. `model` is the digest of what is left, under the names it has here; `origins`
    says what a tensor is called in the file, where that is something else."""

    architecture: Architecture
    tensors: Mapping[str, TensorSpec]
    digests: Mapping[str, bytes]
    nonfinite: Mapping[str, int]
    model: str
    notes: tuple[str, ...]
    origins: Mapping[str, str]


def adapt(found: Identified, name: str, *, arch: str | None = None, ema: str = "keep") -> Adapted:
    """Rename, reshape and choose.

    Raises:
        RecipeError: the file is of another architecture than it is said to be, or has no averages to use.
    """
    architecture, aliases = _recognised(tuple([(spec.name, spec.shape) for spec in found.tensors.values()]))
    if arch is not None:
        stated = get(arch)
        if architecture is not UNKNOWN and architecture.name != stated.name:
            raise RecipeError(
                f"{name} is said to be {stated.title}, but looks like {architecture.title}",
                hint=f"write arch: {architecture.name}, or leave it out",
            )
        architecture = stated
    tensors, digests, nonfinite = dict(found.tensors), dict(found.digests), dict(found.nonfinite)
    notes: list[str] = []
    origins = {alias.name: old for old, alias in aliases.items()}
    for old, alias in aliases.items():
        spec = tensors.pop(old)
        digest = digests.pop(old)
        tensors[alias.name] = spec._replace(name=alias.name, shape=alias.shape)
        same = alias.shape == spec.shape
        digests[alias.name] = digest if same else tensor_digest(spec.dtype, alias.shape, found.payloads[old])
        if old in nonfinite:
            nonfinite[alias.name] = nonfinite.pop(old)
    averages = [n for n in tensors if n.startswith(_AVERAGES)]
    if averages and ema != "keep":
        if ema == "use":
            origins |= _use(tensors, digests, nonfinite, name)
        for n in averages:
            del tensors[n], digests[n]
            nonfinite.pop(n, None)
    elif ema == "use":
        raise RecipeError(f"{name} keeps no running averages (EMA) to use", hint="leave out ema:")
    elif averages:
        notes.append(f"{name} keeps running averages (EMA) beside its weights: `ema: use` or `ema: drop` chooses")
    changed = bool(aliases) or (bool(averages) and ema != "keep")
    model = printable(model_digest(digests.items())) if changed else found.model
    return Adapted(architecture, tensors, digests, nonfinite, model, tuple(notes), origins)


@lru_cache(maxsize=8)  # the sources of a merge mostly have the same tensors
def _recognised(shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> tuple[Architecture, Mapping[str, Alias]]:
    architecture, _, aliases = recognise(dict(shapes))
    return architecture, aliases


def _use(
    tensors: dict[str, TensorSpec], digests: dict[str, bytes], nonfinite: dict[str, int], name: str
) -> dict[str, str]:
    """Averages in the place of weights; returns which tensor is whose average."""
    pairs = ema_names(tensors)
    if not pairs:
        raise RecipeError(f"{name}: its running averages (EMA) are of no weight that the file has")
    for average, weight in pairs.items():
        tensors[weight] = tensors[average]._replace(name=weight)
        digests[weight] = digests[average]
        nonfinite.pop(weight, None)
        if average in nonfinite:
            nonfinite[weight] = nonfinite[average]
    return {weight: average for average, weight in pairs.items()}
