"""Params that differ from tensor to tensor: which line of a profile holds for which tensor. The narrowest wins.

From wide to narrow: `default`; BASE; a preset or a list of block weights; then selectors in the order of arch's Rank,
up to a tensor's name. The order in the recipe never matters, so sorting or re-emitting the YAML cannot change a model.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby, repeat

from mergeflow.arch import Architecture, Rank, get, mbw, preset, preset_like, presets, select
from mergeflow.errors import Place, RecipeError, UnknownName
from mergeflow.ir.numbers import decimal
from mergeflow.plan.bound import Entry, Profile
from mergeflow.recipe import BlockList
from mergeflow.recipe.tokens import clip

NAME_THE_ARCHITECTURE = "name it with `arch:` at the top of the recipe, for example arch: sd1"
RANGE = "…"  # between the lowest and the highest number of a block
_WORD = re.compile(r"[^][\s,;，、]+")
_BY_BLOCK = (Rank.BASE, Rank.GROUP, Rank.RANGE, Rank.BLOCK)


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a profile, what it says, and for how many tensors it was the narrowest."""

    selector: str
    value: str
    tensors: int


@dataclass(frozen=True, slots=True)
class Block:
    """The numbers that the tensors of a block have: from `low` to `high`, mostly one."""

    name: str
    low: Fraction
    high: Fraction

    @property
    def value(self) -> str:
        return decimal(self.low) if self.low == self.high else f"{decimal(self.low)}{RANGE}{decimal(self.high)}"


@dataclass(frozen=True, slots=True)
class Table:
    """A profile over given tensors: `values[i]` for the i-th, and what each line decided.

    `blocks`, front to back, where the profile is one by blocks; `numbers`: those of its list or preset, and `like`: the
    preset whose numbers a pasted list has.
    """

    values: tuple[Fraction, ...]
    rows: tuple[Row, ...]
    blocks: tuple[Block, ...] = ()
    numbers: tuple[Fraction, ...] = ()
    like: str = ""


@dataclass(frozen=True, slots=True)
class _Claim:
    """What a line says of tensors, by position: equally narrow lines must agree."""

    rank: int
    line: int  # in `rows`
    label: str
    place: Place
    values: Iterable[tuple[int, Fraction]]


def resolve(profile: Profile, names: Sequence[str], architecture: Architecture) -> Table:
    """The profile's value for each tensor.

    Raises:
        UnknownName: a selector that is neither a part of this architecture nor a pattern; no such preset.
        RecipeError: tensors that nothing covers, two equally narrow selectors that disagree, a list that does not fit
            the architecture, a gradient over fewer than two blocks.
    """
    names = tuple(names)
    lines: list[tuple[str, str]] = []  # selector and value
    claims: list[_Claim] = []
    numbers: Mapping[str, Fraction] = {}
    by_block = any(len(entry.numbers) > 1 for entry in profile.entries) or profile.listed is not None
    if profile.listed is not None:
        numbers = _numbers(profile, profile.listed, architecture)
        lines.append(_list_line(profile.listed))
        of_blocks = blocks_of(names, architecture)
        values = [(i, number) for block, number in numbers.items() for i in of_blocks.get(block, ())]
        claims.append(_Claim(Rank.LISTED, 0, lines[0][0], profile.listed.place, values))
    for entry in profile.entries:
        rank, positions = _select(profile, entry, names, architecture)
        by_block |= rank % Rank.WITHIN in _BY_BLOCK or entry.selector in architecture.blocks
        values_of = _values(profile, entry, positions, names, architecture)
        claims.append(_Claim(rank, len(lines), entry.selector, entry.place, values_of))
        lines.append((entry.selector, ", ".join(map(decimal, entry.numbers))))
    value, chosen = _decided(profile, claims, names)
    if profile.default is not None:
        lines.append(("default", decimal(profile.default)))
        value = [profile.default if v is None else v for v in value]
        chosen = [len(lines) - 1 if c < 0 else c for c in chosen]
    known = [v for v in value if v is not None]
    if len(known) < len(names):
        raise _hole(profile, value, names, architecture, by_block)
    counts = Counter(chosen)
    return Table(
        tuple(known),
        tuple(Row(selector, text, counts[line]) for line, (selector, text) in enumerate(lines)),
        tuple(_blocks(known, names, architecture)) if by_block else (),
        tuple(numbers.values()),
        (preset_like(numbers, architecture) or "") if profile.listed and profile.listed.mbw is not None else "",
    )


def spans(blocks: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Blocks with what they have, those of one sort that follow on each other with the same together: IN06-IN11."""

    def sort(item: tuple[str, str]) -> tuple[str, str]:
        return item[0].rstrip("0123456789"), item[1]

    for (_, value), run in groupby(blocks, sort):
        names = [name for name, _ in run]
        yield names[0] if len(names) == 1 else f"{names[0]}-{names[-1]}", value


def blocks_of(names: Sequence[str], architecture: Architecture) -> dict[str, list[int]]:
    """The positions of each block's tensors, blocks front to back."""
    found: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        block = architecture.block(name)
        if block is not None:
            found.setdefault(block, []).append(i)
    return {block: found[block] for block in architecture.layout.sorted(found)}


def _decided(
    profile: Profile, claims: Iterable[_Claim], names: Sequence[str]
) -> tuple[list[Fraction | None], list[int]]:
    """The value of each tensor and the line it is from, the narrowest first: lines wider than that are not asked."""
    rank = [-1] * len(names)
    value: list[Fraction | None] = [None] * len(names)
    chosen = [-1] * len(names)
    labels: dict[int, str] = {}
    for claim in sorted(claims, key=lambda claim: -claim.rank):
        labels[claim.line] = claim.label
        for i, number in claim.values:
            if rank[i] < 0:
                rank[i], value[i], chosen[i] = claim.rank, number, claim.line
            elif rank[i] == claim.rank and value[i] != number:
                both = f"{clip(labels[chosen[i]], 100)!r} and {clip(claim.label, 100)!r}"
                raise RecipeError(
                    f"{profile.name}: {both} both say what {names[i]} gets, and disagree",
                    place=claim.place,
                    hint="add a narrower entry for the tensors they share",
                )
    return value, chosen


def _select(
    profile: Profile, entry: Entry, names: tuple[str, ...], architecture: Architecture
) -> tuple[int, Sequence[int]]:
    try:
        rank, positions = select(architecture, entry.selector, names, place=entry.place)
    except UnknownName:
        if architecture.component_names:
            raise
        hint = f"the architecture of the model is not known, nor are its blocks: {NAME_THE_ARCHITECTURE}"
        what = "component or tensor"
        raise UnknownName(what, entry.selector, names[:5000], place=entry.place, hint=hint) from None
    if not positions:
        raise RecipeError(
            f"{profile.name}: {clip(entry.selector, 100)!r} matches no tensor of the model",
            place=entry.place,
            hint="`mergeflow inspect FILE` lists their names",
        )
    return rank, positions


def _values(
    profile: Profile, entry: Entry, positions: Sequence[int], names: Sequence[str], architecture: Architecture
) -> Iterable[tuple[int, Fraction]]:
    """The number at each position: one for all, or those of a gradient by block. What lies outside the network is in
    no place along it, and is left to wider lines."""
    if len(entry.numbers) == 1:
        return zip(positions, repeat(entry.numbers[0]))
    along = [
        (block, [positions[i] for i in inside])
        for block, inside in blocks_of([names[i] for i in positions], architecture).items()
        if not architecture.layout.is_outside(block)
    ]
    if len(along) < 2:
        found = f"holds for {along[0][0]} alone" if along else "holds for no block"
        unknown = not architecture.component_names
        raise RecipeError(
            f"{profile.name}: a gradient runs over blocks, and {clip(entry.selector, 100)!r} {found}",
            place=entry.place,
            hint=f"the architecture of the model is not known: {NAME_THE_ARCHITECTURE}" if unknown else "",
        )
    last = len(along) - 1
    return [
        (i, interpolated(entry.numbers, Fraction(step, last))) for step, (_, inside) in enumerate(along) for i in inside
    ]


def interpolated(numbers: Sequence[Fraction], t: Fraction) -> Fraction:
    """Where a straight line through evenly spaced numbers is at t, from 0 (the first) to 1 (the last)."""
    at = t * (len(numbers) - 1)
    left = min(int(at), len(numbers) - 2)
    return numbers[left] + (numbers[left + 1] - numbers[left]) * (at - left)


def _numbers(profile: Profile, listed: BlockList, architecture: Architecture) -> Mapping[str, Fraction]:
    """The number of each block by a preset or a pasted list."""
    if not architecture.component_names:
        raise RecipeError(
            f"{profile.name} is by blocks, and the architecture of the model is not known",
            place=listed.place,
            hint=NAME_THE_ARCHITECTURE,
        )
    base = any(entry.selector == "BASE" for entry in profile.entries)
    try:
        layout = get(listed.blocks) if listed.blocks else None
        if listed.mbw is not None:
            return mbw(listed.mbw, architecture, base=base, layout=layout)
        assert listed.preset is not None
        table = preset(listed.preset, architecture, base=base)
        if layout is not None:
            _check_layout(listed.preset, layout)
        return table
    except RecipeError as error:
        if error.place is None:
            error.place = listed.place
        raise


def _check_layout(name: str, layout: Architecture) -> None:
    made_for = "sdxl" if name.strip().casefold().startswith("sdxl") else "sd1"
    if layout.name != made_for:
        own = f"SDXL_{name}"
        hint = f"{own} is the table for SDXL" if layout.name == "sdxl" and own in presets() else ""
        raise RecipeError(f"the preset {clip(name)} is a table for {made_for}, not for {layout.name}", hint=hint)


def _list_line(listed: BlockList) -> tuple[str, str]:
    if listed.mbw is None:
        return "preset", str(listed.preset)
    return "mbw", f"{len(_WORD.findall(listed.mbw))} numbers"


def _blocks(values: Sequence[Fraction], names: Sequence[str], architecture: Architecture) -> Iterator[Block]:
    for block, positions in blocks_of(names, architecture).items():
        there = {values[i] for i in positions}
        yield Block(block, min(there), max(there))


def _hole(
    profile: Profile, value: Sequence[Fraction | None], names: Sequence[str], architecture: Architecture, by_block: bool
) -> RecipeError:
    """Which tensors nothing covers: by block, where whole blocks are left open."""
    left = [i for i, v in enumerate(value) if v is None]
    count = f"{len(left):,} of {len(names):,} tensors"
    message = f"{profile.name} says nothing about {count}, such as {names[left[0]]}"
    if by_block:
        blocks = blocks_of(names, architecture)
        open_blocks = [b for b, positions in blocks.items() if all(value[i] is None for i in positions)]
        if sum(len(blocks[b]) for b in open_blocks) == len(left):
            shown = ", ".join(span for span, _ in spans((b, "") for b in open_blocks))
            message = f"{profile.name} says nothing about {shown} ({count})"
    return RecipeError(message, place=profile.place, hint="add `default: 0` (or another number) for the rest")
