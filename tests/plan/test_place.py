"""Placement: never over its budget, and what it predicts is what a worker takes."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.footprints import SIZES

from mergeflow.digest import CHUNK
from mergeflow.errors import ResourceError
from mergeflow.executor.cpu import CpuWorker
from mergeflow.executor.device import Room
from mergeflow.formats.layout import lay_out
from mergeflow.plan.place import FLOOR, TILE, UNIT, Budget, Footprint, footprint, place
from mergeflow.plan.program import Op, Program, TensorWork
from mergeflow.plan.units import Unit, cut, largest_part, slot_sizes
from mergeflow.tensors import DType

FLOATS = [d for d in DType if d.is_float]
needs = st.builds(Footprint, **SIZES)


@settings(max_examples=300)
@given(needs, st.integers(0, 1 << 36), st.integers(1, 128), st.one_of(st.none(), st.integers(1, 64)))
def test_never_over_the_budget(need: Footprint, memory: int, cores: int, workers: int | None) -> None:
    try:
        found = place(need, Budget(memory, cores), workers=workers)
    except ResourceError as error:
        suggested = int("".join(filter(str.isdigit, error.hint.split("MB")[0]))) * 1_000_000
        assert suggested > memory
        assert place(need, Budget(suggested, cores), workers=workers).workers == 1  # the advice holds
        return
    assert found.peak <= memory
    assert 1 <= found.workers <= (workers or cores)
    assert found.unit in (UNIT, CHUNK)
    assert found.peak > FLOOR


@given(needs, st.integers(1 << 28, 1 << 34), st.integers(1, 16))
def test_more_memory_never_means_less_work_at_a_time(need: Footprint, memory: int, cores: int) -> None:
    def size(m: int) -> int:
        try:
            found = place(need, Budget(m, cores))
        except ResourceError:
            return 0
        return found.workers * found.unit

    assert size(memory) <= size(memory * 2)


@st.composite
def mixtures(draw: st.DrawFn) -> list[Program]:
    """Programs with other inputs in other places, other results, a rounding point inside."""
    result = []
    for _ in range(draw(st.integers(1, 4))):
        inputs = tuple(draw(st.lists(st.sampled_from(FLOATS), min_size=1, max_size=5)))
        out, middle = draw(st.sampled_from(FLOATS)), draw(st.sampled_from(FLOATS))
        ops = [Op(tuple((Fraction(2), i) for i in range(len(inputs))), 3, middle.compute, middle)]
        ops.append(Op(((Fraction(1), len(inputs)),), 7, out.compute, out))
        result.append(Program(inputs, tuple(ops)))
    return result


def whole_units(program: Program, number: int, unit: int) -> Iterator[Unit]:
    """The units of one large tensor."""
    reads = tuple((source, 0) for source in range(len(program.inputs)))
    work = TensorWork("t", program.out, (5_000_000,), "", number, reads)
    layout = lay_out([("t", program.out, work.shape)], {})
    return cut([([work], layout.tensors)], [program] * (number + 1), unit)


@settings(max_examples=40)
@given(mixtures())
def test_a_worker_takes_no_more_than_was_predicted(programs: list[Program]) -> None:
    works = [TensorWork(f"t{i}", p.out, (10,), "", i, ()) for i, p in enumerate(programs)]
    works = [TensorWork(w.name, w.dtype, w.shape, "", w.program, tuple((s, 0) for s in range(9))) for w in works]
    need = footprint(programs, [works])
    found = place(need, Budget(1 << 33, 1), workers=1)
    units = [unit for i, p in enumerate(programs) for unit in whole_units(p, i, found.unit)]
    room = Room(tuple(slot_sizes(units)), largest_part(units))
    worker = CpuWorker(found, room)
    for p in programs:
        worker.run(p, range(len(p.inputs)), 10)
    buffers = sum(room.slots) + room.out
    registers = sum(t.numel() * t.element_size() for t in worker._scratch.values())
    assert buffers + registers <= found.peak - need.base
    assert registers <= 32 * 8 * TILE


def test_the_message_says_what_would_do() -> None:
    with pytest.raises(ResourceError, match=r"the budget is 1\.0 MB"):
        place(Footprint(6, 2, 2, 8, 0, 1 << 30), Budget(1_000_000, 2))
