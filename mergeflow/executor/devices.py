"""Devices by name; each is imported only when a build asks for it."""

from __future__ import annotations

import os

from mergeflow.errors import RecipeError
from mergeflow.executor.device import Device

NAMES = ("cpu",)
KERNELS_VARIABLE = "MERGEFLOW_KERNELS"  # `torch`: sums by torch calls even where the compiled ones are there


def find(name: str) -> Device:
    """The device of a placement. `null` is for tests and measurements only: it computes nothing."""
    if name == "cpu":
        return _cpu()
    if name == "null":
        from mergeflow.executor.null import NullDevice

        return NullDevice()
    raise RecipeError(f"no device is called {name}", hint=f"this version knows {', '.join(NAMES)}")


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
