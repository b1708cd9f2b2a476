"""What must be a model and what a difference, and how to make it one."""

from __future__ import annotations

from fractions import Fraction

from mergeflow.errors import Place, RecipeError
from mergeflow.ir.kernels import Kernel
from mergeflow.ir.nodes import Named, Node
from mergeflow.ir.numbers import ONE, decimal


def check_side(kernel: Kernel, position: int, degree: Fraction, delta: bool, operand: Node) -> None:
    """Refuse a model where a kernel takes a difference, and the other way round."""
    side = kernel.side(position)
    if (side == "delta" and degree == 0 and delta) or (side == "model" and degree == 1 and not delta):
        return
    what = f"the step {operand.name}" if isinstance(operand, Named) else f"its operand {position + 1}"
    if side == "delta":
        found = "is a model" if degree == 1 else f"has shares that add up to {decimal(degree)}"
        hint = "give it the difference from the model it was trained from: a - base"
        raise RecipeError(f"{kernel.name} takes differences of models, and {what} {found}", hint=hint)
    found = "is a difference" if degree == 0 else f"has shares that add up to {decimal(degree)}"
    raise RecipeError(f"{kernel.name} takes models, and {what} {found}", hint="add it to a model first: base + x")


def check_degree(name: str, place: Place, degree: Fraction) -> None:
    """Refuse what is neither a model nor a difference, and say how to make it one."""
    if degree is ONE or degree in (0, 1):
        return
    shown = decimal(degree)
    if degree == 2:
        raise RecipeError(
            f"{name} adds two whole models: the shares add up to 2, a model needs 1, a difference 0",
            place=place,
            hint="add a difference, as in a + (b - base), or mix, as in a*0.5 + b*0.5; "
            "on purpose: linear([a, b], normalize=false)",
        )
    raise RecipeError(
        f"the shares of {name} add up to {shown}; a model needs 1, a difference 0",
        place=place,
        hint="make them add up, as in a*0.5 + b*0.5, or let linear([a @ 0.7, b @ 0.4], normalize=true) divide by their "
        "sum; on purpose: linear(…, normalize=false) or scale(x, k)",
    )
