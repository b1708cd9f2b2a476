"""Where a pass runs on accelerators: how much of each unit is on the device at a time, under two budgets.

The machine's memory holds, for each worker, pinned buffers of a unit; the device's holds two sets of tiles (streamed),
or the inputs of a whole unit when several outputs are made of them (resident), and what the arithmetic takes beside.
Units and tiles are larger than the CPU's: nothing has to fit a cache, and each copy has to be long to be fast.
"""

from __future__ import annotations

from collections.abc import Iterator

from mergeflow.digest import CHUNK
from mergeflow.plan.outlook import Accelerator
from mergeflow.plan.place import KEEP, RESIDENT, STREAMED, Budget, Footprint, Placement
from mergeflow.tensors import human_bytes

UNITS = (16 * CHUNK, 4 * CHUNK, CHUNK)
LARGEST_TILE, SMALLEST_TILE = 1 << 21, 1 << 16  # elements
ROUNDING = 64  # bytes for each element of a tile, for one rounding of float64 to 16 bits
SLACK = 64_000_000  # of the device's memory for each worker: torch's allocator rounds up
SHARE = 0.8  # of what is free that a build may take unless it is told


def usable(there: Accelerator, vram: int | None) -> int:
    """Bytes that may be used of each accelerator: what was asked for, but never more than is free on the fullest."""
    free = min(there.free, default=0)
    return min(vram, free) if vram is not None else int(free * SHARE)


def place_on(
    there: Accelerator, need: Footprint, budget: Budget, *, workers: int | None = None, kernels: bool = False
) -> Placement | str:
    """The largest units and tiles that fit into both memories, with as many workers as the machine's has room for; or,
    where nothing fits, why. `kernels`: they, too, are to be computed there, as far as they can be."""
    vram, devices = usable(there, budget.vram), max(1, len(there.free))
    wanted = workers or budget.cores
    if workers is None and need.bytes_written < 16 * CHUNK:
        wanted = 1
    if need.base + there.host + _host(need, UNITS[-1]) + need.whole.nbytes > budget.memory:
        least = need.base + there.host + _host(need, UNITS[-1]) + need.whole.nbytes
        return f"{there.name} needs {human_bytes(least)} of memory, the budget is {human_bytes(budget.memory)}"
    for unit in UNITS:
        for n in range(wanted, 0, -1):
            if unit != UNITS[-1] and n * 2 <= wanted:
                break  # smaller units before less than half the workers
            peak = need.base + there.host + n * _host(need, unit) + need.whole.nbytes
            if peak > budget.memory:
                continue
            used = min(n, devices)
            for strategy, tile in _tiles(need, unit):
                on_device = there.context + -(-n // used) * _device(need, unit, tile, strategy, kernels=kernels)
                if on_device <= vram:
                    keep = min(KEEP, need.keepable, (budget.memory - peak) // n)
                    peak += n * keep
                    more = min((n - 1) * need.whole.nbytes, budget.memory - peak)
                    each = _device(need, unit, tile, strategy, kernels=kernels)
                    reason = f"{n} workers × {human_bytes(each)} on the device"
                    return Placement(
                        there.name, strategy, n, unit, tile, tile, peak + more, reason, keep,
                        need.whole.nbytes + more, used, on_device, kernels,
                    )  # fmt: skip
    least = there.context + _device(need, UNITS[-1], SMALLEST_TILE, STREAMED, kernels=kernels)
    return f"{there.name} has {human_bytes(vram)} to use, {human_bytes(least)} are needed"


def peaks_on(need: Footprint, placement: Placement, there: Accelerator) -> tuple[int, int]:
    """Bytes of the machine's memory and of each accelerator's that a part of a pass takes, placed as the pass is: never
    more than the pass."""
    n, unit = placement.workers, placement.unit
    each = _device(need, unit, placement.tile, placement.strategy, kernels=placement.kernels)
    return need.base + there.host + n * _host(need, unit), there.context + -(-n // placement.devices) * each


def _tiles(need: Footprint, unit: int) -> Iterator[tuple[str, int]]:
    """Strategies with tiles, the best first."""
    largest = max(SMALLEST_TILE, min(LARGEST_TILE, unit // need.smallest_output // 4))
    for strategy in (RESIDENT, STREAMED) if need.outputs > 1 else (STREAMED,):
        tile = largest
        while tile >= SMALLEST_TILE:
            yield strategy, tile
            tile //= 2


def _host(need: Footprint, unit: int) -> int:
    return unit // need.smallest_output * (need.inputs + need.output) + need.largest_wide + need.jobs


def _device(need: Footprint, unit: int, tile: int, strategy: str, *, kernels: bool) -> int:
    """Of one worker: two sets of what goes in and out (inputs once, whole, where they stay), accumulators, slack; what
    kernels take."""
    inputs = unit // need.smallest_output * need.inputs if strategy == RESIDENT else 2 * tile * need.inputs
    return inputs + 2 * tile * need.output + tile * (need.registers + ROUNDING) + SLACK + kernels * need.there
