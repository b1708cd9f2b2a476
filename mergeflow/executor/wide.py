"""The first convolution of an inpainting model: the program on the channels that all models have, the rest its own.

Such a tensor is small enough to hold whole; its narrow part goes through the worker's buffers a piece at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction

import numpy as np

from mergeflow.executor.device import Bytes, Worker
from mergeflow.executor.nonfinite import make_canonical
from mergeflow.formats.scan import count_nonfinite
from mergeflow.plan.program import Op, Program
from mergeflow.plan.units import Part
from mergeflow.tensors import DType

Settle = Callable[[int, Program, tuple[int, ...], int], None]  # how many, of which program, slots and elements


def run_wide(part: Part, worker: Worker, program: Program, raw: Mapping[int, Bytes], settle: Settle) -> Bytes:
    """The whole tensor. `raw` holds what the unit reads by slot; `settle` is told of results that are not finite."""
    wide = part.wide
    assert wide is not None
    assert part.wide_dtype is not None
    inputs = list(zip(part.slots, program.inputs, part.wide_inputs, strict=False))  # the last slot is the primary's
    narrow = [
        _channels(raw[slot], wide.outer, dtype.size * wide.inner, wide.narrow, is_wide=is_wide, channels=wide.channels)
        for slot, dtype, is_wide in inputs
    ]
    total = wide.outer * wide.narrow * wide.inner
    merged = _through(worker, program, narrow, total, settle)
    own = raw[part.slots[-1]]
    if part.wide_dtype is not program.out:
        own = _through(worker, _cast(part.wide_dtype, program.out), [own], own.size // part.wide_dtype.size, settle)
    result = own.reshape(wide.outer, wide.channels, wide.inner * program.out.size).copy()
    result[:, : wide.narrow] = merged.reshape(wide.outer, wide.narrow, wide.inner * program.out.size)
    return result.reshape(-1)


def _through(worker: Worker, program: Program, inputs: list[Bytes], total: int, settle: Settle) -> Bytes:
    """A program over inputs of any length, as much at a time as the worker's buffers hold."""
    result = np.empty(total * program.out.size, np.uint8)
    slots = tuple(range(len(inputs)))
    room = [worker.slot(i).size // dtype.size for i, dtype in enumerate(program.inputs)]
    step = min([worker.out.size // program.out.size, *room])
    for begin in range(0, total, step):
        n = min(step, total - begin)
        for i, dtype in enumerate(program.inputs):
            worker.slot(i)[: n * dtype.size] = inputs[i][begin * dtype.size : (begin + n) * dtype.size]
        worker.filled()
        worker.run(program, slots, n)
        piece = result[begin * program.out.size : (begin + n) * program.out.size]
        piece[:] = worker.out[: n * program.out.size]
        if lost := count_nonfinite(piece, program.out):
            settle(lost, program, slots, n)
            make_canonical(piece, program.out)
    return result


def _cast(source: DType, target: DType) -> Program:
    """The primary's own values in the output's dtype, by the same arithmetic as any other sum."""
    return Program((source,), (Op(((Fraction(1), 0),), 1, DType.F64, target),))


def _channels(raw: Bytes, outer: int, row: int, narrow: int, *, is_wide: bool, channels: int) -> Bytes:
    if not is_wide:
        return raw
    return np.ascontiguousarray(raw.reshape(outer, channels, row)[:, :narrow]).reshape(-1)
