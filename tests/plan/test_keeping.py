"""The cost model against its formula as docs/store.md states it, and what is chosen by it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergeflow.methods.kernels import formula
from mergeflow.plan.cost import FACTOR, SUM, Estimate, Rates, estimate
from mergeflow.plan.program import COPY, Call, Op, TensorWork
from mergeflow.plan.stored import Wanted, choose
from mergeflow.tensors import DType

RATES = Rates(read=4e9, write=1e9)
F16, F32 = DType.F16, DType.F32
TERMS = Op(((1, 0), (-1, 1)), 1, F32, F32)  # type: ignore[arg-type]


def call(name: str, operands: int) -> Call:
    return Call(name, tuple(range(operands)), (), (), (), 0, F32)


def test_a_sum_of_two() -> None:
    """Ten million elements of two halves on two workers: 0.3 ns for each of two terms; 40 MB read; 40 MB kept."""
    n = 10_000_000
    found = estimate((F16, F16), (TERMS,), n, F32, RATES, workers=2)
    assert found.compute == pytest.approx(n * 2 * SUM * 1e-9 / 2 + 4 * n / 4e9)
    assert found.keep == pytest.approx(4 * n / 1e9 + 4 * n / 4e9)
    assert not found.worth_it


def test_a_kernel_costs_what_it_says() -> None:
    n = 1_000_000
    cost = formula("ties_trim").kernel.cost
    found = estimate((F16,), (call("ties_trim", 1),), n, F32, RATES, workers=1)
    assert found.compute == pytest.approx(n * cost * 1e-9 + 2 * n / 4e9)
    four = estimate((F16,), (call("ties_trim", 1),), n, F32, RATES, workers=4)
    assert four.compute == pytest.approx(n * cost * 1e-9 / 4 + 2 * n / 4e9)


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_worth_is_a_factor(compute: float, keep: float) -> None:
    assert Estimate(compute, keep).worth_it == (compute > FACTOR * keep)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "less than a millisecond"), (0.0006, "1 ms"), (0.0994, "99 ms"), (0.5, "0.5 s"), (9.94, "9.9 s"),
     (9.96, "10 s"), (1234.4, "1,234 s")],
)  # fmt: skip
def test_seconds_are_told_to_two_digits(seconds: float, said: str) -> None:
    assert str(Estimate(seconds, 7.0)) == f"computing it takes {said}, keeping it 7.0 s"


def wanted(name: str, nbytes: int, compute: float, keep: float, *, forced: bool = False) -> Wanted:
    work = TensorWork(name, DType.U8, (nbytes,), f"k3:{name}", COPY, ())
    kind = "step" if forced else "method"
    return Wanted(name, kind, {work.key: work} if nbytes else {}, Estimate(compute, keep), forced)


@pytest.mark.parametrize(
    ("room", "makes", "declines"),
    [
        (1000, ["asked", "dear", "less"], {"cheap": "not worth it"}),
        (650, ["asked", "dear"], {"less": "no room", "cheap": "not worth it"}),
        (350, ["asked", "less"], {"dear": "no room", "cheap": "not worth it"}),  # what fits where the dearest does not
        (90, [], {"asked": "no room", "dear": "no room", "less": "no room", "cheap": "not worth it"}),
    ],
)
def test_what_is_chosen(room: int, makes: list[str], declines: dict[str, str]) -> None:
    """What is asked for first, then what is dearest to compute, while there is room."""
    groups = [
        wanted("cheap", 10, compute=1.0, keep=1.0),
        wanted("less", 200, compute=20.0, keep=1.0),
        wanted("dear", 500, compute=30.0, keep=1.0),
        wanted("asked", 100, compute=0.0, keep=0.0, forced=True),
        wanted("stored already", 0, compute=0.0, keep=0.0),
    ]
    chosen, declined = choose(groups, room)
    assert [group.group for group in chosen] == makes
    assert {d.title: next(r for r in ("no room", "not worth it") if r in d.reason) for d in declined} == declines
    assert [d.title for d in declined if d.asked] == (["asked"] if room < 100 else [])
    assert sum(group.nbytes for group in chosen) <= room
