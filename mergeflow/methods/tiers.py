"""What the bytes of a method that is not exact depend on besides its operands: it goes into keys.

Matrix products and their like come from torch, whose results differ from one version to the next and between kinds of
machines. On x86-64 they are asked for in the one way that all processors can compute (`mergeflow.executor.whole`), so
there the kind is the instruction set's name alone.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from mergeflow.ir.kernels import Kernel


def on_this_machine(kernel: Kernel) -> Kernel:
    """The kernel as it is computed here: one that is not exact carries torch's version and the machine's kind."""
    if kernel.tier == "exact":
        return kernel
    return replace(kernel, origin=" ".join(filter(None, [kernel.origin, _environment()])))


@cache
def _environment() -> str:
    import platform
    from importlib.metadata import version  # slow to import, and most recipes never come here

    return f"torch-{version('torch')}/{platform.system().lower()}-{platform.machine().lower()}"
