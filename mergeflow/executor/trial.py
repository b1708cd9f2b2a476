"""How fast an accelerator is: copies to it and from it, sums on it, how long it takes until it is ready, and what it
takes of both memories by being awake."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import psutil

from mergeflow.errors import ResourceError
from mergeflow.executor.device import DeviceFull
from mergeflow.executor.driver import Driver
from mergeflow.plan.program import Op, Program
from mergeflow.tensors import DType

_BYTES, _TERMS, _TRIES = 32 << 20, 3, 5
_LATER = "measure again when nothing else runs on it; until then what hardware of the kind does at least is taken"
_NEVER = "another build of torch may have code for it; --device cpu computes the same bytes"
_MARGIN, _LEAST = 1.25, 100_000_000  # on what was seen of memory: builds make more streams, and load more kernels


@dataclass(frozen=True, slots=True)
class Rates:
    """Bytes per second to it and from it, nanoseconds for an element of a term, seconds until it is ready; bytes of the
    machine's memory and of its own that it takes by being awake."""

    up: float
    down: float
    term: float
    start: float
    host: int
    context: int


def rates(name: str, free: int) -> Rates:
    """Of the first device of a name; `free` bytes were left on it before this process woke it.

    Raises:
        ResourceError: torch has none, or cannot use it now.
    """
    before, began = _own_memory(), time.perf_counter()
    from mergeflow.executor.torchdevice import drivers, seen

    driver = drivers(name)[0]
    try:
        driver.finish(driver.stream())
        driver.memory(1)
        start = time.perf_counter() - began
        up, down, term = speeds_of(driver)
    except DeviceFull as error:
        raise ResourceError(f"{driver.name} has no memory left to be measured", hint=_LATER) from error
    except RuntimeError as error:  # torch's, of a card that it has no code for
        raise ResourceError(f"torch cannot use {driver.name}: {str(error).splitlines()[0]}", hint=_NEVER) from error
    driver.release()
    host, context = _own_memory() - before, free - seen(name)[1][0]
    return Rates(up, down, term, start, *[max(_LEAST, round(_MARGIN * taken)) for taken in (host, context)])


def _own_memory() -> int:
    """Bytes that this process has for itself."""
    return int(psutil.Process().memory_full_info().uss)


def speeds_of(driver: Driver) -> tuple[float, float, float]:
    """Bytes per second to it and from it, nanoseconds for an element of a term."""
    stream = driver.stream()
    host, there = driver.pinned(_BYTES), [driver.memory(_BYTES) for _ in range(_TERMS + 1)]
    host[:] = 0x3C
    terms = tuple((Fraction(share), i) for i, share in enumerate((10, 3, -3)))
    program = Program((DType.F16,) * _TERMS, (Op(terms, 10, DType.F32, DType.F16),))

    def seconds(work: Callable[[], None]) -> float:
        found = float("inf")
        for _ in range(_TRIES):
            began = time.perf_counter()
            work()
            driver.finish(stream)
            found = min(found, time.perf_counter() - began)
        return max(found, 1e-9)

    for inputs in there[:_TERMS]:
        driver.upload(stream, inputs, host)
    up = seconds(lambda: driver.upload(stream, there[0], host))
    down = seconds(lambda: driver.download(stream, host, there[0]))
    summed = seconds(lambda: driver.compute(stream, program, there[:_TERMS], there[_TERMS]))
    return _BYTES / up, _BYTES / down, summed * 1e9 / (_BYTES // 2 * _TERMS)
