"""What must fit together for a tensor to be computed: its dtypes, its shapes, and numbers that mean something."""

from __future__ import annotations

from collections.abc import Sequence

from mergeflow.errors import RecipeError
from mergeflow.plan.facts import Facts, SourceFacts
from mergeflow.plan.program import TensorWork, Wide
from mergeflow.plan.resolve import Resolved
from mergeflow.tensors import TensorSpec

_WIDE_CHANNELS = (8, 9)  # instruct-pix2pix and inpainting; their text-to-image parents have 4


def check_operands(facts: Facts, spec: TensorSpec, primary: int, inputs: Sequence[int]) -> None:
    """Refuse arithmetic on integers and on scaled, quantised weights."""
    for i in inputs:
        source = facts[i]
        if source.tensors[spec.name].dtype.is_float:
            continue
        if tensor := source.quantised_by():
            raise _quantised(source, tensor)
        raise RecipeError(
            f"{spec.name} is {source.tensors[spec.name].dtype.label} in {source.name} and "
            f"{spec.dtype.label} in {facts[primary].name}: they cannot be mixed",
            hint="convert that file's tensor to floating point, or leave the model out of the sum",
        )


def check_shape(facts: Facts, spec: TensorSpec, primary: int, inputs: Sequence[int]) -> Wide | None:
    """None when all have the primary's shape; how to merge a wide primary with narrow others; else an error."""
    narrow = None
    for i in inputs:
        other = facts[i].tensors[spec.name].shape
        if other == spec.shape:
            continue
        if is_wide(spec.shape, other):
            narrow = other
            continue
        if is_wide(other, spec.shape):
            raise _wrong_way_round(facts, spec, primary, i, inputs)
        raise RecipeError(
            f"{spec.name} has the shape {list(other)} in {facts[i].name} and "
            f"{list(spec.shape)} in {facts[primary].name}",
            hint=_kinship(facts[primary], facts[i]),
        )
    if narrow is None:
        return None
    return Wide(spec.shape[0], spec.shape[1], narrow[1], spec.shape[2] * spec.shape[3])


def _wrong_way_round(facts: Facts, spec: TensorSpec, primary: int, wide: int, inputs: Sequence[int]) -> RecipeError:
    first, other = facts[primary], facts[wide]
    channels = other.tensors[spec.name].shape[1]
    rest = [facts[i].name for i in inputs if i not in (wide, primary)]
    fix = f"write the sum so that it begins with the wide model, {other.name}"
    if rest:
        fix = f"begin with the wide model: {other.name} + ({first.name} - {rest[0]})"
    return RecipeError(
        f"{other.name} has {channels} input channels, the first model ({first.name}) has {spec.shape[1]}: "
        f"the result could not {'inpaint' if channels == 9 else 'edit images'}",
        hint=fix,
    )


def check_quantised(resolved: Resolved, works: Sequence[TensorWork], facts: Facts) -> None:
    """Refuse arithmetic on files whose numbers mean nothing without their scales; copying them is fine."""
    computed = {source for work in works if work.computed for source, _ in work.reads}
    for i in sorted(computed):
        if tensor := facts[i].quantised_by():
            raise _quantised(facts[i], tensor)


def _quantised(source: SourceFacts, tensor: str) -> RecipeError:
    return RecipeError(
        f"{source.name} holds scaled, quantised weights (it has {tensor}): sums of them mean nothing",
        hint="use the float16 or bfloat16 file of the same model",
    )


def _kinship(a: SourceFacts, b: SourceFacts) -> str:
    if a.architecture.name == b.architecture.name:
        return "the two files are not variants of one model"
    return f"{a.name} looks like {a.architecture.title}, {b.name} like {b.architecture.title}"


def is_wide(shape: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """A first convolution [out, 9 or 8, h, w] beside [out, 4, h, w]."""
    return (
        len(shape) == len(other) == 4
        and shape[1] in _WIDE_CHANNELS
        and other[1] == 4
        and (shape[0], *shape[2:]) == (other[0], *other[2:])
    )
