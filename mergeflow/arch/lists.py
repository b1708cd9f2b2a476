"""Lists of block weights as people paste them, with or without BASE in front.

The forms that an architecture knows are in its data file. Lists that SD 1's tools wrote are read for other UNets too
(`layout`): their blocks are taken by name, as supermerger does it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction

from mergeflow.arch.base import Architecture
from mergeflow.arch.blocks import BASE, Layout, NumberList
from mergeflow.errors import RecipeError

NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,2})?")
SEPARATOR = re.compile(r"\s*[,;，、]\s*|\s+")
LONGEST = 40


def mbw(
    text: str, architecture: Architecture, *, base: bool = False, layout: Architecture | None = None
) -> Mapping[str, Fraction]:
    """The number of each block, front to back.

    `base` says that the number of BASE is given apart: then what lies outside the network is left out, but for the
    blocks there that have a number in the list. `layout` is the architecture that the list was written for.

    Raises:
        RecipeError: text that is no list of numbers, or of a length that this architecture has no list of.
    """
    source = layout or architecture
    numbers = _numbers(text)
    form = _form(len(numbers), source, base, architecture)
    table = dict(zip(form.names, numbers, strict=True))
    apart = form.rest if base or form.rest is not None else table[BASE]
    if apart is not None:
        table = dict.fromkeys(filter(source.layout.is_outside, source.blocks), apart) | table
    if base:
        table.pop(BASE, None)
    return fitted(table, source, architecture)


def fitted(table: Mapping[str, Fraction], source: Architecture, target: Architecture) -> Mapping[str, Fraction]:
    """A table for one architecture, by name of block, for another one.

    Blocks that only the target has outside its network (a VAE of its own) get 0: so does supermerger, with SD 1's
    lists on SDXL.

    Raises:
        RecipeError: the target has blocks in its network that the source has not.
    """
    if source.blocks != target.blocks:
        network = [b for b in target.blocks if not target.layout.is_outside(b)]
        if not network or not set(network) <= set(source.blocks):
            raise RecipeError(
                f"numbers for the blocks of {source.title} do not fit {target.title}",
                hint=f"{target.name} has the blocks {spoken(target.layout)}" if target.blocks else "",
            )
        new = [b for b in target.blocks if b not in source.blocks]
        table = {**dict.fromkeys(new, Fraction(0)), **table}
    return {block: table[block] for block in target.blocks if block in table}


def spoken(layout: Layout) -> str:
    """BASE, IN00–IN11, M00, OUT00–OUT11."""
    return ", ".join(entry.replace("-", "–") for entry in layout.order)


def _numbers(text: str) -> list[Fraction]:
    inner = text.strip().removeprefix("[").removesuffix("]").strip()
    words = SEPARATOR.split(inner.removesuffix(",").rstrip())
    if words == [""]:
        raise RecipeError("a list of block weights without numbers")
    for i, word in enumerate(words, 1):
        if not word:
            raise RecipeError(f"number {i} of {len(words)} is missing: there is nothing between two commas")
        if not NUMBER.fullmatch(word) or len(word) > LONGEST:
            at = f" after {words[i - 2]}" if i > 1 else ""
            hint = "where two numbers grew together, a comma was lost" if word.count(".") > 1 else ""
            if len(words) == 1 and word[:1].isalpha():
                hint = f"the name of a preset goes under preset: {word}"
            raise RecipeError(f"{word} (number {i} of {len(words)}{at}) is not a number", hint=hint)
    return [Fraction(word) for word in words]


def _form(count: int, source: Architecture, base: bool, target: Architecture) -> NumberList:
    forms = source.layout.lists
    if not forms:
        raise RecipeError(
            f"{source.name} has no customary list of block weights",
            hint=f"write the numbers by block: {spoken(source.layout)}" if source.blocks else "",
        )
    form = next((f for f in forms if len(f.names) == count), None)
    if form is None:
        raise RecipeError(f"{count} numbers; {_accepted(source, forms)}", hint=_guess(count, forms, source, target))
    if form.needs_base and not base:
        raise RecipeError(
            f"{count} numbers are for {_span(form.names)}, and BASE is not among them",
            hint=f"give BASE apart, for example BASE: 0, or put its number in front ({count + 1} numbers)",
        )
    return form


def _accepted(source: Architecture, forms: Sequence[NumberList]) -> str:
    """sd1 takes 25 (IN00…OUT11, with BASE given apart) or 26 (BASE first)."""
    parts = []
    for form in forms:
        if form.needs_base:
            parts.append(f"{len(form.names)} ({_span(form.names)}, with BASE given apart)")
        elif form.names[0] == BASE:
            last = form.names[-1]
            parts.append(f"{len(form.names)} (BASE first{f', {last} last' if source.layout.is_outside(last) else ''})")
        else:
            parts.append(f"{len(form.names)} ({_span(form.names)})")
    listed = ", ".join(parts[:-1]) + (" or " if len(parts) > 1 else "") + parts[-1]
    return f"{source.name} takes {listed}"


def _span(names: Sequence[str]) -> str:
    return f"{names[0]}…{names[-1]}"


def _guess(count: int, forms: Sequence[NumberList], source: Architecture, target: Architecture) -> str:
    counts = [len(form.names) for form in forms]
    if count in (25, 26) and source is target and {"IN00", "M00", "OUT00"} <= set(target.blocks):
        return (
            f"{count} numbers are a list for SD 1: with `blocks: sd1` those of {spoken(target.layout)} are taken from "
            "it by name"
        )
    if count + 1 == min(counts):
        return "one is missing, or a comma was lost in copying"
    if count - 1 == max(counts):
        return "there is one too many"
    if count < min(counts):
        return f"{min(counts) - count} are missing"
    if count > max(counts):
        return f"there are {count - max(counts)} too many"
    return "some are missing, or there are too many: count them again"
