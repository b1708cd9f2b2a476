"""SCE and RAM: means of differences that count, at each value, those of the models that have something to say there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

from mergeflow.ir.kernels import Range
from mergeflow.ir.nodes import combine
from mergeflow.ir.numbers import ONE, Number
from mergeflow.methods.kernels import GRID, Given, Passes, kernel
from mergeflow.methods.registry import Model, Models, Share, method
from mergeflow.methods.shares import unweighted
from mergeflow.tensors import DType

if TYPE_CHECKING:
    import torch

_COUNT = Range(Fraction(1), whole=True)


class _Chosen(NamedTuple):
    """`least` is the variance from which on values are kept, None where none are; `shares` are of the operands."""

    least: float | None
    shares: tuple[float, ...]


class _Variances:
    """The variance of the operands, value by value, to be gone through like an operand."""

    def __init__(self, given: Given, passes: Passes) -> None:
        self._given, self._passes, self.elements = given, passes, passes.elements

    def tiles(self, every: int = 1) -> Iterator[Sequence[torch.Tensor]]:
        for tiles in self._passes.tiles(every):
            yield (_variance(self._given, _doubles(tiles)),)


def _doubles(tiles: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """In float64; those that are already are the tiles themselves, and are to be read only."""
    import torch

    return [x.to(torch.float64) for x in tiles]


def _variance(given: Given, deltas: Sequence[torch.Tensor]) -> torch.Tensor:
    """n² times the variance: Σ (δᵢ − δⱼ)² over all pairs, which is 0 exactly where all are equal."""
    import torch

    zeros = int(given.arguments["models"]) - len(deltas)  # differences that are zero everywhere are no operands
    total = torch.zeros_like(deltas[0])
    for x, y in combinations(deltas, 2):
        apart = x - y
        total.add_(apart.mul_(apart))
    if zeros:
        for x in deltas:
            total.add_(torch.mul(x, x).mul_(float(zeros)))
    return total


def _choose(given: Given, passes: Passes) -> _Chosen:
    import torch

    from mergeflow.methods.sums import Running

    least = _least(given, passes)
    count = len(given.weights)
    if least is None:
        return _Chosen(None, (0.0,) * count)
    energies = [Running() for _ in range(count)]
    product = torch.empty(GRID, dtype=torch.float64)
    for tiles in passes.tiles():
        deltas = _kept(given, least, tiles)
        for total, x in zip(energies, deltas, strict=True):
            total.add(torch.mul(x, x, out=product[: x.numel()]))
    found = [total.value() for total in energies]
    whole = sum(found)
    if not whole or not math.isfinite(whole):
        return _Chosen(least, (1 / count,) * count)
    return _Chosen(least, tuple(energy / whole for energy in found))


def _least(given: Given, passes: Passes) -> float | None:
    from mergeflow.methods.selection import kth_magnitude, value_of

    select = given.arguments["select"]
    if select == 1:
        return 0.0
    variances = _Variances(given, passes)
    k = math.floor(select * sum(int(tile.count_nonzero()) for (tile,) in variances.tiles()))
    return value_of(kth_magnitude(variances, k, DType.F64), DType.F64) if k else None


def _kept(given: Given, least: float, tiles: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The operands in float64, 0 where the variance is too small. NaN counts as larger than any number."""
    deltas = _doubles(tiles)
    if not least:
        return deltas
    variance = _variance(given, deltas)
    small = ~variance.isnan() if math.isnan(least) else variance < least
    return [x.masked_fill(small, 0.0) for x in deltas]


def _merge(given: Given, found: _Chosen, tiles: Sequence[torch.Tensor], begin: int, out: torch.Tensor) -> None:
    import torch

    if found.least is None:
        out.zero_()
        return
    deltas = _kept(given, found.least, tiles)
    sign = deltas[0].clone()
    for x in deltas[1:]:
        sign.add_(x)
    sign.sign_()
    total, under = torch.zeros_like(sign), torch.zeros_like(sign)
    for share, x in zip(found.shares, deltas, strict=True):
        agree = torch.mul(x, sign).relu_()  # |x| where x has the elected sign, else 0
        factor = torch.tensor(share, dtype=torch.float64)
        total.add_(torch.mul(agree, factor))
        under.add_(agree.sign_().mul_(factor))
    if given.options["normalize"]:
        total.div_(torch.where(under == 0, 1.0, under))
    out.copy_(total.mul_(sign).add_(0.0))  # processors differ in the sign of a zero that relu gives


SCE = kernel(
    "sce",
    cost=30.0,
    version=1,
    operands=("delta",),
    many=True,
    result="delta",
    measure=_choose,
    apply=_merge,
    ranges={"select": Range(Fraction(0), Fraction(1)), "models": _COUNT},
    symmetric=True,
    zeros=True,
)


@method(SCE)
def sce(base: Model, models: Models, select: Share = ONE, scale: Number = ONE, normalize: bool = True) -> Model:
    """base + scale·Σ aᵢδᵢ / Σ aᵢ over the δᵢ = xᵢ − base with the sign of Σ δᵢ; aᵢ = ‖δᵢ‖² / Σ ‖δⱼ‖², tensor by tensor

    Select, calculate, erase: Wan et al. 2024, "FuseChat", arXiv:2408.07990. Of the values at which the models differ
    the `select` share is kept where their variance is largest (⌊select·n⌋ of n, and all that vary as much as the last
    of them; all values, also those that do not differ, when it is 1); the aᵢ are taken over what is kept. Where Σ δᵢ is
    0 the result is the base's. normalize=false leaves out the division by Σ aᵢ.

    mergekit's `sce` divides, too; select is its select_topk. Of values that vary equally it keeps some; where Σ δᵢ is 0
    it counts the positive ones; its aᵢ are equal where the mean squares of the δᵢ add up to less than 1e-6, as those of
    light fine-tunes do. A model equal to the base counts in the variance.

    Example: `sce(base, [a, b, c], select=0.1)`
    """
    unweighted(models, "sce", "the sizes of the differences decide")
    deltas = [item.model - base for item in models]
    count = Fraction(len(deltas))
    chosen = SCE(*deltas, weights=[ONE] * len(deltas), select=select, models=count, normalize=normalize)
    return combine([base, chosen * scale])


# -- RAM ---------------------------------------------------------------------------------------------------------------


def _active(given: Given, found: None, tiles: Sequence[torch.Tensor], begin: int, out: torch.Tensor) -> None:
    import torch

    least = float(given.arguments["epsilon"])
    total = torch.zeros(out.numel(), dtype=torch.float64)
    count = torch.zeros_like(total)
    for x in _doubles(tiles):
        active = ~(x.abs() <= least)  # NaN, too
        total.add_(x.masked_fill_(~active, 0.0))
        count.add_(active)
    out.copy_(total.div_(count.clamp_(min=1.0)))


RAM = kernel(
    "ram",
    cost=10.0,
    version=1,
    operands=("delta",),
    many=True,
    result="delta",
    apply=_active,
    ranges={"epsilon": Range(Fraction(0))},
    symmetric=True,
    zeros=True,
)


@method(RAM)
def ram(base: Model, models: Models, epsilon: Number = Fraction(1, 100_000), scale: Number = ONE) -> Model:
    """base + scale·mean of those δᵢ = xᵢ − base with |δᵢ| > epsilon, value by value; base where there is none

    Reinforced agent merging, arXiv:2601.13572: what several models changed is averaged over those, what one alone
    changed is taken whole.

    As mergekit's `ram`, but for its arithmetic in the tensors' dtype. `ram_plus` makes what one alone changed larger.

    Example: `ram(base, [a, b, c])`
    """
    unweighted(models, "ram", "models count where they differ from the base, all alike")
    return combine([base, RAM(*(item.model - base for item in models), epsilon=epsilon) * scale])


def _enlarged(given: Given, passes: Passes) -> list[float]:
    """1 + r·min(most, shared / alone) for each operand: how many of its values others change, too, and how many not."""
    epsilon = float(given.arguments["epsilon"])
    shared, alone = [0] * len(given.weights), [0] * len(given.weights)
    for tiles in passes.tiles():
        active = [~(x.abs() <= epsilon) for x in tiles]
        count = sum(a.int() for a in active)
        for i, a in enumerate(active):
            mine = int((a & (count == 1)).count_nonzero())
            alone[i] += mine
            shared[i] += int(a.count_nonzero()) - mine
    r, most = given.arguments["r"], given.arguments["most"]
    return [float(1 + r * min(most, Fraction(s, u))) if u else 1.0 for s, u in zip(shared, alone, strict=True)]


def _active_plus(
    given: Given, found: Sequence[float], tiles: Sequence[torch.Tensor], begin: int, out: torch.Tensor
) -> None:
    import torch

    least = float(given.arguments["epsilon"])
    total, larger, count = (torch.zeros(out.numel(), dtype=torch.float64) for _ in range(3))
    for factor, x in zip(found, tiles, strict=True):
        active = ~(x.abs() <= least)  # NaN, too
        kept = x.to(torch.float64).masked_fill(~active, 0.0)
        total.add_(kept)
        larger.add_(kept.mul_(torch.tensor(factor, dtype=torch.float64)))
        count.add_(active)
    out.copy_(torch.where(count == 1, larger, total.div_(count.clamp(min=1.0))))


RAM_PLUS = kernel(
    "ram_plus",
    cost=15.0,
    version=1,
    operands=("delta",),
    many=True,
    result="delta",
    measure=_enlarged,
    apply=_active_plus,
    ranges={"epsilon": Range(Fraction(0)), "r": Range(Fraction(0)), "most": Range(Fraction(0))},
    symmetric=True,
    zeros=True,
)


@method(RAM_PLUS)
def ram_plus(
    base: Model,
    models: Models,
    r: Number = Fraction(1, 10),
    most: Number = Fraction(1, 5),
    epsilon: Number = Fraction(1, 100_000),
    scale: Number = ONE,
) -> Model:
    """base + scale·δ: where one δᵢ = xᵢ − base alone is above epsilon, δᵢ·(1 + r·min(most, sᵢ/uᵢ)), else as in `ram`

    Reinforced agent merging, RAM+, arXiv:2601.13572: averaging weakens what models share, so what one alone changed is
    made larger, the more the larger its share of shared values. Of the values at which |δᵢ| is above epsilon, in one
    tensor, uᵢ are its own and sᵢ are others', too. Where uᵢ is 0 there is nothing to enlarge.

    mergekit's `ramplus_tl` with its r and alpha as r and `most`, but for its arithmetic in the tensors' dtype.

    Example: `ram_plus(c, [a, b], r=0.1, most=0.2)`
    """
    unweighted(models, "ram_plus", "models count where they differ from the base, all alike")
    deltas = [item.model - base for item in models]
    merged = RAM_PLUS(*deltas, weights=[ONE] * len(deltas), epsilon=epsilon, r=r, most=most)
    return combine([base, merged * scale])


# -- MagMax ------------------------------------------------------------------------------------------------------------


def _largest(given: Given, found: None, tiles: Sequence[torch.Tensor], begin: int, out: torch.Tensor) -> None:
    """Of opposite values of one size the positive one. What is no number stays none."""
    import torch

    out.copy_(tiles[0])
    for x in tiles[1:]:
        size, other = out.abs(), x.abs()
        larger = (other > size) | ((other == size) & (x > out)) | x.isnan()
        out.copy_(torch.where(larger & ~out.isnan(), x, out))
    out.add_(0.0)


MAGMAX = kernel(
    "magmax",
    cost=5.0,
    version=1,
    operands=("delta",),
    many=True,
    result="delta",
    apply=_largest,
    symmetric=True,
    zeros=True,
)


@method(MAGMAX)
def magmax(base: Model, models: Models, scale: Number = ONE) -> Model:
    """base + scale·the one of the δᵢ = xᵢ − base with the largest |δᵢ|, value by value

    Marczak et al. 2024, "MagMax: leveraging model merging for seamless continual learning", arXiv:2407.06322. Of two
    opposite differences of one size the positive one is taken. NaN in any is NaN. mergekit and sd-mecha have none of
    this kind; fusion_bench's is the same.

    Example: `magmax(c, [a, b], scale=0.5)`
    """
    unweighted(models, "magmax", "the largest difference is taken as it is")
    return combine([base, MAGMAX(*(item.model - base for item in models)) * scale])
