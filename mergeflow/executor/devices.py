"""Devices by name; each is imported only when a build asks for it."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from functools import cache

from mergeflow.errors import RecipeError
from mergeflow.executor.device import KERNELS_VARIABLE, Buffers, Device, Room, Worker
from mergeflow.plan.place import TILE, TILE_F64, Placement

NAMES = ("cpu", "cuda", "mps")


def find(name: str) -> Device:
    """The device of a placement: `cpu`, `cuda` (all there are), `cuda:1`, `mps`. `null` is for tests and measurements
    only: it computes nothing.

    Raises:
        RecipeError: there is no such name.
        ResourceError: torch has no such device here.
    """
    if name == "cpu":
        return _cpu()
    if name == "null":
        from mergeflow.executor.null import NullDevice

        return NullDevice()
    if is_accelerator(name):
        return _accelerator(name)
    raise RecipeError(f"no device is called {name}", hint=f"this version knows {', '.join(NAMES)}")


def is_accelerator(name: str) -> bool:
    return re.fullmatch(r"cuda(:[0-9]{1,3})?|mps", name) is not None


@cache
def _accelerator(name: str) -> Device:
    """One for the whole process: it is asked only once whether it computes as the CPU does."""
    from mergeflow.executor.streamed import StreamedDevice
    from mergeflow.executor.torchdevice import drivers

    return StreamedDevice(name, drivers(name), on_host)


def on_host(placement: Placement, room: Room, own: Buffers) -> Worker:
    """A worker of the CPU over buffers that another device has."""
    if os.environ.get(KERNELS_VARIABLE) != "torch":
        try:
            from mergeflow.executor.native import NativeWorker
        except ImportError:
            pass
        else:
            return NativeWorker(room, own)
    from mergeflow.executor.cpu import CpuWorker

    return CpuWorker(replace(placement, tile=TILE, tile_f64=TILE_F64), room, own)


def _cpu() -> Device:
    """Compiled sums where the extension is there, torch's otherwise: the same bytes, but for the wait for torch."""
    if os.environ.get(KERNELS_VARIABLE) != "torch":
        try:
            from mergeflow.executor.native import NativeDevice
        except ImportError:  # there was no compiler when this was installed
            pass
        else:
            return NativeDevice()
    from mergeflow.executor.cpu import CpuDevice

    return CpuDevice()
