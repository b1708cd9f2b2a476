"""How fast an accelerator is: copies to it and from it, sums on it, and how long it takes until it is ready."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from mergeflow.executor.streamed import Driver
from mergeflow.plan.program import Op, Program
from mergeflow.tensors import DType

_BYTES, _TERMS, _TRIES = 32 << 20, 3, 5


@dataclass(frozen=True, slots=True)
class Rates:
    """Bytes per second to it and from it, nanoseconds for an element of a term, seconds until it is ready."""

    up: float
    down: float
    term: float
    start: float


def rates(name: str) -> Rates:
    """Of the first device of a name.

    Raises:
        ResourceError: torch has none.
    """
    began = time.perf_counter()
    from mergeflow.executor.torchdevice import drivers

    driver = drivers(name)[0]
    driver.finish(driver.stream())
    driver.memory(1)
    return rates_of(driver, time.perf_counter() - began)


def rates_of(driver: Driver, start: float) -> Rates:
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
    return Rates(_BYTES / up, _BYTES / down, summed * 1e9 / (_BYTES // 2 * _TERMS), start)
