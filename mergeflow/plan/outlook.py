"""How long a pass takes on each device, and what bounds it: the model by which `auto` chooses, and that `plan` shows.

Whatever a pass does is done beside the rest of it: while one worker reads, others compute. So the slowest of these is
how long it takes, and what bounds it:

    reading     bytes of sources at the rate of the disk
    writing     bytes of outputs at the rate of the disk
    computing   on the CPU, over the workers: a copy of what is read, a hash of what is written, and the arithmetic
    copying to, copying from, computing on an accelerator, over the accelerators; with the CPU's copies and hashes
                beside them, and kernels that stay there

An accelerator begins later: torch is imported and the device woken first. Rates are those of this machine, measured
once, or what hardware of the kind does at least.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

from mergeflow.methods.kernels import formula
from mergeflow.plan.jobs import is_compiled, measured
from mergeflow.plan.program import COPY, STAGED, Call, Op, Program, Staged, TensorWork
from mergeflow.tensors import human_bytes


@dataclass(frozen=True, slots=True)
class Speeds:
    """Of the machine itself: bytes per second of its disk (reading, writing with a sync) and of one core (copying from
    the page cache, hashing); nanoseconds of one core for an element of a sum's term."""

    read: float = 1.0e9
    write: float = 0.8e9
    copy: float = 4.0e9
    hash: float = 2.5e9
    term: float = 0.3
    measured: bool = False


@dataclass(frozen=True, slots=True)
class Accelerator:
    """Accelerators of one kind: `name` is what --device calls them. `free` and `total` bytes of each; rates of one:
    bytes per second to it and from it, nanoseconds for an element of a term; `start` seconds until the first is
    ready. Once one is awake torch and its driver take `host` bytes of the machine's memory and `context` of its own,
    whatever is done with it. `kernels`: whether it has what they need, float64 above all."""

    name: str
    models: tuple[str, ...]
    free: tuple[int, ...]
    total: tuple[int, ...]
    up: float = 6.0e9
    down: float = 6.0e9
    term: float = 0.02
    start: float = 5.0
    host: int = 700_000_000
    context: int = 600_000_000
    measured: bool = False
    kernels: bool = True


@dataclass(frozen=True, slots=True)
class Machine:
    """`compiled`: whether sums and kernels have compiled code here; else torch does their work on the CPU."""

    speeds: Speeds = field(default_factory=Speeds)
    accelerators: tuple[Accelerator, ...] = ()
    compiled: bool = True

    def accelerator(self, name: str) -> Accelerator | None:
        return next((a for a in self.accelerators if a.name == name), None)


class Load(NamedTuple):
    """What a pass has to do: bytes read of files (by arithmetic: `up`, the rest is copied), bytes written (`down` of
    them computed), elements times terms of sums, nanoseconds of one core for kernels. Of these, `movable` could be
    spent by an accelerator, which would have to be given `movable_up` bytes, and give `movable_down`."""

    read: int = 0
    written: int = 0
    up: int = 0
    down: int = 0
    terms: int = 0
    kernels: float = 0.0
    movable: float = 0.0
    movable_up: int = 0
    movable_down: int = 0


class Part(NamedTuple):
    """The tensors of a pass that one program makes (None: that are copied), by output."""

    program: Program | Staged | None
    tensors: int
    elements: int
    load: Load
    works: Sequence[Sequence[TensorWork]] = ()


@dataclass(frozen=True, slots=True)
class Outlook:
    """`seconds` that a pass should take, what bounds it (`reading 6.4 GB`), and what else it could run on."""

    seconds: float
    bound: str
    runner_up: str = ""
    kernels: tuple[KernelOutlook, ...] = ()


class KernelOutlook(NamedTuple):
    """One program of a pass: what it computes, for how many tensors and elements, where and how, and how long it
    takes by itself. `tile` counts elements (of copies, bytes); `peak` bytes of memory, and `vram` of each
    accelerator's, is what the pass would take if this program were all that it does."""

    title: str
    tensors: int
    elements: int
    device: str
    strategy: str
    tile: int
    outlook: Outlook
    peak: int = 0
    vram: int = 0


def loads(outputs: Sequence[Sequence[TensorWork]], programs: Sequence[Program], staged: Sequence[Staged]) -> list[Part]:
    """What there is to do in one pass, by program, copies last. What several read of one place counts once, with the
    program that comes first."""
    groups: dict[tuple[int, int], list[list[TensorWork]]] = {}
    for works in outputs:
        here: dict[tuple[int, int], list[TensorWork]] = {}
        for work in works:
            if (key := (work.program, work.staged)) in here:
                here[key].append(work)
            elif work.computed or work.program == COPY:
                here[key] = [work]
        for key, among in here.items():
            groups.setdefault(key, []).append(among)
    seen: set[tuple[int, int]] = set()
    found = []
    for key in sorted(groups, key=lambda key: (key[0] == COPY, key[0] == STAGED, key)):
        number, kernels = key
        program = staged[kernels] if number == STAGED else programs[number] if number != COPY else None
        together = [work for among in groups[key] for work in among]
        found.append(_part(program, together, seen)._replace(works=groups[key]))
    return found


def _part(program: Program | Staged | None, works: Sequence[TensorWork], seen: set[tuple[int, int]]) -> Part:
    """Works of one program; what they read is added to what was `seen`. Whole collections at a time: there are many."""
    lengths = [prod(work.shape) for work in works]
    elements = sum(lengths)
    if program is None:
        sizes = {work.reads[0]: n * work.dtype.size for work, n in zip(works, lengths, strict=True)}
        written = sum(n * work.dtype.size for work, n in zip(works, lengths, strict=True))
        return Part(None, len(works), elements, Load(_unseen(sizes, 1, seen), written))
    read = 0
    for i, dtype in enumerate(program.inputs):
        read += _unseen({work.reads[i]: n for work, n in zip(works, lengths, strict=True)}, dtype.size, seen)
    written = elements * program.out.size
    if isinstance(program, Staged):
        spent = elements * sum(map(_nanoseconds, program.ops))
        load = Load(read, written, kernels=spent)
        if is_compiled(program):
            times = 2 if measured(program) else 1  # it is gone through
            up = times * elements * sum(dtype.size for dtype in program.inputs)
            load = load._replace(movable=spent, movable_up=up, movable_down=written)
        return Part(program, len(works), elements, load)
    terms = elements * sum(len(op.terms) for op in program.ops)
    return Part(program, len(works), elements, Load(read, written, read, written, terms))


def _unseen(sizes: Mapping[tuple[int, int], int], width: int, seen: set[tuple[int, int]]) -> int:
    """Bytes of the places that were not seen; all are seen then. As a rule none was, which is known faster."""
    new = sizes.values() if seen.isdisjoint(sizes) else [n for place, n in sizes.items() if place not in seen]
    total = sum(new)
    seen.update(sizes)
    return total * width


def together(parts: Sequence[Part]) -> Load:
    """All of them."""
    return Load(*(sum(numbers) for numbers in zip(*(part.load for part in parts), strict=True)))


def title(program: Program | Staged | None) -> str:
    """In a few words: `sum of 3 float16 to float16`, `sum_sign of ties_trim`."""
    if program is None:
        return "copy"
    calls = dict.fromkeys(op.kernel for op in reversed(program.ops) if isinstance(op, Call))
    if calls:
        return " of ".join(calls)
    dtypes = " and ".join(dict.fromkeys(dtype.label for dtype in program.inputs))
    rounded = f", rounded {len(program.ops) - 1} times on the way" if len(program.ops) > 1 else ""
    if len(program.inputs) == 1:
        return f"{dtypes} to {program.out.label}{rounded}"
    return f"sum of {len(program.inputs)} {dtypes} to {program.out.label}{rounded}"


def _nanoseconds(op: Op | Call) -> float:
    """Of one core for an element; the terms of sums among kernels are as slow as a copy each."""
    if isinstance(op, Op):
        return 0.3 * len(op.terms)
    return formula(op.kernel).kernel.cost * len(op.operands)


def on_cpu(todo: Load, speeds: Speeds, workers: int) -> Outlook:
    compute = todo.read / speeds.copy + todo.written / speeds.hash + (todo.terms * speeds.term + todo.kernels) * 1e-9
    return _slowest(
        (
            (todo.read / speeds.read, f"reading {human_bytes(todo.read)}"),
            (todo.written / speeds.write, f"writing {human_bytes(todo.written)}"),
            (compute / workers, "computing"),
        )
    )


def on_accelerator(
    todo: Load, speeds: Speeds, there: Accelerator, workers: int, devices: int, *, kernels: bool = False
) -> Outlook:
    """`kernels`: those that can be are computed there, too: as much faster than on one core as a sum's term is."""
    moved = todo.movable * there.term / speeds.term if kernels else 0.0
    if kernels:
        todo = todo._replace(
            kernels=todo.kernels - todo.movable, up=todo.up + todo.movable_up, down=todo.down + todo.movable_down
        )
    host = todo.read / speeds.copy + todo.written / speeds.hash + todo.kernels * 1e-9
    found = _slowest(
        (
            (todo.read / speeds.read, f"reading {human_bytes(todo.read)}"),
            (todo.written / speeds.write, f"writing {human_bytes(todo.written)}"),
            (host / workers, "reading and hashing on the CPU" if not todo.kernels else "methods, computed on the CPU"),
            (todo.up / there.up / devices, f"copying {human_bytes(todo.up)} to {there.name}"),
            (todo.down / there.down / devices, f"copying {human_bytes(todo.down)} from {there.name}"),
            ((todo.terms * there.term + moved) * 1e-9 / devices, f"computing on {there.name}"),
        )
    )
    if there.start > found.seconds:
        return Outlook(there.start + found.seconds, f"starting {there.name}")
    return Outlook(there.start + found.seconds, found.bound)


def _slowest(parts: Sequence[tuple[float, str]]) -> Outlook:
    seconds, bound = max(parts, key=lambda part: part[0])
    return Outlook(seconds, bound)


def against(best: Outlook, name: str, other: Outlook) -> str:
    """The second best in words: `cuda would be 4 % slower`."""
    if best.seconds <= 0 or other.seconds <= best.seconds * 1.005:
        return f"{name} would take as long"
    times = other.seconds / best.seconds
    if times < 2:
        return f"{name} would be {(times - 1) * 100:.0f} % slower"
    return f"{name} would take {times:,.0f} times as long" if times < 1000 else f"{name} would take far longer"
