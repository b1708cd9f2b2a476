"""Detail, contrast and colour of what a Stable Diffusion model draws, by the first and last of its tensors."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

from mergeflow.ir.numbers import ZERO, Number
from mergeflow.methods.kernels import Given, kernel
from mergeflow.methods.registry import Model, method

if TYPE_CHECKING:
    import torch

_UNET = "model.diffusion_model."
_SCALED = {  # which number, and how much one of it adds to a factor of 1
    _UNET + "input_blocks.0.0.weight": ("first", Fraction(-1, 100)),
    _UNET + "input_blocks.0.0.bias": ("first", Fraction(1, 50)),
    _UNET + "out.0.weight": ("out", Fraction(-1, 100)),
    _UNET + "out.0.bias": ("out", Fraction(1, 50)),
    _UNET + "out.2.weight": ("out2", Fraction(-1, 100)),
}
_SHIFTED = _UNET + "out.2.bias"
_STEP = Fraction(1, 50)
_THIRD = Fraction(1, 3)
# what each of the four numbers adds to the three latent channels after the first
_COLOURS: dict[str, tuple[tuple[int | Fraction, ...], ...]] = {
    "sd1": ((-1, _THIRD, 2 * _THIRD), (1, 1, 0), (0, -1, -1), (1, 0, 1)),
    "sdxl": ((0, 0, 1), (1, 0, 0), (-1, -1, 0), (-1, 1, 0)),
}


def _adjusted(given: Given, found: None, tiles: Sequence[torch.Tensor], begin: int, out: torch.Tensor) -> None:
    import torch

    if given.tensor in _SCALED:
        name, step = _SCALED[given.tensor]
        factor = 1 + step * given.arguments[name]
        torch.mul(tiles[0], torch.tensor(float(factor), dtype=out.dtype), out=out).add_(0.0)
        return
    shifts = _shifts(given)[begin : begin + out.numel()]
    out.copy_(tiles[0])
    out[: len(shifts)].add_(torch.tensor([float(x) for x in shifts], dtype=out.dtype))


def _shifts(given: Given) -> list[Fraction]:
    """Of the four latent channels."""
    numbers = [given.arguments[name] for name in ("brightness", "col1", "col2", "col3")]
    table = _COLOURS[str(given.options["family"])]
    mixed = [sum((n * v for n, v in zip(numbers, column, strict=True)), ZERO) for column in zip(*table, strict=True)]
    return [_STEP * x for x in (given.arguments["contrast"], *mixed)]


ADJUST = kernel(
    "adjust",
    version=1,
    operands=("model",),
    result="model",
    apply=_adjusted,
    only=(*_SCALED, _SHIFTED),
)


@method(ADJUST)
def adjust(
    x: Model,
    first: Number = ZERO,
    out: Number = ZERO,
    out2: Number = ZERO,
    contrast: Number = ZERO,
    brightness: Number = ZERO,
    col1: Number = ZERO,
    col2: Number = ZERO,
    col3: Number = ZERO,
    family: Literal["sd1", "sdxl"] = "sd1",
) -> Model:
    """x with a few tensors changed a little: weights·(1 − d/100), biases·(1 + d/50), the last bias + s/50

    supermerger's Adjust: its IN, OUT, OUT2, CONT, BRI and COL1 to COL3 are first, out, out2, contrast, brightness and
    col1 to col3; it has no paper. It changes detail, contrast and colours of what is drawn; useful values are from −10
    to 10. Tensors by the names that Stable Diffusion 1, 2 and XL have (no others are changed):

    - input_blocks.0.0: d = first; out.0: d = out, weights and biases; out.2.weight: d = out2;
    - out.2.bias: s = contrast in the first channel, and in the other three brightness·v1 + col1·v2 + col2·v3 + col3·v4
      with v = (−1, 1/3, 2/3), (1, 1, 0), (0, −1, −1), (1, 0, 1), or with family=sdxl (0, 0, 1), (1, 0, 0), (−1, −1, 0),
      (−1, 1, 0).

    supermerger rounds the model to its dtype first; here it is one rounding with the merge.

    Example: `adjust(a*0.5 + b*0.5, first=2, contrast=1, col1=0.5)`
    """
    return ADJUST(
        x,
        first=first,
        out=out,
        out2=out2,
        contrast=contrast,
        brightness=brightness,
        col1=col1,
        col2=col2,
        col3=col3,
        family=family,
    )
