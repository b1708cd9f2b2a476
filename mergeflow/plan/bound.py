"""A recipe with its names resolved, as data: what binding makes and all of planning reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from mergeflow.errors import Place
from mergeflow.ir.nodes import Node
from mergeflow.recipe import BlockList, Output, Param, Recipe, Source


@dataclass(frozen=True, slots=True)
class SourceRef:
    """A file that the recipe reads. `name` is what the recipe calls it (`aom2/nai` inside another recipe), `path` where
    it is: what the recipe says, until the file is looked for (build.finding)."""

    name: str
    path: Path
    declared: Source


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of a profile: one number for all that the selector holds for, or a gradient of several."""

    selector: str
    numbers: tuple[Fraction, ...]
    place: Place


@dataclass(frozen=True, slots=True)
class Profile:
    """A param that differs from tensor to tensor: its lines in no order, the preset or list by blocks beneath them, and
    what holds elsewhere."""

    name: str
    entries: tuple[Entry, ...]
    listed: BlockList | None
    default: Fraction | None
    place: Place

    @property
    def sample(self) -> Fraction:
        """Some value of it, for what must not depend on values. 0 is in almost every list and preset."""
        if self.default is not None:
            return self.default
        return self.entries[0].numbers[0] if self.entries else Fraction(0)


@dataclass(frozen=True, slots=True)
class Claim:
    """A line of `assert:` about models: two nodes whose normal forms must be equal."""

    left: Node
    right: Node
    text: str
    place: Place


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """Where an output stands among those of its `template`: the label of each sweep's value, the params that these
    values are, and the numbers that params have there. Of an output without sweeps, only the template."""

    template: str
    labels: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, Param] = field(default_factory=dict)
    numbers: Mapping[str, Fraction] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Variant:
    """A step for one choice among the sweeps that it depends on; `where` says which."""

    choice: Mapping[str, int]
    where: str
    node: Node


@dataclass(slots=True)
class Bound:
    """A recipe with all its names resolved. `numbers` and `profiles` are the params that depend on no sweep, those of
    other recipes under `name/…`; profiles that do are there for each choice, under `name[s = 0.25]`. `steps` are as
    they are with the first value of each sweep; `variants` has those that outputs use for every choice."""

    recipe: Recipe
    sources: list[SourceRef] = field(default_factory=list)
    numbers: dict[str, Fraction] = field(default_factory=dict)
    profiles: dict[str, Profile] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)  # steps and sources by name, of the recipe itself
    steps: dict[str, Node] = field(default_factory=dict)
    variants: dict[str, list[Variant]] = field(default_factory=dict)
    outputs: dict[str, tuple[Node, Output]] = field(default_factory=dict)  # by path, one for each choice
    points: dict[str, SweepPoint] = field(default_factory=dict)  # of every output
    claims: list[Claim] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)  # every recipe file that was read
    unused: tuple[str, ...] = ()  # params of the recipe that no output and no assertion uses

    def kept_steps(self) -> list[tuple[str, Node]]:
        """The steps with `keep: true`, for every choice among sweeps."""
        found: list[tuple[str, Node]] = []
        for name, step in self.recipe.steps.items():
            if step.keep:
                variants = [(f"{name}, {v.where}" if v.where else name, v.node) for v in self.variants.get(name, ())]
                found += variants or [(name, self.steps[name])]
        return found
