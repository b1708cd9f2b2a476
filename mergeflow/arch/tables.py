"""The block-weight presets of the community: the 38 of bbc-mc's MBW and supermerger, by their formulas.

A preset is a table of decimals: each formula's value, rounded to DIGITS places (half to even), so that a table which
was printed and pasted again is the same table. VERSION goes up with any change of any number.

The tables are SD 1's, 25 blocks; other UNets take theirs by name of block, as the tools do. Two families have names
of their own: SD.Next's tables for SDXL (SDXL_…), and one more of meh (LOW_OFFSET_CUBIC_HERMITE).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from functools import cache

from mergeflow.arch.base import Architecture
from mergeflow.arch.blocks import BASE
from mergeflow.arch.lists import fitted
from mergeflow.arch.registry import get
from mergeflow.errors import UnknownName, nearest

VERSION = 1
DIGITS = 10
CLOSE = Fraction(1, 10**9)

Curve = Callable[[Fraction], Fraction]  # from 0 (IN00) to 1 (the last OUT)

# Steps, as number*times over IN00 … OUT11.
_STEPS = {
    "FLAT_25": "0.25*25",
    "FLAT_75": "0.75*25",
    "WRAP08": "1*4 0*17 1*4",
    "WRAP12": "1*6 0*13 1*6",
    "WRAP14": "1*7 0*11 1*7",
    "WRAP16": "1*8 0*9 1*8",
    "MID12_50": "0*5 0.5*14 0*6",
    "OUT07": "0*18 1*7",
    "OUT12": "0*13 1*12",
    "OUT12_5": "0*12 0.5*1 1*12",
    "RING08_SOFT": "0*5 0.5*1 1*3 0.5*1 0*5 0.5*1 1*3 0.5*1 0*5",
    "RING08_5": "0*6 1*4 0*5 1*4 0*6",
    "RING10_5": "0*5 1*5 0*5 1*5 0*5",
    "RING10_3": "0*6 1*5 0*3 1*5 0*6",
    "ALL_A": "0*25",
    "ALL_B": "1*25",
    "SDXL_FLAT_25": "0.25*19",
    "SDXL_FLAT_75": "0.75*19",
    "SDXL_WRAP08": "1*4 0*11 1*4",
    "SDXL_WRAP12": "1*6 0*7 1*6",
    "SDXL_WRAP14": "1*7 0*5 1*7",
    "SDXL_OUT07": "0*12 1*7",
    "SDXL_ALL_A": "0*19",
    "SDXL_ALL_B": "1*19",
}
_LOW_OFFSET = (
    "0 .0995159 .162881 .212321 .249228 .274996 .291016 .298680 .299383 .294515 .285470 .273639 .261514 "
    ".249388 .245727 .237637 .222901 .224306 .234635 .247675 .273210 .312025 .360905 .422635 .5"
)
_PI = Fraction("3.14159265358979323846264338327950288")


def _smooth(t: Fraction) -> Fraction:
    return t * t * (3 - 2 * t)


def _zigzag(t: Fraction) -> Fraction:
    """Up to 1 and down to 0 again, with period 2."""
    return 1 - abs(1 - t % 2)


def _cosine(t: Fraction) -> Fraction:
    """(1 + cos πt) / 2 by its series, so that no machine's cosine decides about a digit."""
    square, term, total = (_PI * t) ** 2, Fraction(1), Fraction(1)
    for k in range(2, 42, 2):
        term *= -square / (k * (k - 1))
        total += term
    return (1 + total) / 2


def _cubic(t: Fraction) -> Fraction:
    return t * (t * (t * 38 - 57) + 25) / 6


def _true_cubic(t: Fraction) -> Fraction:
    return t * (t * (t * 154 - 231) + 100) / 24 + Fraction(1, 24) if t else t


_CURVES: dict[str, Curve] = {
    "GRAD_V": lambda t: abs(1 - 2 * t),
    "SMOOTHSTEP": _smooth,
    "SMOOTHSTEP*2": lambda t: _zigzag(2 * _smooth(t)),
    "SMOOTHSTEP*3": lambda t: _zigzag(3 * _smooth(t)),
    "SMOOTHSTEP*4": lambda t: _zigzag(4 * _smooth(t)),
    "SMOOTHSTEP/2": lambda t: _smooth(_zigzag(2 * t)),
    "SMOOTHSTEP/3": lambda t: _smooth(_zigzag(3 * t)),
    "SMOOTHSTEP/4": lambda t: _smooth(_zigzag(4 * t)),
    "COSINE": _cosine,
    "TRUE_CUBIC_HERMITE": _true_cubic,
    "FAKE_CUBIC_HERMITE": _cubic,
    "SDXL_GRAD_V": lambda t: abs(1 - 2 * t),
    "SDXL_SMOOTHSTEP": _smooth,
    "SDXL_HALF_SMOOTHSTEP": lambda t: _smooth(_zigzag(2 * t)),
    "SDXL_ONE_THIRD_SMOOTHSTEP": lambda t: _smooth(3 * min(t, 1 - t)),  # it overshoots: no mistake of ours
    "SDXL_COSINE": _cosine,
    "SDXL_CUBIC_HERMITE": lambda t: t * (t * (t * 82 - 123) + 50) / 9,
}
_REVERSED = {
    "GRAD_A": "GRAD_V",
    "REVERSE-SMOOTHSTEP": "SMOOTHSTEP",
    "R_SMOOTHSTEP*2": "SMOOTHSTEP*2",
    "R_SMOOTHSTEP*3": "SMOOTHSTEP*3",
    "R_SMOOTHSTEP*4": "SMOOTHSTEP*4",
    "R_SMOOTHSTEP/2": "SMOOTHSTEP/2",
    "R_SMOOTHSTEP/3": "SMOOTHSTEP/3",
    "R_SMOOTHSTEP/4": "SMOOTHSTEP/4",
    "REVERSE_COSINE": "COSINE",
    "TRUE_REVERSE_CUBIC_HERMITE": "TRUE_CUBIC_HERMITE",
    "FAKE_REVERSE_CUBIC_HERMITE": "FAKE_CUBIC_HERMITE",
    "SDXL_GRAD_A": "SDXL_GRAD_V",
    "SDXL_REVERSE_SMOOTHSTEP": "SDXL_SMOOTHSTEP",
    "SDXL_HALF_R_SMOOTHSTEP": "SDXL_HALF_SMOOTHSTEP",
    "SDXL_ONE_THIRD_R_SMOOTHSTEP": "SDXL_ONE_THIRD_SMOOTHSTEP",
    "SDXL_REVERSE_COSINE": "SDXL_COSINE",
    "SDXL_REVERSE_CUBIC_HERMITE": "SDXL_CUBIC_HERMITE",
}
_ORDER = (
    "GRAD_V", "GRAD_A", "FLAT_25", "FLAT_75", "WRAP08", "WRAP12", "WRAP14", "WRAP16", "MID12_50", "OUT07", "OUT12",
    "OUT12_5", "RING08_SOFT", "RING08_5", "RING10_5", "RING10_3", "SMOOTHSTEP", "REVERSE-SMOOTHSTEP", "SMOOTHSTEP*2",
    "R_SMOOTHSTEP*2", "SMOOTHSTEP*3", "R_SMOOTHSTEP*3", "SMOOTHSTEP*4", "R_SMOOTHSTEP*4", "SMOOTHSTEP/2",
    "R_SMOOTHSTEP/2", "SMOOTHSTEP/3", "R_SMOOTHSTEP/3", "SMOOTHSTEP/4", "R_SMOOTHSTEP/4", "COSINE", "REVERSE_COSINE",
    "TRUE_CUBIC_HERMITE", "TRUE_REVERSE_CUBIC_HERMITE", "FAKE_CUBIC_HERMITE", "FAKE_REVERSE_CUBIC_HERMITE", "ALL_A",
    "ALL_B",
    "LOW_OFFSET_CUBIC_HERMITE",
    "SDXL_GRAD_V", "SDXL_GRAD_A", "SDXL_FLAT_25", "SDXL_FLAT_75", "SDXL_WRAP08", "SDXL_WRAP12", "SDXL_WRAP14",
    "SDXL_OUT07", "SDXL_SMOOTHSTEP", "SDXL_REVERSE_SMOOTHSTEP", "SDXL_HALF_SMOOTHSTEP", "SDXL_HALF_R_SMOOTHSTEP",
    "SDXL_ONE_THIRD_SMOOTHSTEP", "SDXL_ONE_THIRD_R_SMOOTHSTEP", "SDXL_COSINE", "SDXL_REVERSE_COSINE",
    "SDXL_CUBIC_HERMITE", "SDXL_REVERSE_CUBIC_HERMITE", "SDXL_ALL_A", "SDXL_ALL_B",
)  # fmt: skip

# What else they are called: in talk, and by meh.
_ALSO = {
    "true cubic": "TRUE_CUBIC_HERMITE",
    "true reverse cubic": "TRUE_REVERSE_CUBIC_HERMITE",
    "fake cubic": "FAKE_CUBIC_HERMITE",
    "fake reverse cubic": "FAKE_REVERSE_CUBIC_HERMITE",
    **{f"{k}{r}SMOOTHSTEP": f"{r}SMOOTHSTEP*{k}" for k in (2, 3, 4) for r in ("", "R_")},
    **{
        f"{share}_{r}SMOOTHSTEP": f"{r}SMOOTHSTEP/{k}"
        for k, share in ((2, "HALF"), (3, "ONE_THIRD"), (4, "ONE_FOURTH"))
        for r in ("", "R_")
    },
}


def presets() -> tuple[str, ...]:
    """The names of all presets: the community's 38, then those of single tools."""
    return _ORDER


def preset(name: str, architecture: Architecture, *, base: bool = False) -> Mapping[str, Fraction]:
    """The preset's number for each block, front to back. Case, spaces, `_` and `-` in the name do not matter.

    `base` says that BASE is given apart, and leaves it out.

    Raises:
        UnknownName: there is no such preset.
        RecipeError: the architecture has none of the blocks that the presets are for.
    """
    found = _names().get(_plain(name))
    if found is None:
        # Names are all in capitals; what is typed is often not, and then is like none of them.
        close = nearest("_".join(name.upper().split()), _ORDER)
        raise UnknownName("preset", name, (), hint=f"did you mean {' or '.join(close)}?" if close else "")
    source = get("sdxl" if found.startswith("SDXL_") else "sd1")
    table = fitted(_table(found), source, architecture)
    # A table for SDXL has no number for the VAE: it follows BASE, and so goes with it where BASE is given apart.
    apart = {BASE} if source.name == "sd1" else {b for b in source.blocks if source.layout.is_outside(b)}
    return {block: number for block, number in table.items() if not (base and block in apart)}


def preset_like(table: Mapping[str, Fraction], architecture: Architecture) -> str | None:
    """The preset whose numbers these are, to nine digits, whatever BASE has: for a list that somebody pasted."""
    network = [b for b in architecture.blocks if not architecture.layout.is_outside(b)]
    if not network or not {*network} <= {*table}:
        return None
    for name in _ORDER:
        numbers = _table(name)
        if all(block in numbers and abs(table[block] - numbers[block]) <= CLOSE for block in network):
            return name
    return None


@cache
def _table(name: str) -> Mapping[str, Fraction]:
    """A preset over all blocks of the architecture that it was made for."""
    source = get("sdxl" if name.startswith("SDXL_") else "sd1")
    network = [block for block in source.blocks if not source.layout.is_outside(block)]
    base = Fraction(1 if name.endswith("ALL_B") else 0)
    numbers = dict(zip(network, map(_rounded, _values(name, len(network))), strict=True))
    return {block: numbers.get(block, base) for block in source.blocks}


def _values(name: str, count: int) -> Iterable[Fraction]:
    if name in _STEPS:
        runs = (run.split("*") for run in _STEPS[name].split())
        return [Fraction(number) for number, times in runs for _ in range(int(times))]
    if name == "LOW_OFFSET_CUBIC_HERMITE":
        return map(Fraction, _LOW_OFFSET.split())
    if name in _REVERSED:
        return [1 - value for value in _values(_REVERSED[name], count)]
    return [_CURVES[name](Fraction(i, count - 1)) for i in range(count)]


def _rounded(value: Fraction) -> Fraction:
    return Fraction(round(value * 10**DIGITS), 10**DIGITS)


def _plain(name: str) -> str:
    text = name.casefold().replace("×", "*").replace("÷", "/")
    return "".join(c for c in text if c not in "_-" and not c.isspace())


@cache
def _names() -> Mapping[str, str]:
    return {_plain(also): name for also, name in _ALSO.items()} | {_plain(name): name for name in _ORDER}
