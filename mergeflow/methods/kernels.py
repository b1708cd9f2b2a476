"""Kernels: formulas that are no sums, computed on the values of a tensor a tile at a time.

A kernel is declared by what planning has to know (`mergeflow.ir.kernels.Kernel`) and two plain functions over torch
tensors, which import torch inside themselves, because planning must not:

    apply(given, found, tiles, begin, out)   the result's elements from `begin` on, written into `out`
    measure(given, passes) -> found          before that, what the formula has to know of the whole tensor

`tiles` are the operands' elements there, in the compute dtype, as is `out`; they are to be read only. What `found` is,
is the kernel's own affair. Bytes must not depend on how a tensor is cut into tiles: `apply` works on each element by
itself, with multiplications and additions as separate calls, and `measure` adds up over the tiles of `passes`, which
are GRID elements long whatever the machine. Sums that torch or numpy take over a whole tile depend on the width of the
processor's vectors: `mergeflow.methods.sums` has one that does not.

A kernel is called on graph values, with numbers and options by name, and gives a graph value; a method (registry) is
what recipes call.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from mergeflow.errors import MergeflowError
from mergeflow.ir.kernels import Access, Choice, Kernel, Range, Side, Tier
from mergeflow.ir.nodes import Apply, Scaled, as_node
from mergeflow.ir.numbers import ONE, Number
from mergeflow.methods.compiled import Compiled
from mergeflow.methods.plugins import digest_of
from mergeflow.methods.tiers import on_this_machine
from mergeflow.tensors import DType

if TYPE_CHECKING:
    import torch

    Tile: TypeAlias = torch.Tensor

GRID = 1 << 16  # elements of the tiles that are measured: part of what a sum over them means


@dataclass(frozen=True, slots=True)
class Given:
    """What a kernel is applied with: its numbers (exact), weights of its operands, options; the compute dtype, how many
    elements the tensor has; of random kernels the seed and the tensor's name; the shape that the elements have."""

    arguments: Mapping[str, Fraction]
    weights: tuple[Fraction, ...]
    options: Mapping[str, Choice]
    compute: DType
    elements: int
    seed: int
    tensor: str
    shape: tuple[int, ...] = ()


class Passes(Protocol):
    """The operands of a kernel, to be gone through as often as it takes."""

    elements: int

    def tiles(self, every: int = 1) -> Iterator[Sequence[Tile]]:
        """GRID elements of each operand at a time (fewer at the end), or only of each so-manieth tile. They are to be
        read only, and hold until the next is asked for."""


Measure = Callable[[Given, Passes], Any]
ApplyTile = Callable[[Given, Any, Sequence["Tile"], int, "Tile"], None]


@dataclass(frozen=True, slots=True)
class Formula:
    """A kernel with the functions that compute it."""

    kernel: Kernel
    apply: ApplyTile
    measure: Measure | None
    compiled: Compiled | None = None

    def __call__(
        self, *operands: Scaled, weights: Sequence[Number] = (), **arguments: Number | Choice | None
    ) -> Scaled:
        """The kernel applied, as a value of the language. Arguments that are None are left out.

        Raises:
            RecipeError: a number outside its range.
        """
        numbers, options = [], []
        for name, value in arguments.items():
            if isinstance(value, str | bool):
                options.append((name, value))
            elif value is not None:
                if isinstance(value, Fraction):
                    self.kernel.check(name, value)
                numbers.append((name, value))
        return Scaled(ONE, Apply(on_this_machine(self.kernel), map(as_node, operands), numbers, weights, options))


_formulas: dict[str, Formula] = {}


def kernel(
    name: str,
    *,
    version: int,
    operands: tuple[Side, ...],
    result: Side,
    apply: ApplyTile,
    measure: Measure | None = None,
    whole: bool = False,
    compiled: Compiled | None = None,
    many: bool = False,
    ranges: Mapping[str, Range] | None = None,
    symmetric: bool = False,
    random: bool = False,
    zeros: bool = False,
    same: bool = False,
    tier: Tier = "exact",
    cost: float = 1.0,
    paired: bool = False,
    only: tuple[str, ...] = (),
) -> Formula:
    """Declare a kernel. `version` is raised when the same operands would give other bytes; what the other arguments
    say is told in `mergeflow.ir.kernels.Kernel`. `whole`: `measure` gathers whole operands (`methods.whole`).
    `compiled`: how compiled code gives the same bytes (`methods.compiled`).

    Raises:
        MergeflowError: another kernel has the name.
    """
    origin = _origin(apply, measure)
    known = _formulas.get(name)
    if known is not None and known.kernel.origin != origin:
        raise MergeflowError(
            f"two kernels are called {name}", hint="give yours a name of its own, such as mine_" + name
        )
    access: Access = "tensor" if whole else "elementwise" if measure is None else "two_phase"
    declared = Kernel(
        name, version, access, operands, many, result, ranges or {}, symmetric, random, zeros, same, tier, origin, cost,
        paired, only,
    )  # fmt: skip
    _formulas[name] = Formula(declared, apply, measure, compiled)
    return _formulas[name]


def formula(name: str) -> Formula:
    """The formula of a kernel that a plan names; planning has imported its module."""
    return _formulas[name]


def _origin(*functions: Callable[..., Any] | None) -> str:
    """What stands for the code of a kernel that does not come with mergeflow: a digest of its package's source."""
    function = next(f for f in functions if f is not None)
    module = str(function.__module__)
    if module.startswith("mergeflow."):
        return ""
    found = digest_of(module)
    if found is None:  # typed in by hand: the compiled code has to do
        codes = [inspect.unwrap(f).__code__ for f in functions if f is not None]
        found = hashlib.sha256("".join(c.co_code.hex() + repr(c.co_consts) for c in codes).encode()).hexdigest()
    return found
