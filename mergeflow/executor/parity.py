"""Whether a device computes what the CPU does, asked before its first use: on values where those that do not show it.

Each program is one that a merge has, each value one that hardware has been known to treat in its own way: subnormals,
ties, what overflows in the last rounding, quotients that a reciprocal gets wrong, sums that a fused multiply-add does
not round twice. Bytes are compared, with NaNs made canonical as the loop makes them. It takes a fraction of
a second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from blake3 import blake3

from mergeflow.digest import CHUNK
from mergeflow.executor.device import Bytes, DeviceFull, Room, Worker
from mergeflow.executor.nonfinite import make_canonical
from mergeflow.executor.pieces import Making
from mergeflow.formats.many import ReadFiles
from mergeflow.methods.kernels import GRID
from mergeflow.plan.jobs import Job
from mergeflow.plan.place import STREAMED, Placement
from mergeflow.plan.program import Op, Program, Staged
from mergeflow.tensors import DType

if TYPE_CHECKING:
    from mergeflow.executor.driver import Driver

ELEMENTS = 1 << 13
_TILE = 3000  # more than one, and a shorter one at the end
ROOM = Room((ELEMENTS * 8,) * 3, max(CHUNK, ELEMENTS * 8))  # for any of the programs
Make = Callable[[Placement, Room], Worker]
_NUMPY = {DType.F64: np.float64, DType.F32: np.float32, DType.F16: np.float16}
_SHARES = (Fraction(7), Fraction(3), Fraction(-3))
_OTHER_BYTES, _NO_ROOM = "gives other bytes than the CPU", "has no memory left to be tried"


def programs() -> Iterator[tuple[str, Program]]:
    """What is tried, by a name for people: `(7·x + 3·y − 3·z) / 10` and a plain difference, in each pair of dtypes
    that outputs are made of, and a rounding in between."""
    terms = tuple((share, i) for i, share in enumerate(_SHARES))
    plain = ((Fraction(1), 0), (Fraction(1), 1), (Fraction(-1), 2))
    for source in (DType.F16, DType.BF16, DType.F32, DType.F64, DType.F8_E5M2, DType.F8_E4M3):
        for to in (DType.F16, DType.BF16, DType.F32, DType.F64, DType.F8_E4M3, DType.F8_E5M2):
            compute = DType.F64 if DType.F64 in (source, to) or source is to is DType.F32 else DType.F32
            if to is DType.F64 and source is not DType.F64:
                continue
            inputs = (source,) * 3
            name = f"{source.label} → {to.label} in {compute.label}"
            yield name, Program(inputs, (Op(terms, 10, compute, to),))
            yield f"a difference, {name}", Program(inputs, (Op(plain, 1, compute, to),))
    rounded = Op(((Fraction(2), 0), (Fraction(3), 1)), 5, DType.F32, DType.BF16)
    yield "a rounding point", Program((DType.F16,) * 2, (rounded, Op(((Fraction(-1), 2), (Fraction(3), 1)), 3,
                                                                   DType.F64, DType.F16)))  # fmt: skip


def values(dtype: DType, number: int) -> Bytes:
    """ELEMENTS values of a dtype as bytes, the same with every version of every library: half of them any bits there
    are, half numbers of the size that weights have."""
    stream = blake3(f"mergeflow parity {number} {dtype.label}".encode())
    drawn = stream.digest(length=ELEMENTS * 16)
    bits = np.frombuffer(drawn, np.uint8)[: ELEMENTS * dtype.size].copy()
    weights = np.frombuffer(drawn, np.int16).reshape(-1, 8)[: ELEMENTS // 2].sum(axis=1, dtype=np.float64) / 2.0**16
    weights[::7] *= 2.0**-20  # subnormal in float16
    weights[::11] *= 2.0**15  # large for it
    half = bits[: weights.size * dtype.size]
    with np.errstate(over="ignore"):
        if dtype is DType.BF16:
            half[:] = (weights.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        elif dtype in _NUMPY:
            half[:] = weights.astype(_NUMPY[dtype]).view(np.uint8)
    return bits


def disagreement(name: str, device: Make, cpu: Make) -> str | None:
    """Why a device cannot be used: the first program that it does not compute as the CPU does, or not at all; None when
    it does all of them.

    Raises:
        DeviceLost: it does not answer.
    """
    ours, theirs = (make(Placement(name, STREAMED, 1, CHUNK, _TILE, _TILE, 0, ""), ROOM) for make in (cpu, device))
    try:
        for title, program in programs():
            why = _difference(ours, theirs, program)
            if why is not None:
                return f"{why} for {title}"
        return None
    finally:
        theirs.close()


def _difference(ours: Worker, theirs: Worker, program: Program) -> str | None:
    wanted = computed(ours, program)
    try:
        return None if computed(theirs, program) == wanted else _OTHER_BYTES
    except DeviceFull:
        return _NO_ROOM
    except (RuntimeError, TypeError) as error:  # torch's, of a dtype or a card that it has no code for
        return f"has no code ({_first_line(error)})"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def computed(worker: Worker, program: Program) -> bytes:
    """What a worker makes of the values, NaNs canonical. It has room for them."""
    slots = range(len(program.inputs))
    for i, dtype in zip(slots, program.inputs, strict=True):
        data = values(dtype, i)
        worker.slot(i)[: data.size] = data
    worker.filled()
    worker.run(program, slots, ELEMENTS)
    out = worker.out[: ELEMENTS * program.out.size].copy()
    make_canonical(out, program.out)
    return out.tobytes()


# -- programs with kernels -------------------------------------------------------------------------------------------

_LENGTH = GRID + 1_001  # of the tensors that kernels are tried on: more than one tile of what they measure


class _Bits(ReadFiles):
    """A file that is only values."""

    def __init__(self, data: Bytes) -> None:
        self._data = data

    def read_into(self, view: memoryview, position: int) -> None:
        view[:] = self._data[position : position + view.nbytes].data


def kernel_disagreement(driver: Driver, program: Staged) -> str | None:
    """Why a program with kernels cannot be left to an accelerator: it gives other bytes than the CPU, or an error, or
    could not be tried. None where it can. Tried on numbers of the size that weights have, and on any bits there are.

    Raises:
        DeviceLost: it does not answer.
    """
    from mergeflow.executor.devicekernels import DeviceKernels
    from mergeflow.executor.making import Makers

    here, there = Makers([program], 0), DeviceKernels(driver, [program], lambda program: True, lambda: None)
    job = _trial(program)
    try:
        for most in (ELEMENTS // 2, ELEMENTS):
            files: dict[int, ReadFiles] = {
                i: _Bits(np.resize(values(dtype, i)[: most * dtype.size], _LENGTH * dtype.size))
                for i, dtype in enumerate(program.inputs)
            }
            wanted = _whole(here.run(job, files))
            found = there.run(job, files, _nobody)
            if found is None or _whole(found) != wanted:
                return _OTHER_BYTES
        return None
    except DeviceFull:
        return _NO_ROOM
    except (RuntimeError, TypeError) as error:  # torch's, of what it has no code for
        return f"cannot do it ({_first_line(error)})"
    finally:
        there.close()


def _nobody() -> Making:
    """In the place of the CPU, which would do the work of a device without memory, and so prove nothing of it."""
    raise DeviceFull


def _trial(program: Staged) -> Job:
    reads = tuple([(i, 0) for i in range(len(program.inputs))])
    return Job(0, 0, "trial", program.out, (_LENGTH,), _LENGTH, 0, 0, reads, None, (), None)


def _whole(made: Making) -> bytes:
    """All of a result, NaNs canonical."""
    found = []
    for piece in made.pieces():
        data = piece.data.copy()
        make_canonical(data, piece.block.dtype)
        found.append(data.tobytes())
    return b"".join(found)
