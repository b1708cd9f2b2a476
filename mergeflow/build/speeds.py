"""How fast this machine is: measured the first time that it matters, then remembered beside the memo.

Every figure takes some milliseconds and is the best of a few tries, as other work only makes it worse. The disk is that
of the largest source, read past the page cache; where the file system cannot do that, a usual rate is taken. What takes
longer is measured by `mergeflow devices --measure`: how fast the disk of the current folder writes, and accelerators,
as that means to import torch and wake them. Until then what hardware of the kind does at least is taken.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from mergeflow.build.accelerators import look
from mergeflow.errors import MergeflowError, ResourceError
from mergeflow.formats.parts import write_file
from mergeflow.plan.outlook import Accelerator, Machine, Speeds
from mergeflow.tensors import human_bytes

FILE, VERSION = "speeds.json", 2
_PARTS = ("host", "disks", "writes", "accelerators")
_WRITTEN = 256 << 20  # bytes, to know how fast a disk writes
_PIECE, _PIECES = 4 << 20, 8  # of a source that are read to know a disk
_ELEMENTS, _TERMS = 1 << 19, 3
_TRIES = 3


def machine(memo: Path, device: str, sources: Iterable[Path], outputs: Path | None = None) -> Machine:
    """What is known of this machine, measured where nothing is. `outputs` is the folder that they go into, which may
    not be there yet.

    Raises:
        ResourceError: it has no such device.
    """
    known = remembered(memo)
    speeds = _speeds(memo, known, sources)
    if outputs is not None and (rate := known["writes"].get(_disk_of(outputs))) is not None:
        speeds = replace(speeds, write=float(rate))
    return Machine(speeds, tuple(with_measured(a, known) for a in look(device)), _compiled())


def _compiled() -> bool:
    """Whether the CPU has compiled code for sums and kernels, and may use it."""
    from mergeflow.executor.device import KERNELS_VARIABLE

    try:
        for name in ("_sums", "_kernels"):
            import_module(f"mergeflow.executor.{name}")
    except ImportError:  # there was no compiler when this was installed
        return False
    return os.environ.get(KERNELS_VARIABLE) != "torch"


def with_measured(there: Accelerator, known: Mapping[str, Any]) -> Accelerator:
    """An accelerator with the rates that were measured of it, if they were."""
    rates = known["accelerators"].get(identity(there))
    return there if rates is None else replace(there, **rates, measured=True)


def identity(there: Accelerator) -> str:
    return f"{there.name}: {', '.join(there.models)}"


def _speeds(memo: Path, known: dict[str, Any], sources: Iterable[Path]) -> Speeds:
    before = json.dumps(known)
    if not known["host"]:
        known["host"] = {"copy": _copy(), "hash": _hash(), "term": _term()}
    disk = _disk(known, sources)
    if json.dumps(known) != before:
        remember(memo, known)
    host = {name: rate for name, rate in known["host"].items() if rate is not None}
    found = replace(Speeds(), **host, measured=True)
    return found if disk is None else replace(found, read=disk)


def _disk(known: dict[str, Any], sources: Iterable[Path]) -> float | None:
    """The rate of the disk that most is read from; None where it cannot be known."""
    sizes: dict[Path, os.stat_result] = {}
    for path in sources:
        with contextlib.suppress(OSError):  # a source that is gone is somebody else's error
            sizes[path] = path.stat()
    largest = max(sizes, key=lambda path: sizes[path].st_size, default=None)
    if largest is None:
        return None
    device = str(sizes[largest].st_dev)
    if device not in known["disks"] and sizes[largest].st_size >= _PIECE * _PIECES:
        rate = _read_rate(largest)
        if rate is None:
            return None
        known["disks"][device] = rate
    found = known["disks"].get(device)
    return float(found) if found is not None else None


def remembered(memo: Path) -> dict[str, Any]:
    """What is in the file; nothing where it is not there, or is not what this version writes."""
    try:
        found = json.loads((memo / FILE).read_text())
        if found["version"] == VERSION and all(isinstance(found[part], dict) for part in _PARTS):
            return dict(found)
    except (OSError, ValueError, TypeError, KeyError):
        pass  # measured again
    return {"version": VERSION, **{part: {} for part in _PARTS}}


def remember(memo: Path, known: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError, MergeflowError):  # where nothing can be kept, it is measured each time
        memo.mkdir(parents=True, exist_ok=True)
        write_file(memo / FILE, json.dumps(known, indent=1).encode())


# -- measuring -------------------------------------------------------------------------------------------------------


def best(work: Callable[[], object], tries: int = _TRIES) -> float:
    """Seconds of the fastest of some tries."""
    found = float("inf")
    for _ in range(tries):
        began = time.perf_counter()
        work()
        found = min(found, time.perf_counter() - began)
    return max(found, 1e-9)


def _copy() -> float:
    """Bytes per second that one core copies, between places that no cache holds."""
    source = bytes(16 << 20)
    return len(source) / best(lambda: bytearray(source))


def _hash() -> float:
    from mergeflow.digest import hash_bytes

    data = bytes(1 << 20)
    return len(data) / best(lambda: hash_bytes(data), 5)


def _term() -> float | None:
    """Nanoseconds for an element of a term, by the compiled sums; None where torch does them, which takes too long to
    import for this."""
    try:
        from mergeflow.executor.native import NativeDevice
    except ImportError:
        return None
    from fractions import Fraction

    from mergeflow.executor.device import Room
    from mergeflow.plan.place import TILE, TILE_F64, UNIT, Placement
    from mergeflow.plan.program import Op, Program
    from mergeflow.tensors import DType

    terms = tuple((Fraction(share), i) for i, share in enumerate((10, 3, -3)))
    program = Program((DType.F16,) * _TERMS, (Op(terms, 10, DType.F32, DType.F16),))
    room = Room((2 * _ELEMENTS,) * _TERMS, 2 * _ELEMENTS)
    worker = NativeDevice().worker(Placement("cpu", "tile", 1, UNIT, TILE, TILE_F64, 0, ""), room)
    for i in range(_TERMS):
        worker.slot(i)[:] = 0x3C  # 1.06 in float16: no zeros, no subnormals
    return best(lambda: worker.run(program, range(_TERMS), _ELEMENTS)) * 1e9 / (_ELEMENTS * _TERMS)


def _read_rate(path: Path) -> float | None:
    """Bytes per second from the disk itself; None where the file system does not read past its cache."""
    direct = getattr(os, "O_DIRECT", None)
    if direct is None:
        return None
    try:
        file = os.open(path, os.O_RDONLY | direct)
    except OSError:
        return None
    try:
        with mmap.mmap(-1, _PIECE) as buffer:  # begins on a page, as such reads must
            began = time.perf_counter()
            read = sum(os.preadv(file, [buffer], i * _PIECE) for i in range(_PIECES))
            return read / max(time.perf_counter() - began, 1e-9)
    except OSError:
        return None
    finally:
        os.close(file)


def measure_writing(memo: Path, folder: Path) -> float:
    """Bytes per second of writing to the disk of a folder, with a sync at the end; remembered.

    Raises:
        ResourceError: nothing can be written there.
    """
    block = os.urandom(_PIECE)
    path = folder / f".mergeflow-{os.getpid()}.trial"
    try:
        with path.open("xb", buffering=0) as file:
            began = time.perf_counter()
            for _ in range(_WRITTEN // _PIECE):
                file.write(block)
            os.fsync(file.fileno())
            rate = _WRITTEN / max(time.perf_counter() - began, 1e-9)
    except OSError as error:
        raise ResourceError(
            f"{folder}: how fast its disk writes cannot be measured: {error.strerror}",
            hint=f"go to a folder that {human_bytes(_WRITTEN)} can be written to",
        ) from error
    finally:
        path.unlink(missing_ok=True)
    known = remembered(memo)
    known["writes"][_disk_of(folder)] = rate
    remember(memo, known)
    return rate


def _disk_of(folder: Path) -> str:
    """The number of its file system, or of the nearest folder above that is there."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return str(folder.stat().st_dev)


def measure_accelerator(memo: Path, there: Accelerator) -> Accelerator:
    """Measure one, and remember it.

    Raises:
        ResourceError: torch cannot use it.
    """
    from mergeflow.executor.trial import rates

    found = rates(there.name, there.free[0])
    known = remembered(memo)
    known["accelerators"][identity(there)] = asdict(found)
    remember(memo, known)
    return with_measured(there, known)
