"""What kernels come to, as torch calls on the memory of an accelerator: the same bytes as _kernels.c.

Operations are calls that IEEE 754 defines, element by element. A k-th magnitude is unique, however it is found; running
sums are taken in the order of the elements (`mergeflow.methods.selection`, `.gram`, `.sums` do the same on the CPU).
Numbers lie on the device: by those of the CPU torch divides by way of a reciprocal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from mergeflow.methods.compiled import Elect, Sum, Trim
from mergeflow.methods.gram import AT_ONCE
from mergeflow.methods.kernels import GRID
from mergeflow.methods.sums import Running
from mergeflow.tensors import DType

BITS = {DType.F32: torch.int32, DType.F64: torch.int64}
_MAGNITUDE = {DType.F32: 0x7FFF_FFFF, DType.F64: 0x7FFF_FFFF_FFFF_FFFF}
_NAN = {DType.F32: 0x7F80_0001, DType.F64: 0x7FF0_0000_0000_0001}  # what every NaN counts as
_SMALL = 1 << 14  # magnitudes that one processor of a card selects from faster than all of them count
Number = Callable[[float], torch.Tensor]  # one in the compute dtype, on the device
Spans = Iterable[tuple[int, list[torch.Tensor]]]  # (first element, a kernel's operands from there on)
Seen = Callable[[], Iterator[tuple[int, list[torch.Tensor]]]]


def added(what: Sum, operands: Sequence[torch.Tensor], number: Number) -> torch.Tensor:
    total: torch.Tensor | None = None
    for k, share in what.terms:
        part = operands[k] * number(share)
        total = part if total is None else total.add_(part)
    return torch.zeros_like(operands[0]) if total is None else total


def trimmed(what: Trim, x: torch.Tensor, number: Number) -> torch.Tensor:
    if what.above is None:
        return torch.zeros_like(x)
    return torch.where(x.abs() <= number(what.above), number(0.0), x)  # NaN stays


def elected(what: Elect, operands: Sequence[torch.Tensor], number: Number) -> torch.Tensor:
    """The election of TIES, call by call as `mergeflow.methods.consensus` has it."""
    weighed = [x if w == 1 else x * number(w) for x, w in zip(operands, what.shares, strict=True)]
    sign = torch.sign(weighed[0]) if what.by_count else weighed[0].clone()
    for x in weighed[1:]:
        sign.add_(torch.sign(x) if what.by_count else x)
    sign.sign_()
    total, count = torch.zeros_like(sign), torch.zeros_like(sign)
    for x, w in zip(weighed, what.shares, strict=True):
        agree = (x * sign).relu_()  # |x| where x has the elected sign, else 0
        total.add_(agree)
        if what.mean:
            agree.sign_()
            count.add_(agree if w == 1 else agree.mul_(number(abs(w))))
    if what.mean:
        least = min((abs(w) for w in what.shares if w), default=1.0)
        total.div_(torch.maximum(count, number(least)))  # nobody agrees: 0 / something
    elif what.divisor != 1:
        total.div_(number(what.divisor))
    return total.mul_(sign).add_(number(0.0))


def rank(k: int, spans: Spans, bits: torch.Tensor, compute: DType) -> int:
    """The bits of the k-th largest magnitude of an operand, all of whose magnitudes `bits` has room for."""
    for at, (x,) in spans:
        here = bits[at : at + x.numel()]
        torch.bitwise_and(x.view(BITS[compute]), _MAGNITUDE[compute], out=here)
        here.clamp_(max=_NAN[compute])
    if bits.numel() <= _SMALL:
        return int(torch.kthvalue(bits, bits.numel() - k + 1).values)
    return _kth_largest(bits, k)


def _kth_largest(bits: torch.Tensor, k: int) -> int:
    """Bit by bit from the highest, by counting what is not below: integers, so exact in whatever order. All of a card
    counts, while kthvalue leaves one tensor to one of its processors (20 times slower than sorting it: pytorch issue
    75599)."""
    found = torch.zeros((), dtype=bits.dtype, device=bits.device)
    for shift in range(8 * bits.element_size() - 2, -1, -1):
        tried = found | (1 << shift)
        found = torch.where((bits >= tried).sum() >= k, tried, found)
    return int(found)


def dots(seen: Seen, count: int, device: torch.device, *, from_first: bool) -> list[list[float]]:
    """A table of the dot products of all pairs of operands; of their differences from the first, if asked."""
    count -= from_first
    pairs = [(i, j) for i in range(count) for j in range(i + 1)]
    table = [[0.0] * count for _ in range(count)]

    def products(values: list[torch.Tensor], pair: tuple[int, int]) -> torch.Tensor:
        return values[pair[0]] * values[pair[1]]

    for (i, j), total in zip(pairs, _running(seen, pairs, products, device, from_first=from_first), strict=True):
        table[i][j] = table[j][i] = total
    return table


def lengths(seen: Seen, count: int, device: torch.device) -> list[float]:
    """The sum of each operand's magnitudes."""

    def magnitudes(values: list[torch.Tensor], pair: tuple[int, int]) -> torch.Tensor:
        return values[pair[0]].abs()

    return _running(seen, [(i, i) for i in range(count)], magnitudes, device)


def _running(
    seen: Seen, pairs: Sequence[tuple[int, int]], term: Callable[[list[torch.Tensor], tuple[int, int]], torch.Tensor],
    device: torch.device, *, from_first: bool = False,
) -> list[float]:  # fmt: skip
    """Running sums in float64, some at a time, as each has a tile of them."""
    found: list[float] = []
    for first in range(0, len(pairs), AT_ONCE):
        here = pairs[first : first + AT_ONCE]
        sums = torch.zeros(len(here), GRID, dtype=torch.float64, device=device)
        for _, values in seen():
            exact = [x.to(torch.float64) for x in values]
            if from_first:
                exact = [x - exact[0] for x in exact[1:]]
            for total, pair in zip(sums, here, strict=True):
                for part in torch.split(term(exact, pair), GRID):
                    total[: part.numel()].add_(part)
        found += [_folded(total) for total in sums.cpu()]
    return found


def _folded(total: torch.Tensor) -> float:
    """One of the running sums that were taken, on the CPU."""
    found = Running()
    found.add(total)
    return found.value()
