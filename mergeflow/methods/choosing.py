"""Whole tensors of one model or another, as they are."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated

from mergeflow.ir.kernels import Range
from mergeflow.ir.nodes import Pick, Scaled, as_node
from mergeflow.ir.numbers import ONE, Number
from mergeflow.methods.registry import Model, Models, method
from mergeflow.methods.shares import unweighted

_FROM_1 = Range(Fraction(1), whole=True)


@method
def pick(models: Models, number: Annotated[Number, _FROM_1]) -> Model:
    """x1, x2, … or xn, tensor by tensor: the one with that number, from 1 to n

    With a param that has a value per block, component or name, parts of one model take the place of another's: no value
    is computed. The result has the tensors, integers and dtypes of the first model, and its values where the one picked
    lacks a tensor. Of differences, too: all of them, or none.

    `replace:` gives a step a whole component of another model, with its integers, dtypes and additional tensors. It is
    supermerger's weighted sum with block weights of 0 and 1, and sd-mecha's pick_component for names of any kind; no
    paper.

    Example: `pick([a, b, c], 2)`
    """
    unweighted(models, "pick", "one of the models is taken as it is")
    return Scaled(ONE, Pick([as_node(item.model) for item in models], number))


@method
def fallback(models: Models) -> Model:
    """the first of x1, x2, …, xn that has the tensor, tensor by tensor

    A model that lacks tensors is filled up from others: the result has all tensors that any of them has, each with the
    dtype and, if it holds integers, the values of the model that it is taken from. Of differences, too: all of them, or
    none. Where all have a tensor the order decides, and models after the first that has it need not fit in shape.

    sd-mecha's `fallback`, its operator |, which leaves out what no model of that architecture has; no paper.

    Example: `fallback([a, b])`
    """
    unweighted(models, "fallback", "the first model that has a tensor is taken as it is")
    return Scaled(ONE, Pick([as_node(item.model) for item in models]))
