"""mergekit's arithmetic, operation by operation (`methods.mergekit`), of what is no sum of differences: trimming,
nearswap and RAM."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from mergeflow.ir.kernels import Range
from mergeflow.ir.numbers import ONE, Number
from mergeflow.methods.breadcrumbs import Band, only
from mergeflow.methods.kernels import Given, Passes, kernel
from mergeflow.methods.mergekit import Width, rounding, single, total
from mergeflow.methods.registry import Delta, Deltas, Model, Share, method
from mergeflow.methods.shares import unweighted

if TYPE_CHECKING:
    import torch

    from mergeflow.methods.mergekit import Round

_SHARE = Range(Fraction(0), Fraction(1))
_LEAST_DISTANCE = 1e-6  # of values that are divided by


# -- differences made sparse -------------------------------------------------------------------------------------------


def _band(given: Given, passes: Passes) -> Band | None:
    """Shares are multiplied and cut off in Python's floats, as there."""
    from mergeflow.methods.selection import kth_magnitude

    n, density, gamma = passes.elements, given.arguments["density"], given.arguments.get("gamma")
    keep, dropped = int(float(density) * n), 0
    if gamma is None:
        keep = max(1, keep)
    else:
        dropped = n - keep - max(0, n - keep - int(float(gamma) * n))
    if density >= 1:
        keep, dropped = n, 0
    if not density or not keep:
        return None
    low = 0 if dropped + keep == n else kth_magnitude(passes, dropped + keep, given.compute)
    return Band(low, kth_magnitude(passes, dropped + 1, given.compute))


def _kept(given: Given, found: Band | None, tiles: Sequence[torch.Tensor], begin: int, out: torch.Tensor) -> None:
    from mergeflow.methods.selection import magnitude_bits

    if found is None:
        out.zero_()
        return
    size = magnitude_bits(tiles[0], given.compute)
    only(given.compute, tiles[0], (size >= found.low) & (size <= found.high), out)


TRIM = kernel(
    "mergekit_trim",
    cost=12.0,
    version=1,
    operands=("delta",),
    result="delta",
    measure=_band,
    apply=_kept,
    ranges={"density": _SHARE, "gamma": _SHARE},
    zeros=True,
)


@method(TRIM)
def mergekit_trim(delta: Delta, density: Share, gamma: Share | None = None) -> Delta:
    """delta where |delta| is among the `density` share of largest ones that follows its `gamma` share, else 0

    Without gamma `ties_trim` (arXiv:2306.01708), with it `breadcrumbs_trim` (arXiv:2312.06795), with mergekit's counts:
    of n values ⌊density·n⌋ are kept and up to ⌊gamma·n⌋ larger ones dropped, fewer where there are not so many; the
    products are those of Python's floats, and with a density of 1 all is kept. Values as large as the first or the last
    one kept are kept too; which of them mergekit keeps depends on how its sort works on the processor at hand.

    Example: `base + mergekit_trim(a - base, 0.85, gamma=0.05)`
    """
    return TRIM(delta, density=density, gamma=gamma)


# -- nearswap ----------------------------------------------------------------------------------------------------------


def _swapped(given: Given, found: None, tiles: Sequence[torch.Tensor], begin: int, out: torch.Tensor) -> None:
    to = rounding(given)
    a, b = (to(x.float()) for x in tiles)
    distance = to((a - b).abs()).clamp(min=to(single(_LEAST_DISTANCE)))
    share = to(to(1 / distance) * single(given.arguments["t"])).clamp(min=0, max=1)
    out.copy_(to(to(share * b) + to(to(1 - share) * a)))


SWAP = kernel(
    "mergekit_nearswap",
    cost=10.0,
    version=1,
    operands=("model", "model"),
    result="model",
    apply=_swapped,
)


@method(SWAP)
def mergekit_nearswap(a: Model, b: Model, t: Number, dtype: Width) -> Model:
    """b·s + a·(1 − s), s = min(1, (1/max(|a − b|, 1e-6))·t), each operation rounded to the dtype

    `nearswap` as mergekit computes it (alchemonaut 2024; no paper).

    Example: `mergekit_nearswap(a, b, 0.001, dtype=float32)`
    """
    return SWAP(a, b, t=t, dtype=dtype)


# -- RAM ---------------------------------------------------------------------------------------------------------------


def _active(given: Given, tiles: Sequence[torch.Tensor], to: Round) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Where each difference is large enough to count, and how many are."""
    import torch

    least = to(single(given.arguments["epsilon"]))
    active = [to(x.float()).abs() > least for x in tiles]
    count = torch.zeros_like(active[0], dtype=torch.float32)
    for yes in active:
        count += yes
    return active, count


def _reinforced(
    given: Given, found: Sequence[float] | None, tiles: Sequence[torch.Tensor], begin: int, out: torch.Tensor
) -> None:
    to = rounding(given)
    active, count = _active(given, tiles, to)
    parts = []
    for i, (x, yes) in enumerate(zip(tiles, active, strict=True)):
        value = to(x.float()) * yes
        alone = value if found is None else value * single(found[i])
        parts.append(alone.where(count == 1, to(value / count.clamp(min=1))))
    out.copy_(total(parts, to if found is None else lambda x: x))


RAM = kernel(
    "mergekit_ram",
    cost=10.0,
    version=1,
    operands=("delta",),
    many=True,
    result="delta",
    apply=_reinforced,
    ranges={"epsilon": Range(Fraction(0))},
    zeros=True,
)


@method(RAM)
def mergekit_ram(deltas: Deltas, dtype: Width, epsilon: Number = Fraction(1, 100_000)) -> Delta:
    """the difference where one alone is above `epsilon`, the mean of those that are, rounded to the dtype

    `ram` (arXiv:2601.13572) as mergekit computes it: each is divided by their number before they are added up.

    Example: `base + mergekit_ram([a - base, b - base], dtype=float16)`
    """
    unweighted(deltas, "mergekit_ram", "what is alone is told from the differences")
    return RAM(*(item.model for item in deltas), dtype=dtype, epsilon=epsilon)


def _overlaps(given: Given, passes: Passes) -> list[float]:
    """What a difference is multiplied with where it is alone, one number for each. Counts are exact; quotients are of
    float32."""
    shared, alone = [0] * (count := len(given.weights)), [0] * count
    to = rounding(given)
    for tiles in passes.tiles():
        active, together = _active(given, tiles, to)
        for i, yes in enumerate(active):
            shared[i] += int((yes & (together > 1)).sum())
            alone[i] += int((yes & (together == 1)).sum())
    r, most, least = (single(given.arguments[name]) for name in ("r", "most", "epsilon"))
    ratios = [single(s) / single(a).clamp(min=least) for s, a in zip(shared, alone, strict=True)]
    return [float(1 + r * ratio.clamp(min=single(0), max=most)) for ratio in ratios]


RAM_PLUS = kernel(
    "mergekit_ram_plus",
    cost=20.0,
    version=1,
    operands=("delta",),
    many=True,
    result="delta",
    measure=_overlaps,
    apply=_reinforced,
    ranges={"epsilon": Range(Fraction(0))},
    zeros=True,
)


@method(RAM_PLUS)
def mergekit_ram_plus(
    deltas: Deltas,
    dtype: Width,
    r: Number = Fraction(1, 10),
    most: Number = Fraction(1, 5),
    epsilon: Number = Fraction(1, 100_000),
) -> Delta:
    """`mergekit_ram`, where what one alone has is multiplied by 1 + r·min(shared / alone, most), tensor by tensor

    `ram_plus` (arXiv:2601.13572) as mergekit's `ramplus_tl` computes it: `shared` is how many values of that difference
    others have too, `alone` how many it has for itself. Of half types the sum is one of float32, and is rounded with
    the base.

    Example: `base + mergekit_ram_plus([a - base, b - base], dtype=float16)`
    """
    unweighted(deltas, "mergekit_ram_plus", "what is alone is told from the differences")
    ones = [ONE] * len(deltas)
    return RAM_PLUS(*(item.model for item in deltas), weights=ones, dtype=dtype, r=r, most=most, epsilon=epsilon)
