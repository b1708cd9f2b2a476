"""Which accelerators this machine has, without importing torch: planning must not, and it takes seconds.

NVIDIA's own library (NVML) is asked through ctypes: it comes with the driver, answers in milliseconds, and wakes no
device. Whether torch could use what it names, with the driver there is, is read from torch's version file. On a Mac
with Apple silicon there is one, MPS. Other cards that torch can use (AMD's, as `cuda` too) are not seen from outside,
so `auto` does not choose them; who asks for them by --device has torch asked.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from mergeflow.errors import ResourceError
from mergeflow.plan.outlook import Accelerator

_SIGNS = ("/dev/nvidiactl", "/dev/dxg", "/proc/driver/nvidia/version")  # the driver is there; under Windows' Linux, too
_LANE = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.97e9, 5: 3.94e9, 6: 7.56e9}  # bytes per second, by PCIe generation
_SHARE = 0.6  # of the link that copies reach at least
_TERM = 0.05  # ns: an element of a term in 20 bytes of traffic on a card of 400 GB/s
_TERM_MPS = 0.2
_NAME = 96


class _Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


class Card(NamedTuple):
    """What NVML says of one; `link` bytes per second, 0 where it does not say."""

    model: str
    total: int
    free: int
    link: float


def look(device: str) -> tuple[Accelerator, ...]:
    """The accelerators that a build could use: all for `auto`, none for the CPU, else those of a name.

    Raises:
        ResourceError: there is none of that name.
    """
    if device in ("cpu", "null"):
        return ()
    found = [*_cuda(), *_mps()]
    if device == "auto":
        return tuple(found)
    kind, _, number = device.partition(":")
    named = next((a for a in found if a.name == kind), None) or _by_torch(kind)
    return (named if not number else _only(named, device, int(number)),)


def _cuda() -> list[Accelerator]:
    """NVIDIA's cards as one accelerator of several; none where torch has no CUDA, or a newer one than the driver."""
    if not driver_is_there():
        return []
    needed = _cuda_of_torch()
    cards = visible(_cards(needed), os.environ.get("CUDA_VISIBLE_DEVICES")) if needed else []
    if not cards:
        return []
    link = min(card.link for card in cards) or Accelerator("", (), (), ()).up
    return [
        Accelerator(
            "cuda", tuple(c.model for c in cards), tuple(c.free for c in cards), tuple(c.total for c in cards),
            up=link, down=link, term=_TERM,
        )
    ]  # fmt: skip


def driver_is_there() -> bool:
    """Whether NVIDIA's driver may be: it leaves signs, but for Windows."""
    return sys.platform == "win32" or any(map(os.path.exists, _SIGNS))


def visible(cards: list[Card], said: str | None) -> list[Card]:
    """The cards that CUDA_VISIBLE_DEVICES leaves: numbers, up to the first that is none; ids of cards are counted."""
    if said is None:
        return cards
    left: list[Card] = []
    for entry in said.split(","):
        word = entry.strip()
        if re.fullmatch(r"[0-9]{1,4}", word) and int(word) < len(cards):
            left.append(cards[int(word)])
        elif word.startswith(("GPU-", "MIG-")) and len(left) < len(cards):
            left.append(cards[len(left)])
        else:
            break
    return left


def _cards(needed: int) -> list[Card]:
    """What NVML says; nothing where it is not there, does not answer, or the driver is older than the CUDA that is
    `needed` (its first number: drivers run all of one)."""
    try:
        nvml = ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
    except OSError:
        return []
    if nvml.nvmlInit_v2() != 0:
        return []
    try:
        count, cuda = ctypes.c_uint(), ctypes.c_int()
        if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
            return []
        ask = getattr(nvml, "nvmlSystemGetCudaDriverVersion_v2", None)
        if ask is None or (ask(ctypes.byref(cuda)) == 0 and cuda.value // 1000 < needed):
            return []
        return [card for i in range(count.value) if (card := _card(nvml, i)) is not None]
    finally:
        nvml.nvmlShutdown()


def _card(nvml: ctypes.CDLL, number: int) -> Card | None:
    handle, memory, name = ctypes.c_void_p(), _Memory(), ctypes.create_string_buffer(_NAME)
    if nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(number), ctypes.byref(handle)) != 0:
        return None
    if nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) != 0:
        return None
    nvml.nvmlDeviceGetName(handle, name, ctypes.c_uint(_NAME))
    generation, width = ctypes.c_uint(), ctypes.c_uint()
    told = nvml.nvmlDeviceGetMaxPcieLinkGeneration(handle, ctypes.byref(generation)) == 0
    told = nvml.nvmlDeviceGetMaxPcieLinkWidth(handle, ctypes.byref(width)) == 0 and told
    link = _LANE.get(generation.value, 0.0) * width.value * _SHARE if told else 0.0
    return Card(name.value.decode(errors="replace"), memory.total, memory.free, link)


def _cuda_of_torch() -> int:
    """The first number of the CUDA that torch was built with, 0 where it was built without, from its version file: to
    find a package is not to import it."""
    spec = find_spec("torch")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        try:
            text = (Path(folder) / "version.py").read_text(encoding="utf-8")
        except OSError:
            continue
        said = re.search(r"^cuda\b[^=\n]*= *['\"](\d+)", text, re.M)
        return int(said[1]) if said else 0
    return 0


def _mps() -> list[Accelerator]:
    if platform.system() != "Darwin" or platform.machine() != "arm64":
        return []
    import psutil

    memory = psutil.virtual_memory()  # which the processor and the accelerator share
    rate = 20.0e9
    return [
        Accelerator(
            "mps", ("Apple silicon",), (memory.available,), (memory.total,), rate, rate, _TERM_MPS, 3.0, kernels=False
        )
    ]


def _by_torch(kind: str) -> Accelerator:
    """What torch has under a name that nothing else told of.

    Raises:
        ResourceError: it has nothing.
    """
    from mergeflow.executor.torchdevice import seen

    models, free, total = seen(kind)
    return Accelerator(kind, models, free, total, kernels=kind != "mps")


def _only(there: Accelerator, device: str, number: int) -> Accelerator:
    if number >= len(there.models):
        count = len(there.models)
        raise ResourceError(
            f"there is no {device}: this machine has {count}, counted from 0",
            hint="`mergeflow devices` shows what there is",
        )
    here = slice(number, number + 1)
    return replace(there, name=device, models=there.models[here], free=there.free[here], total=there.total[here])
