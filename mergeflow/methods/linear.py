"""Linear methods: sums of models with shares. They are fused with whatever surrounds them into one normal form, so a
chain of them is computed in one pass and rounded once.

Wherever a method sums a model and differences, a tensor that one model lacks is resolved per difference.
"""

from __future__ import annotations

from fractions import Fraction

from mergeflow.errors import RecipeError
from mergeflow.ir.nodes import Free, Scaled, as_node, combine
from mergeflow.ir.numbers import ONE, Number
from mergeflow.methods.registry import Model, Models, method
from mergeflow.methods.shares import total_of, weights_of

_WAY_OUT = "write normalize=false"


@method
def weighted_sum(a: Model, b: Model, m: Number) -> Model:
    """a·(1 − m) + b·m

    m is the share of b, as in the checkpoint merger of AUTOMATIC1111's webui, supermerger and sd-mecha; the ratio of
    ComfyUI's ModelMergeSimple is that of a. Linear interpolation of weights: Wortsman et al. 2022, "Model soups",
    arXiv:2203.05482. They round in between (`options: { policy: a1111 }` repeats the first one's roundings); here
    shares are exact, and the sum is rounded once.

    Example: `weighted_sum(a, b, 0.3)`
    """
    return combine([a * (1 - m), b * m])


@method
def add_difference(a: Model, b: Model, c: Model, m: Number = ONE) -> Model:
    """a + (b − c)·m

    What b learned since c, added to a. A task vector: Ilharco et al. 2022, arXiv:2212.04089, section 2.

    As in the checkpoint merger of AUTOMATIC1111's webui, supermerger (which rounds b − c to b's dtype first), sd-mecha
    and, as ModelMergeAdd of a ModelMergeSubtract, ComfyUI; but for the roundings between, of which there are none here.

    Example: `add_difference(a, b, base, 0.5)`
    """
    return combine([a, (b - c) * m])


@method
def subtract(a: Model, b: Model) -> Model:
    """a − b

    The difference of two models, a task vector (arXiv:2212.04089). Add it to a model, times a number. sd-mecha's
    subtract; ComfyUI's ModelMergeSubtract multiplies by a number, too.

    Example: `a + subtract(b, base) * 0.5`
    """
    return combine([a, -b])


@method
def scale(x: Model, k: Number) -> Model:
    """x·k, on purpose

    Unlike `x * k` in an expression, a model scaled so still counts as a model, whatever k is. mergekit's `passthrough`
    with a scale; sd-mecha scales differences alone.

    Example: `scale(a, 0.9)`
    """
    return Scaled(ONE, Free(as_node(x * k)))


@method
def average(models: Models) -> Model:
    """(x1 + x2 + … + xn) / n

    A uniform soup: Wortsman et al. 2022, arXiv:2203.05482. Weights (`x @ w`) are refused: that is `linear`. sd-mecha's
    n_average, which rounds after each model.

    Example: `average([a, b, c])`
    """
    if any(item.weight is not None for item in models):
        raise RecipeError("average takes no weights", hint="linear([a @ 0.7, b @ 0.3]) does")
    share = Fraction(1, len(models))
    return combine([item.model * share for item in models])


@method
def linear(models: Models, normalize: bool = True) -> Model:
    """(w1·x1 + … + wn·xn) / (w1 + … + wn); without the division when normalize=false

    A soup with weights (arXiv:2203.05482). They are written `x @ w`, 1 where none is given. With normalize=false the
    sum counts as a model whatever the weights add up to. mergekit's `linear` has the same switch and default, adds up
    in float32, and makes infinities of weights that add up to 0, which are refused here.

    Example: `linear([a @ 0.5, b @ 0.3, c @ 0.2])`
    """
    weights = weights_of(models)
    if not normalize:
        return Scaled(ONE, Free(as_node(combine([i.model * w for i, w in zip(models, weights, strict=True)]))))
    total = total_of(weights, _WAY_OUT)
    return combine([item.model * (w / total) for item, w in zip(models, weights, strict=True)])


@method
def task_arithmetic(base: Model, models: Models, scale: Number = ONE, normalize: bool = False) -> Model:
    """base + scale·(w1·(x1 − base) + … + wn·(xn − base)); divided by w1 + … + wn when normalize=true

    Ilharco et al. 2022, "Editing models with task arithmetic", arXiv:2212.04089. Weights are written `x @ w`.

    mergekit's `task_arithmetic` with its lambda as scale, but for its arithmetic in the tensors' dtype.

    Example: `task_arithmetic(base, [a @ 0.5, b @ 0.7])`
    """
    weights = weights_of(models)
    factor = scale / total_of(weights, _WAY_OUT) if normalize else scale
    deltas = [(item.model - base) * (w * factor) for item, w in zip(models, weights, strict=True)]
    return combine([base, *deltas])


@method
def sum_twice(a: Model, b: Model, c: Model, m: Number, n: Number) -> Model:
    """(a·(1 − m) + b·m)·(1 − n) + c·n

    Two weighted sums, one after the other (supermerger's "sum Twice", with alpha as m and beta as n).

    Example: `sum_twice(a, b, c, 0.5, 0.2)`
    """
    return weighted_sum(weighted_sum(a, b, m), c, n)


@method
def triple_sum(a: Model, b: Model, c: Model, m: Number, n: Number) -> Model:
    """a·(1 − m − n) + b·m + c·n

    Three shares at once (supermerger's "Triple sum", with alpha as m and beta as n).

    Example: `triple_sum(a, b, c, 0.3, 0.2)`
    """
    return combine([a * (1 - m - n), b * m, c * n])
