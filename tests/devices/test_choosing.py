"""Placements never exceed their budgets; `auto` takes the device with the least predicted time, and says why."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.footprints import SIZES

from mergeflow.digest import CHUNK
from mergeflow.errors import ResourceError
from mergeflow.plan.accelerated import SHARE, SMALLEST_TILE, peaks_on, place_on, usable
from mergeflow.plan.devices import DeviceChoice, choose
from mergeflow.plan.outlook import Accelerator, Load, Machine, Speeds, against, on_accelerator, on_cpu
from mergeflow.plan.place import (
    RESIDENT,
    STREAMED,
    TENSOR,
    TILES,
    TWO_PHASE,
    Budget,
    Footprint,
    Placement,
    peak_of,
    place,
)
from mergeflow.plan.whole import Largest

GB = 10**9
CARD = Accelerator("cuda", ("A",), (8 * GB,), (8 * GB,), up=20 * GB, down=20 * GB, term=0.01, start=3.0, measured=True)
SPEEDS = Speeds(read=2 * GB, write=1 * GB, copy=5 * GB, hash=5 * GB, term=0.3)
ROOMY = Budget(8 * GB, 4)
NEED = Footprint(6, 2, 2, 24, 0, 2 * GB)
LOAD = Load(read=6 * GB, written=2 * GB, up=6 * GB, down=2 * GB, terms=3 * GB)

needs = st.builds(
    Footprint,
    **SIZES,
    jobs=st.integers(0, 1 << 28),
    keepable=st.integers(0, 1 << 34),
    whole=st.builds(Largest, st.integers(0, 1 << 32)),
    measured=st.booleans(),
    outputs=st.integers(1, 20),
    there=st.integers(0, 1 << 34),
)
accelerators = st.lists(st.integers(0, 1 << 38), min_size=1, max_size=8).map(
    lambda free: replace(CARD, models=("A",) * len(free), free=tuple(free), total=tuple(free))
)
loads = st.builds(Load, *[st.integers(0, 1 << 40)] * 5, st.floats(1e15, 2e15), st.floats(0, 1e15))  # some can be moved
memories = st.one_of(st.integers(0, 1 << 32), st.integers(0, 1 << 38))
vrams = st.one_of(st.none(), st.integers(1, 1 << 38))


def within(found: Placement, budget: Budget, there: Accelerator) -> bool:
    return found.peak <= budget.memory and found.vram <= usable(there, budget.vram)


@settings(max_examples=200)
@given(
    needs, accelerators, memories, vrams, st.integers(1, 128), st.one_of(st.none(), st.integers(1, 64)), st.booleans()
)
def test_no_placement_on_an_accelerator_exceeds_its_budgets(
    need: Footprint, there: Accelerator, memory: int, vram: int | None, cores: int, workers: int | None, kernels: bool
) -> None:
    budget = Budget(memory, cores, vram)
    found = place_on(there, need, budget, workers=workers, kernels=kernels)
    if isinstance(found, str):
        assert "cuda" in found
        return
    assert within(found, budget, there)
    assert 1 <= found.devices <= min(len(there.free), found.workers)
    assert found.workers <= (workers or cores)
    assert found.unit % CHUNK == 0
    assert found.tile >= SMALLEST_TILE
    assert found.vram > there.context + kernels * need.there
    assert found.kernels == kernels
    assert found.strategy == STREAMED or (found.strategy == RESIDENT and need.outputs > 1)
    assert need.whole.nbytes <= found.whole
    if vram is None:
        assert found.vram <= min(there.free) * SHARE
    peak, on_each = peaks_on(need, found, there)  # of a part that is all of it
    assert (peak <= found.peak, on_each) == (True, found.vram)


@settings(max_examples=200)
@given(needs, memories, st.integers(1, 128))
def test_no_placement_on_the_cpu_exceeds_its_budget(need: Footprint, memory: int, cores: int) -> None:
    try:
        found = place(need, Budget(memory, cores))
    except ResourceError:
        return
    assert found.peak <= memory
    assert found.vram == 0
    assert peak_of(need, found) == found.peak
    assert peak_of(replace(need, jobs=0, whole=Largest(), keepable=0), found) <= found.peak
    assert found.strategy == (TENSOR if need.whole.nbytes else TWO_PHASE if need.measured else TILES)


@settings(max_examples=150)
@given(needs, loads, accelerators, memories, vrams, st.sampled_from(["auto", "cpu", "cuda"]))
def test_what_is_chosen_keeps_to_the_budgets_and_takes_least(
    need: Footprint, todo: Load, there: Accelerator, memory: int, vram: int | None, device: str
) -> None:
    budget, machine = Budget(memory, 4, vram), Machine(SPEEDS, (there,))
    try:
        found = choose(need, todo, budget, DeviceChoice(device, None, lambda: machine))
    except ResourceError:
        return
    assert within(found, budget, there)
    assert found.outlook is not None
    if device != "auto":
        return
    assert not found.kernels  # nobody has seen them on a card
    cpu = on_cpu(todo, SPEEDS, place(need, budget).workers)
    assert found.outlook.seconds <= cpu.seconds
    on = place_on(there, need, budget)
    if isinstance(on, Placement) and todo.terms:
        assert found.outlook.seconds <= on_accelerator(todo, SPEEDS, there, on.workers, on.devices).seconds


def chosen(device: str = "auto", *, budget: Budget = ROOMY, todo: Load = LOAD, card: Accelerator = CARD,
           speeds: Speeds = SPEEDS, need: Footprint = NEED) -> Placement:  # fmt: skip
    return choose(need, todo, budget, DeviceChoice(device, None, lambda: Machine(speeds, (card,))))


def told(placement: Placement) -> tuple[str, str, str]:
    assert placement.outlook is not None
    return placement.device, placement.outlook.bound, placement.outlook.runner_up


def test_a_merge_bound_by_the_disk_stays_on_the_cpu() -> None:
    """6 GB at 2 GB/s are 3 s on both; the card is ready after 0.12 s more, which is 4 %."""
    assert told(chosen(card=replace(CARD, start=0.12))) == ("cpu", "reading 6.0 GB", "cuda would be 4 % slower")


def test_a_slow_processor_beside_a_fast_disk_is_relieved() -> None:
    slow = replace(SPEEDS, read=100 * GB, write=100 * GB, term=40.0)
    found = chosen(speeds=slow)
    assert found.device == "cuda"
    # 3·10⁹ terms of 40 ns and 1.6 s of copies and hashes over 4 cores: 30.4 s; the card needs 3 s and 0.4 s of the CPU
    assert told(found)[2] == "cpu would take 9 times as long"


def test_without_room_on_the_card_the_cpu_does_it_and_says_why() -> None:
    for device in ("auto", "cuda"):
        found = chosen(device, budget=Budget(8 * GB, 4, 100_000_000))
        assert told(found)[0] == "cpu"
        assert "cuda has 100 MB to use, " in told(found)[2]
    assert "cuda needs " in told(chosen("cuda", budget=Budget(300_000_000, 4)))[2]


def test_what_is_asked_for_is_taken_whatever_it_costs() -> None:
    assert told(chosen("cuda"))[0] == "cuda"
    assert told(chosen("cpu")) == ("cpu", "reading 6.0 GB", "")
    nothing = Load(read=GB, written=GB)
    assert told(chosen("cuda", todo=nothing)) == ("cpu", "writing 1.0 GB", "there is nothing here that cuda computes")


def test_several_outputs_keep_their_inputs_on_the_card_where_they_fit() -> None:
    several = replace(NEED, outputs=5)
    assert chosen("cuda", need=several).strategy == RESIDENT
    assert chosen("cuda", need=NEED).strategy == STREAMED
    tight = Budget(8 * GB, 4, 900_000_000)
    assert chosen("cuda", need=replace(several, inputs=80), budget=tight).strategy == STREAMED


def test_all_cards_take_part() -> None:
    cards = replace(CARD, models=("A", "B"), free=(8 * GB, 2 * GB), total=(8 * GB, 8 * GB))
    found = chosen("cuda", card=cards)
    assert found.devices == 2
    assert found.vram <= 2 * GB * SHARE  # of the fullest


@pytest.mark.parametrize(
    ("other", "words"),
    [(1.0, "x would take as long"), (1.04, "x would be 4 % slower"), (7.2, "x would take 7 times as long")],
)
def test_the_runner_up_in_words(other: float, words: str) -> None:
    from mergeflow.plan.outlook import Outlook

    assert against(Outlook(1.0, ""), "x", Outlook(other, "")) == words


def test_the_model_by_hand() -> None:
    """4 workers; 6 GB read and 2 GB written, three terms each of 10⁹ elements."""
    cpu = on_cpu(LOAD, replace(SPEEDS, read=100 * GB, write=100 * GB), 4)
    assert cpu.seconds == pytest.approx((6 / 5 + 2 / 5 + 3 * 0.3) / 4)
    assert cpu.bound == "computing"
    kernels = on_cpu(LOAD._replace(kernels=4e10), SPEEDS, 4)
    assert kernels.seconds == pytest.approx((6 / 5 + 2 / 5 + 3 * 0.3 + 40) / 4)
    card = on_accelerator(LOAD, replace(SPEEDS, read=100 * GB, write=100 * GB), replace(CARD, up=GB, start=0.5), 4, 2)
    assert (card.seconds, card.bound) == (pytest.approx(3.5), "copying 6.0 GB to cuda")
