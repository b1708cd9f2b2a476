"""Params that differ from tensor to tensor: which selector holds for which tensor. The narrowest wins.

From narrow to wide: a tensor's exact name, a name glob, a component, a group of components, `default`. The order in
the recipe never matters, so sorting or re-emitting the YAML cannot change a model.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from mergeflow.arch import Architecture
from mergeflow.errors import RecipeError, UnknownName
from mergeflow.ir.numbers import decimal
from mergeflow.plan.bind import Profile

EXACT, GLOB, COMPONENT, GROUP = 3, 2, 1, 0


@dataclass(frozen=True, slots=True)
class Table:
    """A profile over given tensors: `values[i]` for the i-th, and how many tensors each selector decided."""

    values: tuple[Fraction, ...]
    counts: tuple[tuple[str, Fraction, int], ...]


def resolve(profile: Profile, names: Sequence[str], architecture: Architecture) -> Table:
    """The profile's value for each tensor.

    Raises:
        UnknownName: a selector that is neither a component of this architecture nor a pattern.
        RecipeError: tensors that nothing covers, or two equally narrow selectors that disagree.
    """
    rank = [-1] * len(names)
    value: list[Fraction | None] = [profile.default] * len(names)
    chosen: list[str] = ["default"] * len(names)
    for selector, number, place in profile.entries:
        kind, matching = _matching(profile, selector, names, architecture)
        if not matching:
            raise RecipeError(
                f"{profile.name}: {selector!r} matches no tensor of the model",
                place=place,
                hint="`mergeflow inspect FILE` lists their names",
            )
        for i in matching:
            if rank[i] == kind and value[i] != number:
                raise RecipeError(
                    f"{profile.name}: {chosen[i]!r} and {selector!r} both say what {names[i]} gets, and disagree",
                    place=place,
                    hint="add a narrower entry for the tensors they share",
                )
            if rank[i] < kind:
                rank[i], value[i], chosen[i] = kind, number, selector
    open_ends = [name for name, v in zip(names, value, strict=True) if v is None]
    if open_ends:
        raise RecipeError(
            f"{profile.name} says nothing about {len(open_ends):,} of {len(names):,} tensors, such as {open_ends[0]}",
            place=profile.place,
            hint="add `default: 0` (or another number) for the rest",
        )
    decided = {selector: number for selector, number, _ in profile.entries}
    if profile.default is not None:
        decided["default"] = profile.default
    counts = [(selector, number, chosen.count(selector)) for selector, number in decided.items()]
    return Table(tuple(v for v in value if v is not None), tuple(counts))


def shown(table: Table) -> str:
    return ", ".join(f"{selector}: {decimal(number)} ({n:,} tensors)" for selector, number, n in table.counts)


def _matching(
    profile: Profile, selector: str, names: Sequence[str], architecture: Architecture
) -> tuple[int, list[int]]:
    if selector in architecture.component_names:
        kind = GROUP if selector in architecture.groups else COMPONENT
        return kind, [i for i, name in enumerate(names) if architecture.matches(selector, name)]
    if any(c in selector for c in "*?["):
        match = re.compile(fnmatch.translate(selector)).match
        return GLOB, [i for i, name in enumerate(names) if match(name)]
    if selector in names:
        return EXACT, [names.index(selector)]
    place = next(p for s, _, p in profile.entries if s == selector)
    raise UnknownName(
        f"component of a {architecture.title} model" if architecture.component_names else "component or tensor",
        selector,
        [*architecture.component_names, *names[:5000]],
        place=place,
        hint="selectors are components, tensor names, or patterns such as '*.attn1.*'",
    )
