"""Files that are a part of a model (a VAE, a text encoder): under the names of the model that they are put into, and
never taken for a whole one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from mergeflow.arch import VAE, Architecture, canonical
from mergeflow.arch.contents import FIRST
from mergeflow.errors import RecipeError
from mergeflow.plan.facts import Facts, SourceFacts


def at_home(facts: Facts, sources: Iterable[int], architecture: Architecture) -> Facts:
    """The facts with the parts among `sources` under the names of `architecture`, where all their tensors have one."""
    moved = {i: _moved(facts[i], architecture) for i in sources if facts[i].kind is not None}
    return {**facts, **moved} if any(moved[i] is not facts[i] for i in moved) else facts


def _moved(part: SourceFacts, architecture: Architecture) -> SourceFacts:
    if part.architecture.name == architecture.name or not architecture.component_names:
        return part
    shapes = {name: spec.shape for name, spec in part.tensors.items()}
    aliases = canonical(architecture, shapes)
    names = {name: aliases[name].name if name in aliases else name for name in shapes}
    same_shapes = all(alias.shape == shapes[name] for name, alias in aliases.items())
    if not same_shapes or any(architecture.component(name) is None for name in names.values()):
        return part
    before = {new: old for old, new in names.items()}
    return replace(
        part,
        tensors={names[name]: spec._replace(name=names[name]) for name, spec in part.tensors.items()},
        digests={names[name]: digest for name, digest in part.digests.items()},
        nonfinite={names[name]: count for name, count in part.nonfinite.items()},
        architecture=architecture,
        sample=lambda name: part.sample(before.get(name, name)),
    )


def check_parts(summed: Iterable[SourceFacts]) -> None:
    """Refuse sums of whole models and parts.

    Raises:
        RecipeError: with what the part is, and what can be done with it.
    """
    by_kind: dict[str, SourceFacts] = {}
    for model in summed:
        by_kind.setdefault(model.kind.name if model.kind is not None else "", model)
    if len(by_kind) < 2:
        return
    one, other = list(by_kind.values())[:2]
    part, rest = (other, one) if one.kind is None else (one, other)
    assert part.kind is not None
    what = rest.kind.title if rest.kind is not None else "a model"
    raise RecipeError(
        f"{part.name} is {part.kind.told} and {rest.name} is {what}: they cannot be merged", hint=_way_out(part, rest)
    )


def check_fit(
    components: Iterable[str], architecture: Architecture, recipient: SourceFacts, donor: SourceFacts
) -> None:
    """Refuse a component whose tensors have other shapes than those they take the place of. A network may be of a
    variant that takes more channels in.

    Raises:
        RecipeError: with the tensor.
    """
    chosen = list(components)
    for name, spec in donor.tensors.items():
        own = recipient.tensors.get(name)
        if own is None or own.shape == spec.shape or name in FIRST:
            continue
        part = next((c for c in chosen if architecture.matches(c, name)), None)
        if part is not None:
            theirs, ours = ("×".join(map(str, s.shape)) or "scalar" for s in (spec, own))
            raise RecipeError(
                f"replace: {part}: {donor.name} does not fit {recipient.name}: {name} is {theirs}, and {ours} here",
                hint="a component is taken from a model of the same architecture",
            )


def _way_out(part: SourceFacts, other: SourceFacts) -> str:
    assert part.kind is not None
    if other.kind is not None:
        return "`mergeflow inspect FILE` shows what a file is"
    if part.kind.name == VAE:
        return f"`replace: {{ vae: {part.name} }}` in a step or an output puts it into a model"
    return part.kind.use
