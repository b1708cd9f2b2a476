"""The params of a recipe, from nodes to values: numbers, profiles, and sweeps over either or over models.

s: { sweep: [0, 0.25, 0.5] }                    x: { sweep: [nai, sfw] }
s: { sweep: { from: 0, to: 1, by: 0.25 } }      k: { sweep: { soft: { preset: RING08_SOFT }, flat: 0.3 } }
"""

from __future__ import annotations

from decimal import Decimal, localcontext
from fractions import Fraction

from mergeflow.errors import Place
from mergeflow.recipe import later, nodes
from mergeflow.recipe.expression import Expression, Instr
from mergeflow.recipe.fields import check_keys, expression, scalar
from mergeflow.recipe.model import Param
from mergeflow.recipe.profiles import A_LIST, LISTS_ARE, number, read_profile
from mergeflow.recipe.tokens import clip

RANGE_KEYS = ("from", "to", "by")
_OTHER_RANGES = frozenset({"start", "stop", "end", "step", "min", "max", "steps", "count"})  # words of other tools
MAX_VALUES = 1000  # of one sweep
_RANGE_EXAMPLE = "for example { from: 0, to: 1, by: 0.25 }"
_EXAMPLE = "for example { sweep: [0, 0.5, 1] } or { sweep: { soft: 0.2, hard: 0.8 } }"


def read_param(name: str, node: nodes.Node, place: Place) -> Param:
    if isinstance(node, nodes.Mapping):
        return read_sweep(name, node, place) if "sweep" in node.items else read_profile(name, node, place)
    if isinstance(node, nodes.Sequence):
        raise node.error(A_LIST, f"{LISTS_ARE}; one file for each number is {{ sweep: [0, 0.5, 1] }}")
    if node.is_null:
        hint = f"write {clip(name)}: 0.3; what belongs to it on lines of its own is indented further"
        raise node.error(f"the param {clip(name)} has no value", hint)
    return Param(value=number(node, f"the param {clip(name)}"), place=place)


def read_sweep(name: str, node: nodes.Mapping, place: Place) -> Param:
    """`{ sweep: … }`: a list of values, a range of numbers, or labels with values."""
    beside = next((key for key in node.items if key != "sweep"), None)
    if beside is not None:
        raise node.key(beside).error(
            f"sweep: stands alone in a param, not beside {clip(beside)}:",
            "a line of another param's profile can take its value: k: { default: s, vae: 0 }",
        )
    given = node.items["sweep"][1]
    if isinstance(given, nodes.Sequence):
        values = [read_value(name, item) for item in given.items]
    elif isinstance(given, nodes.Mapping) and any(key in given.items for key in RANGE_KEYS):
        values = _range(name, given)
    elif isinstance(given, nodes.Mapping):
        if len(given.items) > 1 and _OTHER_RANGES.issuperset(given.items):
            raise given.error(f"the range of the sweep {clip(name)} is from:, to: and by:", _RANGE_EXAMPLE)
        values = [read_value(name, value, key) for key, value in given.items.values()]
    else:
        raise given.error(f"the sweep {clip(name)} is a list, a range or a mapping of labels", _EXAMPLE)
    if not values:
        raise given.error(f"the sweep {clip(name)} has no value", _EXAMPLE)
    if len(values) > MAX_VALUES:
        raise given.error(f"the sweep {clip(name)} has {len(values):,} values; at most {MAX_VALUES:,} are read")
    return Param(sweep=tuple(values), place=place)


def read_value(name: str, node: nodes.Node, label: nodes.Scalar | None = None) -> Param:
    """One value of a sweep, with what it is called there."""
    place = (label or node).where
    if isinstance(node, nodes.Scalar):
        value = number(node, f"a value of the sweep {clip(name)}")
        return Param(value=value, label=None if label is None else label.value, place=place)
    if isinstance(node, nodes.Sequence):
        raise node.error(f"a value of the sweep {clip(name)} is a number, a model or a profile, not a list")
    if "sweep" in node.items:
        raise node.key("sweep").error("a sweep has no sweep in it", "params that are sweeps of their own make a grid")
    if label is None:
        shown = "preset: …" if "preset" in node.items else "…"
        raise node.error(
            "a profile in a sweep needs a label, for the name of the output",
            f"write {{ sweep: {{ soft: {{ {shown} }} }} }}",
        )
    return read_profile(name, node, place).model_copy(update={"label": label.value})


def _range(name: str, node: nodes.Mapping) -> list[Param]:
    """The numbers from, from + by, … up to `to`, exactly; `to` is among them when the steps lead there."""
    check_keys(node, f"the range of the sweep {clip(name)}", RANGE_KEYS, later.RANGE, name)
    missing = [key for key in RANGE_KEYS if key not in node.items]
    if missing:
        raise node.error(f"the range of the sweep {clip(name)} has no {missing[0]}:", _RANGE_EXAMPLE)
    at = {key: node.items[key][1] for key in RANGE_KEYS}
    low, high, step = (_plain_number(at[key], f"{key} of the sweep {clip(name)}") for key in RANGE_KEYS)
    if step == 0:
        raise at["by"].error("a range does not move in steps of 0")
    if (high - low) / step < 0:
        raise at["by"].error(
            f"steps of {_decimal(step)} do not lead from {_decimal(low)} to {_decimal(high)}",
            f"write by: {_decimal(-step)}, or exchange from: and to:",
        )
    count = (high - low) // step + 1
    if count > MAX_VALUES:
        raise node.error(f"the sweep {clip(name)} has {count:,} values; at most {MAX_VALUES:,} are read")
    return [_point(low + i * step, node) for i in range(count)]


def _plain_number(node: nodes.Node, what: str) -> Fraction:
    found = expression(scalar(node, what), what)
    if not found.is_number:
        raise node.error(f"{what} is a plain number", "list values that are computed: [m / 2, m, m * 2]")
    value = found.code[0].value
    assert isinstance(value, Fraction)
    return value if len(found.code) % 2 else -value  # what follows the number are signs


def _point(value: Fraction, node: nodes.Mapping) -> Param:
    return Param(value=Expression(_decimal(value), (Instr("number", value, 0),), node), place=node.where)


def _decimal(value: Fraction) -> str:
    """All digits of a number that was written as a decimal."""
    with localcontext(prec=1000):
        return format(Decimal(value.numerator) / Decimal(value.denominator), "f")
