"""Devices by name; each is imported only when a build asks for it."""

from __future__ import annotations

from mergeflow.errors import RecipeError
from mergeflow.executor.device import Device

NAMES = ("cpu",)


def find(name: str) -> Device:
    """The device of a placement. `null` is for tests and measurements only: it computes nothing."""
    if name == "cpu":
        from mergeflow.executor.cpu import CpuDevice

        return CpuDevice()
    if name == "null":
        from mergeflow.executor.null import NullDevice

        return NullDevice()
    raise RecipeError(f"no device is called {name}", hint=f"this version knows {', '.join(NAMES)}")
