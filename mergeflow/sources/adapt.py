"""A model under the names that its architecture uses, with the weights that the recipe asks for.

Tensors that a tool calls otherwise (NAI's text encoder, diffusers' folders, a VAE on its own) get the architecture's
names and shapes: the same bytes in the same order. `ema:` chooses among the running averages that training files keep:

    keep   they stay tensors of their own, as in the file (what A1111's merger does)
    drop   they are left out
    use    they take the place of the weights that they are averages of

A VAE has names of its own, without a model's prefix (architecture `vae`), whether it comes in a file of its own or out
of a whole model (`kind: vae`); plan.parts gives it those of the model that it is put into.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from mergeflow.arch import (
    UNKNOWN,
    VAE,
    Alias,
    Architecture,
    Header,
    Kind,
    canonical,
    ema_names,
    find,
    get,
    is_ours,
    understand,
    user_digest,
    user_files,
    vae_kind,
)
from mergeflow.digest import model_digest, printable, tensor_digest
from mergeflow.errors import RecipeError
from mergeflow.sources.identify import Identified
from mergeflow.tensors import TensorSpec

_AVERAGES = "model_ema."
_Shapes = tuple[tuple[str, tuple[int, ...]], ...]
_Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Adapted:
    """A source as the recipe sees it. `model` is the digest of what is left, under the names it has here; `origins`
    says what a tensor is called in the file, where that is something else. `kind`: None of a whole model."""

    architecture: Architecture
    kind: Kind | None
    tensors: Mapping[str, TensorSpec]
    digests: Mapping[str, bytes]
    nonfinite: Mapping[str, int]
    model: str
    notes: tuple[str, ...]
    origins: Mapping[str, str]


@dataclass(slots=True)
class _Model:
    """What is being adapted; `origins` as in Adapted."""

    tensors: dict[str, TensorSpec]
    digests: dict[str, bytes]
    nonfinite: dict[str, int]
    payloads: Mapping[str, bytes]
    origins: dict[str, str]
    changed: bool = False

    def rename(self, aliases: Mapping[str, Alias]) -> None:
        for old, alias in aliases.items():
            spec, digest = self.tensors.pop(old), self.digests.pop(old)
            origin = self.origins.pop(old, old)
            self.tensors[alias.name] = spec._replace(name=alias.name, shape=alias.shape)
            same = alias.shape == spec.shape
            self.digests[alias.name] = digest if same else tensor_digest(spec.dtype, alias.shape, self.payloads[origin])
            if old in self.nonfinite:
                self.nonfinite[alias.name] = self.nonfinite.pop(old)
            self.origins[alias.name] = origin
        self.changed |= bool(aliases)

    def remove(self, names: list[str]) -> None:
        for name in names:
            del self.tensors[name], self.digests[name]
            self.nonfinite.pop(name, None)
            self.origins.pop(name, None)
        self.changed |= bool(names)


def adapt(
    found: Identified,
    name: str,
    *,
    arch: str | None = None,
    otherwise: str | None = None,
    ema: str = "keep",
    kind: str | None = None,
) -> Adapted:
    """Rename, reshape and choose. `arch` is what the source is said to be, `otherwise` what all sources of its recipe
    are; `kind`: as in a recipe, where it is stated.

    Raises:
        RecipeError: the file is of another architecture or kind than it is said to be, or has no averages to use.
    """
    seen = identity(found)
    notes: list[str] = []
    what: Kind | None
    architecture, aliases = _stated(found, name, seen, arch, otherwise, notes)
    model = _Model(dict(found.tensors), dict(found.digests), dict(found.nonfinite), found.payloads, {})
    model.rename(aliases)
    is_vae = kind == VAE or (kind is None and architecture.name == VAE)
    _averages(model, name, ema, [] if is_vae else notes)
    if is_vae:
        architecture, what = _vae_only(model, name, architecture, seen.kind, notes)
    else:
        what = seen.kind if kind is None else None  # what is said to be a model is taken for one
    digest = printable(model_digest(model.digests.items())) if model.changed else found.model
    return Adapted(
        architecture, what, model.tensors, model.digests, model.nonfinite, digest, tuple(notes), model.origins
    )


def check_is_model(adapted: Adapted, name: str) -> None:
    """Refuse what no arithmetic of tensors makes sense of.

    Raises:
        RecipeError: it is a LoRA, an embedding or the like.
    """
    if adapted.kind is not None and not adapted.kind.merges:
        raise RecipeError(f"{name} is {adapted.kind.told}, not a model", hint=adapted.kind.use)


def identity(found: Identified) -> Header:
    """What a file is by itself."""
    shapes = tuple([(spec.name, spec.shape) for spec in found.tensors.values()])
    contents = found.contents
    return _understood(shapes, tuple(contents.other.items()), tuple(contents.extras.items()), user_digest())


@lru_cache(maxsize=8)  # the sources of a merge mostly have the same tensors
def _understood(shapes: _Shapes, other: _Pairs, extras: _Pairs, users: str) -> Header:
    return understand(dict(shapes), dict(other), dict(extras))


def _stated(
    found: Identified,
    name: str,
    seen: Header,
    arch: str | None,
    otherwise: str | None,
    notes: list[str],
) -> tuple[Architecture, Mapping[str, Alias]]:
    """The architecture by what is seen and what is said. A user's own may see more in a file than ours do, so saying so
    is enough; one of ours must not contradict what is seen."""
    architecture, aliases = seen.architecture, seen.aliases
    if architecture.name == VAE and VAE not in (arch, otherwise):
        if arch is not None:
            find(arch)  # a VAE for such models; it must exist
        return architecture, aliases
    shapes = {spec.name: spec.shape for spec in found.tensors.values()}
    if arch is not None:
        stated = find(arch)
        if is_ours(stated.name) and architecture is not UNKNOWN and architecture.name != stated.name:
            raise RecipeError(
                f"{name} is said to be {stated.title}, but looks like {architecture.title}",
                hint=f"write arch: {architecture.name}, or leave it out",
            )
    elif otherwise is not None:
        stated = find(otherwise)
        if is_ours(stated.name) and architecture is not UNKNOWN:
            return architecture, aliases  # whether it is what the recipe says is asked of the result
    else:
        if not is_ours(architecture.name) and architecture is not UNKNOWN:
            file = user_files()[architecture.name]
            notes.append(
                f"{name} is {architecture.title} by {file}, which others do not have: `arch:` in the recipe says so"
            )
        return architecture, aliases
    return stated, aliases if stated == architecture else canonical(stated, shapes)


def _averages(model: _Model, name: str, ema: str, notes: list[str]) -> None:
    averages = [n for n in model.tensors if n.startswith(_AVERAGES)]
    if averages and ema != "keep":
        if ema == "use":
            _use(model, name)
        model.remove(averages)
    elif ema == "use":
        raise RecipeError(f"{name} keeps no running averages (EMA) to use", hint="leave out ema:")
    elif averages:
        notes.append(f"{name} keeps running averages (EMA) beside its weights: `ema: use` or `ema: drop` chooses")


def _use(model: _Model, name: str) -> None:
    """Averages in the place of weights."""
    pairs = ema_names(model.tensors)
    if not pairs:
        raise RecipeError(f"{name}: its running averages (EMA) are of no weight that the file has")
    for average, weight in pairs.items():
        model.tensors[weight] = model.tensors[average]._replace(name=weight)
        model.digests[weight] = model.digests[average]
        model.nonfinite.pop(weight, None)
        if average in model.nonfinite:
            model.nonfinite[weight] = model.nonfinite[average]
        model.origins[weight] = model.origins.get(average, average)


def _vae_only(
    model: _Model, name: str, architecture: Architecture, what: Kind | None, notes: list[str]
) -> tuple[Architecture, Kind]:
    """Leave the VAE alone, under names without a prefix.

    Raises:
        RecipeError: there is none.
    """
    others = [n for n in model.tensors if architecture.component(n) != VAE]
    if len(others) == len(model.tensors):
        is_what = what.title if what is not None else architecture.title
        raise RecipeError(
            f"{name} is said to be a VAE, but it is {is_what} and has no VAE",
            hint="`mergeflow inspect FILE` shows what a file is",
        )
    model.remove(others)
    alone = get(VAE)
    model.rename(canonical(alone, {n: spec.shape for n, spec in model.tensors.items()}))
    if others and architecture.name == VAE:
        notes.append(f"{name}: {len(others):,} tensors that are no part of the VAE are left out, such as {others[0]}")
    why = "it is recognised as one" if architecture.name == VAE else f"`kind: vae` takes only the VAE of {name}"
    return alone, vae_kind({n: spec.shape for n, spec in model.tensors.items()}, why)
