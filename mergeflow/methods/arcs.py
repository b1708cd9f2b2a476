"""Means of directions: of several tensors, each taken as a point of a sphere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from typing import Literal

from mergeflow.errors import RecipeError
from mergeflow.ir.kernels import Range
from mergeflow.ir.nodes import combine
from mergeflow.methods.angles import arc, sine_and_cosine
from mergeflow.methods.compiled import Compiled, Dots
from mergeflow.methods.filters import SLERP_DELTA_VECTORS, SLERP_VECTORS
from mergeflow.methods.gram import Table, add_up, as_sum, dots, finite
from mergeflow.methods.kernels import Formula, Given, Measure, Passes, kernel
from mergeflow.methods.registry import Model, Models, Weighted, method
from mergeflow.methods.shares import shares_of
from mergeflow.methods.spherical import SLERP, STRAIGHT, shares

Vector = list[Decimal]
_DIGITS = Context(prec=40)
_NOWHERE = Decimal("1e-13")  # the squared length of a mean of unit vectors that cancel, as far as dot products can tell
_STEPS, _STILL = 256, Decimal("1e-12")  # of the Karcher mean: how many, and how short a step is the last


def _arc(given: Given, passes: Passes) -> Sequence[float]:
    """The shares of slerp; with one difference alone (the other is zero everywhere) its weight."""
    return _arc_of(given, None if len(given.weights) == 1 else dots(passes, 2))


def _arc_of(given: Given, table: Table | None) -> Sequence[float]:
    if table is None:
        return (float(given.weights[0]),)
    return shares(table[0][0], table[1][1], table[0][1], given.weights[1], STRAIGHT, mix_lengths=False)


SLERP_DELTA = kernel(
    "slerp_delta",
    cost=3.0,
    version=1,
    operands=("delta",),
    many=True,
    result="delta",
    measure=_arc,
    apply=add_up,
    compiled=Compiled(
        lambda given, table: as_sum(_arc_of(given, table)), lambda given: Dots() if len(given.weights) > 1 else None
    ),
    symmetric=True,
    zeros=True,
)


@method(SLERP, SLERP_DELTA, SLERP_VECTORS, SLERP_DELTA_VECTORS)
def nuslerp(models: Models, base: Model | None = None, along: Literal["all", "last", "first"] = "all") -> Model:
    """slerp(x1, x2, t) with t = w2 / (w1 + w2); base + slerp(x1 − base, x2 − base, t) when a base is given

    Shoemake 1985, "Animating rotation with quaternion curves", for weights (`x @ w`) and for differences: of two
    models. Where there is no angle (|cos Ω| above 1 − 2⁻⁴⁶, or a tensor of zeros) the mean is linear.

    along=all takes a tensor as one vector; `last` takes the vectors along its last axis, each with an angle of its own,
    `first` those along its first. mergekit's `nuslerp` has them as nuslerp_flatten: false, and with nuslerp_row_wise:
    true; its mean is linear where sin Ω is below 1e-8.

    Example: `nuslerp([a @ 0.7, b @ 0.3])`
    """
    if len(models) != 2:
        raise RecipeError(f"nuslerp takes two models, not {len(models)}", hint="multislerp and karcher take more")
    part = shares_of(models)
    if along != "all":
        if base is None:
            return SLERP_VECTORS(models[0].model, models[1].model, t=part[1], along=along)
        return combine([base, SLERP_DELTA_VECTORS(*(x.model - base for x in models), weights=part, along=along)])
    if base is None:
        return SLERP(models[0].model, models[1].model, t=part[1], norm="own", lerp_above=STRAIGHT)
    return combine([base, SLERP_DELTA(*(item.model - base for item in models), weights=part)])


class _Sphere:
    """The directions of the operands that have one: their cosines, and what the lengths of all come to."""

    def __init__(self, table: Table, weights: Sequence[Fraction]) -> None:
        lengths = [Decimal(table[i][i]).sqrt() for i in range(len(table))]
        self.count = len(table)
        self.used = [i for i, length in enumerate(lengths) if length]
        self.lengths = [lengths[i] for i in self.used]
        given = [_decimal(weights[i]) for i in self.used]
        self.length = sum((w * x for w, x in zip(given, self.lengths, strict=True)), Decimal(0))
        whole = sum(given, Decimal(0))
        self.weights = [w / whole for w in given] if whole else given
        self._cosines = [
            [_within(Decimal(table[i][j]) / (x * y)) for j, y in zip(self.used, self.lengths, strict=True)]
            for i, x in zip(self.used, self.lengths, strict=True)
        ]

    def along(self, a: Vector) -> Vector:
        """⟨uᵢ, Σ aⱼuⱼ⟩ for each direction uᵢ."""
        return [sum((x * c for x, c in zip(a, row, strict=True)), Decimal(0)) for row in self._cosines]

    def square(self, a: Vector) -> Decimal:
        """‖Σ aᵢuᵢ‖²"""
        return max(Decimal(0), sum((x * y for x, y in zip(a, self.along(a), strict=True)), Decimal(0)))

    def unit(self, a: Vector) -> Vector | None:
        """The direction of Σ aᵢuᵢ; None where they cancel."""
        square = self.square(a)
        if square < _NOWHERE:
            return None
        length = square.sqrt()
        return [x / length for x in a]


def _decimal(x: Fraction) -> Decimal:
    return Decimal(x.numerator) / Decimal(x.denominator)


def _within(x: Decimal) -> Decimal:
    return max(Decimal(-1), min(Decimal(1), x))


def _measured(direction: Callable[[_Sphere], Vector | None]) -> tuple[Measure, Compiled]:
    """How a kernel finds its shares, given how it finds the direction of the mean. Linear where there is none."""

    def measure(given: Given, passes: Passes) -> list[float]:
        return found(given, dots(passes, len(given.weights)))

    def found(given: Given, table: Table) -> list[float]:
        linear = [float(w) for w in given.weights]
        if not finite(table):
            return linear
        with localcontext(_DIGITS):
            sphere = _Sphere(table, given.weights)
            if len(sphere.used) < 2:
                return linear
            along = direction(sphere)
            if along is None:
                return linear
            shares = [0.0] * sphere.count
            for i, a, length in zip(sphere.used, along, sphere.lengths, strict=True):
                shares[i] = float(a * sphere.length / length)
            return shares

    return measure, Compiled(lambda given, table: as_sum(found(given, table)), lambda given: Dots())


def _tangent(sphere: _Sphere) -> Vector | None:
    """m cos‖v‖ + v sin‖v‖ / ‖v‖ with m the middle direction and v the weighed sum of what is across it."""
    middle = sphere.unit(sphere.weights)
    if middle is None:
        return None
    return _moved(sphere, middle, _across(sphere.weights, sphere.along(middle), middle))


def _karcher(sphere: _Sphere) -> Vector | None:
    """m ← exp_m(Σ wᵢ log_m(uᵢ)) from the middle direction on, until the step is short."""
    mean = sphere.unit(sphere.weights)
    for _ in range(_STEPS):
        if mean is None:
            return None
        cosines = [_within(c) for c in sphere.along(mean)]
        if any(w and c <= _STILL - 1 for w, c in zip(sphere.weights, cosines, strict=True)):
            return None  # opposite to the mean: no way there is the shortest
        pulls = []
        for w, c in zip(sphere.weights, cosines, strict=True):
            sine = ((1 - c) * (1 + c)).sqrt()
            pulls.append(w * arc(c) / sine if sine > _STILL else w)
        step = _across(pulls, cosines, mean)
        if sphere.square(step) <= _STILL * _STILL:
            return mean
        moved = _moved(sphere, mean, step)
        mean = sphere.unit(moved)  # what rounding has added to its length
    return mean


def _across(pulls: Vector, cosines: Vector, middle: Vector) -> Vector:
    """Σ pᵢ(uᵢ − ⟨uᵢ, m⟩m)"""
    along = sum((p * c for p, c in zip(pulls, cosines, strict=True)), Decimal(0))
    return [p - along * m for p, m in zip(pulls, middle, strict=True)]


def _moved(sphere: _Sphere, middle: Vector, step: Vector) -> Vector:
    """From a point of the sphere along a tangent, as far as that is long."""
    length = sphere.square(step).sqrt()
    if not length:
        return middle
    sine, cosine = sine_and_cosine(length)
    return [cosine * m + sine / length * s for m, s in zip(middle, step, strict=True)]


def _pair(
    name: str, version: int, direction: Callable[[_Sphere], Vector | None], ranges: dict[str, Range]
) -> tuple[Formula, Formula]:
    """The kernel over models and the one over differences."""
    measure, compiled = _measured(direction)
    over_models = kernel(
        name,
        cost=5.0,
        version=version,
        operands=("model",),
        many=True,
        result="model",
        measure=measure,
        apply=add_up,
        compiled=compiled,
        ranges=ranges,
        symmetric=True,
        same=True,
    )
    over_deltas = kernel(
        name + "_delta",
        cost=5.0,
        version=version,
        operands=("delta",),
        many=True,
        result="delta",
        measure=measure,
        apply=add_up,
        compiled=compiled,
        ranges=ranges,
        symmetric=True,
        zeros=True,
    )
    return over_models, over_deltas


MULTISLERP, MULTISLERP_DELTA = _pair("multislerp", 1, _tangent, {})
KARCHER, KARCHER_DELTA = _pair("karcher", 2, _karcher, {"weight": Range(Fraction(0))})


@method(MULTISLERP, MULTISLERP_DELTA)
def multislerp(models: Models, base: Model | None = None) -> Model:
    """Σ wᵢ‖xᵢ‖ · (m cos‖v‖ + v sin‖v‖ / ‖v‖), uᵢ = xᵢ / ‖xᵢ‖, m = Σ wᵢuᵢ / ‖Σ wᵢuᵢ‖, v = Σ wᵢ(uᵢ − ⟨uᵢ, m⟩m)

    Slerp of any number of models in the tangent space of their middle direction, tensor by tensor: Goddard 2024,
    mergekit's `multislerp` (no paper). With a base the xᵢ are the differences from it, and the result is added to it.
    Weights are written `x @ w`, and divided by their sum.

    A tensor of zeros has no direction: the others' decide, and its length counts as 0. Where directions cancel (two
    that are opposite), or only one has a direction, the result is Σ wᵢxᵢ. mergekit adds 1e-8 to the lengths and refuses
    more than two that cancel; its normalize_weights: false is not here.

    Example: `multislerp([a @ 0.5, b @ 0.3, c @ 0.2], base=base)`
    """
    return _mean(models, base, MULTISLERP, MULTISLERP_DELTA)


@method(KARCHER, KARCHER_DELTA)
def karcher(models: Models, base: Model | None = None) -> Model:
    """Σ wᵢ‖xᵢ‖ · the direction m with Σ wᵢ log_m(xᵢ / ‖xᵢ‖) = 0, tensor by tensor

    The Riemannian (Karcher) mean on the sphere: Karcher 1977, "Riemannian center of mass and mollifier smoothing"; for
    models arXiv:2603.04972. Found by m ← exp_m(Σ wᵢ log_m(uᵢ)) from the direction of Σ wᵢuᵢ on, until a step is
    shorter than 1e-12, 256 steps at most. With a base the xᵢ are the differences from it, and the result is added to
    it. Weights are written `x @ w`, 0 or more, and divided by their sum.

    A tensor of zeros has no direction: the others' decide, and its length counts as 0. Where directions cancel, one of
    weight is opposite to the mean, only one tensor has one, or a value is not finite, the result is Σ wᵢxᵢ. mergekit's
    `karcher` has no weights and no base, stops after 10 steps or at 1e-5, counts in the tensors' dtype, and leaves
    tensors of zeros out of the mean length.

    Example: `karcher([a, b @ 0.5, c])`
    """
    return _mean(models, base, KARCHER, KARCHER_DELTA)


def _mean(models: Sequence[Weighted], base: Model | None, whole: Formula, delta: Formula) -> Model:
    weights = shares_of(models)
    if base is None:
        return whole(*(item.model for item in models), weights=weights)
    return combine([base, delta(*(item.model - base for item in models), weights=weights)])
