"""The compiled sums and torch's give the same bits, for every dtype, every bit pattern and any program."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergeflow.digest import CHUNK
from mergeflow.executor import _sums
from mergeflow.executor.cpu import CpuDevice
from mergeflow.executor.device import Room
from mergeflow.executor.native import NativeDevice
from mergeflow.executor.nonfinite import make_canonical
from mergeflow.executor.packing import pack_program as pack
from mergeflow.plan.place import Placement
from mergeflow.plan.program import Op, Program
from mergeflow.tensors import DType

FLOATS = [d for d in DType if d.is_float]
N = 5_003  # more than two blocks of the one, a tile and a part of the other
PLACEMENT = Placement("cpu", "tile", 1, CHUNK, 2000, 1000, 0, "")


@pytest.fixture(params=["with the processor's instructions", "plain"], autouse=True)
def instructions(request: pytest.FixtureRequest) -> Iterator[None]:
    _sums.plain(request.param == "plain")
    yield
    _sums.plain(False)


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Up to four sums, each over inputs and earlier results, in either compute dtype."""
    inputs = tuple(draw(st.lists(st.sampled_from(FLOATS), min_size=1, max_size=4)))
    ops: list[Op] = []
    for k in range(draw(st.integers(1, 4))):
        operands = draw(st.lists(st.integers(0, len(inputs) + k - 1), min_size=1, max_size=4))
        shares = [Fraction(draw(st.sampled_from([1, -1, 3, -7, 1000, -16777216]))) for _ in operands]
        divisor = draw(st.sampled_from([1, 1, 2, 10, 1000]))
        compute = draw(st.sampled_from([DType.F32, DType.F64]))
        ops.append(Op(tuple(zip(shares, operands, strict=True)), divisor, compute, draw(st.sampled_from(FLOATS))))
    return Program(inputs, tuple(ops))


def both(program: Program, columns: list[np.ndarray]) -> list[tuple[np.ndarray, int]]:
    """What the compiled sums and torch make of the same bytes: canonical result, and results lost before rounding."""
    n = columns[0].size // program.inputs[0].size
    found = []
    for device in (NativeDevice(), CpuDevice()):
        worker = device.worker(PLACEMENT, Room(tuple(c.size for c in columns), n * program.out.size))
        for i, column in enumerate(columns):
            worker.slot(i)[:] = column
        slots = range(len(columns))
        worker.run(program, slots, n)
        made = worker.out.copy()
        make_canonical(made, program.out)
        found.append((made, worker.lost_before_rounding(program, slots, n)))
    return found


@settings(max_examples=300, deadline=None)
@given(programs(), st.integers(0, 1 << 32), st.booleans())
def test_the_same_bits_as_torch(program: Program, seed: int, ordinary: bool) -> None:
    """Of any bit patterns, and of numbers as weights are."""
    rng = np.random.default_rng(seed)
    columns = []
    for dtype in program.inputs:
        bits = rng.integers(0, 256, N * dtype.size, dtype=np.uint8)
        if ordinary and dtype.size > 1:  # magnitudes between 2**-32 and 2: sums cancel and round
            top = bits.reshape(N, dtype.size)[:, -1]
            top[:] = (top & 0x80) | (0x30 + (top & 0x0F))
        columns.append(bits)
    (made, lost), (wanted, wanted_lost) = both(program, columns)
    assert (made == wanted).all()
    assert lost == wanted_lost


@pytest.mark.parametrize("dtype", [d for d in FLOATS if d.size <= 2], ids=lambda d: d.label)
@pytest.mark.parametrize("to", FLOATS, ids=lambda d: d.label)
@pytest.mark.parametrize("compute", [DType.F32, DType.F64], ids=lambda d: d.label)
def test_every_value_of_a_small_dtype(dtype: DType, to: DType, compute: DType) -> None:
    codes = np.arange(1 << 8 * dtype.size, dtype={1: np.uint8, 2: np.uint16}[dtype.size])
    program = Program((dtype,), (Op(((Fraction(1), 0),), 1, compute, to),))
    (made, _), (wanted, _) = both(program, [codes.view(np.uint8)])
    assert (made == wanted).all()


@pytest.mark.parametrize("to", [d for d in FLOATS if d.size <= 2], ids=lambda d: d.label)
@pytest.mark.parametrize("dtype", [DType.F32, DType.F64], ids=lambda d: d.label)
def test_ties_and_their_neighbours(dtype: DType, to: DType) -> None:
    """Half way between any two neighbours, just below, just above, and past the largest."""
    size, kind = (np.uint8, 1) if to.size == 1 else (np.uint16, 2)
    codes = np.arange(1 << 8 * kind, dtype=size)
    as_f64 = Program((to,), (Op(((Fraction(1), 0),), 1, DType.F64, DType.F64),))
    values = both(as_f64, [codes.view(np.uint8)])[1][0].view(np.float64)
    values = np.unique(values[np.isfinite(values)])
    ties = np.concatenate([(values[:-1] + values[1:]) / 2, [values[-1] * k for k in (1.01, 1.0625, 1.125, 1.5, 4)]])
    near = np.concatenate([ties, np.nextafter(ties, np.inf), np.nextafter(ties, -np.inf), -ties])
    if dtype is DType.F32:
        near = near[np.abs(near) <= np.finfo(np.float32).max].astype(np.float32)
        near = np.concatenate([near, np.nextafter(near, np.float32(0)), near[1:-1] * np.float32(1 + 2**-23)])
        near = near[np.isfinite(near)]
    program = Program((dtype,), (Op(((Fraction(1), 0),), 1, dtype, to),))
    (made, lost), (wanted, wanted_lost) = both(program, [near.view(np.uint8)])
    assert (made == wanted).all()
    assert lost == wanted_lost == 0


def test_a_program_that_does_not_fit_its_buffers_is_refused() -> None:
    program = Program((DType.F32, DType.F16), (Op(((Fraction(1), 0), (Fraction(1), 1)), 1, DType.F32, DType.F16),))
    packed, x, y, out = pack(program), np.zeros(40, np.uint8), np.zeros(20, np.uint8), np.zeros(20, np.uint8)
    _sums.run(packed, (x, y), out, 10)
    for arguments in [
        (packed, (x, y), out, 11),
        (packed, (x, y), out, -1),
        (packed, (x[:-1], y), out, 10),
        (packed, (x, y), out[:-1], 10),
        (packed, (x,), out, 10),
        (packed[:-1], (x, y), out, 10),
        (packed[:8], (x, y), out, 10),
        (b"", (x, y), out, 10),
        (packed.replace((2).to_bytes(4, "little"), (99).to_bytes(4, "little")), (x, y), out, 10),
    ]:
        with pytest.raises(ValueError, match="does not fit"):
            _sums.run(*arguments)
