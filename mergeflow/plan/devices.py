"""Which device a pass runs on: the one that it takes the least time on, or the one that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from mergeflow.methods.kernels import GRID
from mergeflow.plan.accelerated import peaks_on, place_on
from mergeflow.plan.jobs import measured
from mergeflow.plan.outlook import (
    Accelerator,
    KernelOutlook,
    Load,
    Machine,
    Outlook,
    Part,
    against,
    on_accelerator,
    on_cpu,
    title,
)
from mergeflow.plan.place import TENSOR, TILES, TWO_PHASE, Budget, Footprint, Placement, peak_of, place, tile_for
from mergeflow.plan.program import Program, Staged
from mergeflow.plan.whole import whole_calls

AUTO, CPU, NULL = "auto", "cpu", "null"


@dataclass(frozen=True, slots=True)
class DeviceChoice:
    """How devices are chosen: what was asked for, and what there is. `machine` is asked once something is to be
    placed: to know it may mean to measure it."""

    device: str = AUTO
    workers: int | None = None
    machine: Callable[[], Machine] = Machine


def choose(need: Footprint, todo: Load, budget: Budget, choice: DeviceChoice) -> Placement:
    """A placement with its outlook.

    Raises:
        ResourceError: it does not fit into memory anywhere.
    """
    machine = choice.machine()
    found: list[Placement] = []
    refused: list[str] = []
    if choice.device in (AUTO, CPU, NULL):
        device = CPU if choice.device == AUTO else choice.device
        placed = place(need, budget, device=device, workers=choice.workers)
        found.append(replace(placed, outlook=on_cpu(todo, machine.speeds, placed.workers)))
    for there in machine.accelerators:
        kernels = choice.device == there.name and there.kernels and todo.movable > 0
        if choice.device in (AUTO, there.name) and (todo.terms or kernels):
            on = _on(there, need, todo, budget, choice.workers, kernels=kernels)
            if isinstance(on, str):
                refused.append(on)
                continue
            outlook = on_accelerator(todo, machine.speeds, there, on.workers, on.devices, kernels=on.kernels)
            found.append(replace(on, outlook=outlook))
    if not found:  # what was asked for has no room, or nothing to do: every machine has a CPU
        why = "; ".join(refused) or f"there is nothing here that {choice.device} computes"
        placed = place(need, budget, workers=choice.workers)
        outlook = on_cpu(todo, machine.speeds, placed.workers)
        return replace(placed, outlook=replace(outlook, runner_up=why), reason=f"{placed.reason}; {why}")
    best, *others = sorted(found, key=_seconds)
    return replace(best, outlook=_compared(best, others, refused))


def _on(
    there: Accelerator, need: Footprint, todo: Load, budget: Budget, workers: int | None, *, kernels: bool
) -> Placement | str:
    """A placement with kernels, where they are asked for and have room; else with the sums alone."""
    if kernels:
        found = place_on(there, need, budget, workers=workers, kernels=True)
        if isinstance(found, Placement) or not todo.terms:
            return found
    return place_on(there, need, budget, workers=workers)


def with_kernels(
    placement: Placement, parts: Sequence[Part], needs: Sequence[Footprint], choice: DeviceChoice
) -> Placement:
    """The placement with what its outlook is made of: each program by itself, with what it needs."""
    assert placement.outlook is not None
    machine = choice.machine()
    there = machine.accelerator(placement.device)
    kernels = []
    for (program, tensors, elements, todo, _), need in zip(parts, needs, strict=True):
        vram = 0
        if there is not None and _is_there(program, todo, placement):
            here = replace(there, start=0.0)
            outlook = on_accelerator(
                todo, machine.speeds, here, placement.workers, placement.devices, kernels=placement.kernels
            )
            device = placement.device
            strategy = placement.strategy if isinstance(program, Program) else _strategy(program)
            peak, vram = peaks_on(need, placement, there)
        else:
            outlook, device = on_cpu(todo, machine.speeds, placement.workers), CPU
            strategy, peak = _strategy(program), peak_of(need, placement)
        tile = _tile(program, placement)
        name = title(program)
        kernels.append(KernelOutlook(name, tensors, elements, device, strategy, tile, outlook, peak, vram))
    return replace(placement, outlook=replace(placement.outlook, kernels=tuple(kernels)))


def _is_there(program: Program | Staged | None, todo: Load, placement: Placement) -> bool:
    """Whether an accelerator's placement has it computed there."""
    return isinstance(program, Program) or (placement.kernels and todo.movable > 0)


def _strategy(program: Program | Staged | None) -> str:
    """Of one program on the CPU, whatever others of its pass need."""
    if isinstance(program, Staged) and measured(program):
        return TENSOR if whole_calls(program) else TWO_PHASE
    return TILES


def _tile(program: Program | Staged | None, placement: Placement) -> int:
    """Elements; those that kernels measure have one length everywhere, which is part of what they compute."""
    if isinstance(program, Staged):
        return GRID
    if program is None:
        return placement.unit
    return min(tile_for(op.compute, placement) for op in program.ops)


def _seconds(placement: Placement) -> float:
    assert placement.outlook is not None
    return placement.outlook.seconds


def _compared(best: Placement, others: Sequence[Placement], refused: Sequence[str]) -> Outlook:
    """The outlook with the second best in words."""
    assert best.outlook is not None
    words = list(refused)
    if others:
        second = others[0]
        assert second.outlook is not None
        words.insert(0, against(best.outlook, second.device, second.outlook))
    return replace(best.outlook, runner_up="; ".join(words))
