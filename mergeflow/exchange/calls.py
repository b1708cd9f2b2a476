"""A call at the root of an expression, with each argument under the name of its parameter."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import NamedTuple

from mergeflow.methods.registry import LISTS, find
from mergeflow.recipe import Expression, Step
from mergeflow.recipe.expression import Call, Instr

DEEPEST = 100  # of an argument


class Tree(NamedTuple):
    """An instruction with its operands."""

    instr: Instr
    args: tuple[Tree, ...] = ()

    @property
    def name(self) -> str | None:
        """The name that it is, if it is one."""
        return str(self.instr.value) if self.instr.op == "name" else None


class Called(NamedTuple):
    """A method's name and its arguments by parameter; what was not given is not there."""

    method: str
    given: Mapping[str, Tree]


def tree(expression: Expression) -> Tree:
    stack: list[Tree] = []
    for instr in expression.code:
        count = _operands(instr)
        args = tuple(stack[len(stack) - count :]) if count else ()
        del stack[len(stack) - count :]
        stack.append(Tree(instr, args))
    (root,) = stack
    return root


def _operands(instr: Instr) -> int:
    value = instr.value
    if isinstance(value, Call):
        return value.positional + len(value.keywords)
    if isinstance(value, tuple):
        return len(value)
    if instr.op == "list":
        assert isinstance(value, int)
        return value
    return {"number": 0, "name": 0, "neg": 1}.get(instr.op, 2)


def called(part: Expression | Step) -> Called | None:
    """The call that a step or an expression is; None where it is something else."""
    if isinstance(part, Step):
        if part.method is not None:
            return Called(part.method, {name: tree(value) for name, value in part.arguments.items()})
        assert part.expr is not None
        part = part.expr
    root = tree(part)
    call = root.instr.value
    if not isinstance(call, Call):
        return None
    parameters = find(call.name).parameters
    positional, named = root.args[: call.positional], root.args[call.positional :]
    given = dict(zip(call.keywords, named, strict=True))
    if parameters and parameters[0].kind in LISTS and (len(positional) > 1 or not _is_list(positional[:1])):
        # average(a, b, c): what stands by itself is the list
        given[parameters[0].name] = Tree(Instr("list", len(positional), 0), positional)
        return Called(call.name, given)
    given |= dict(zip((p.name for p in parameters), positional, strict=False))
    return Called(call.name, given)


def _is_list(trees: tuple[Tree, ...]) -> bool:
    return all(tree.instr.op == "list" for tree in trees)


def number(root: Tree, names: Mapping[str, Fraction], depth: int = 0) -> Fraction | None:
    """The value of a tree of numbers; None where something in it is none, or it is deeper than anybody writes."""
    if depth > DEEPEST:
        return None
    op, value = root.instr.op, root.instr.value
    if op == "number":
        return value if isinstance(value, Fraction) else None
    if op == "name":
        return names.get(str(value))
    parts = [number(arg, names, depth + 1) for arg in root.args]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    if op == "neg":
        return -known[0]
    if op == "mul":
        return known[0] * known[1]
    if op == "div":
        return known[0] / known[1] if known[1] else None
    if op == "sum" and isinstance(value, tuple):
        return sum((sign * part for sign, part in zip(value, known, strict=True)), Fraction(0))
    return None


def items(root: Tree) -> list[tuple[Tree, Tree | None]]:
    """The models of a list with their weights."""
    trees = root.args if root.instr.op == "list" else (root,)
    return [(item.args[0], item.args[1]) if item.instr.op == "weight" else (item, None) for item in trees]
