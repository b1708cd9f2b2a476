"""What a plan comes to, counted: tensors computed, copied and kept, and the bytes that are read for them.

`plan`, `explain` and the last line of `build` say this; nothing is decided by it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from mergeflow.plan.jobs import measured
from mergeflow.plan.kept import KeptFile
from mergeflow.plan.plans import OutputPlan, Plan
from mergeflow.plan.program import CONSTANT, COPY, STAGED, ZERO, TensorWork

COMPUTED, CAST, COPIED, KEPT, ZEROS, SET = "computed", "cast", "copied", "kept", "zero", "set"


class Taken(NamedTuple):
    """What is kept of one file that an earlier build has left, or an `interrupted` one of the output of that name."""

    path: Path
    tensors: int
    nbytes: int
    interrupted: str


@dataclass(frozen=True, slots=True)
class Account:
    """One output. `how`: of each tensor, in the order of the file, one of the words above. `begun`: how many of those
    that are computed begin from results that the store has already, `bytes_begun` of them. `bytes_read`: of sources,
    for this output alone; `bytes_alone`: the same if nothing were there already."""

    how: tuple[str, ...]
    taken: tuple[Taken, ...]
    begun: int
    bytes_begun: int
    bytes_read: int
    bytes_alone: int

    @property
    def bytes_kept(self) -> int:
        return sum(file.nbytes for file in self.taken)


def account(plan: Plan, output: OutputPlan) -> Account:
    how = tuple([_how(plan, work) for work in output.actions])
    if not output.kept:
        return Account(how, (), 0, 0, output.bytes_read, output.bytes_read)
    tensors: Counter[KeptFile] = Counter()
    nbytes: Counter[KeptFile] = Counter()
    begun = bytes_begun = bytes_read = bytes_alone = 0
    for work, action in zip(output.works, output.actions, strict=True):
        own = stored = 0
        gain = True
        for (source, _), size in _reads(plan, action):
            if source < plan.first_kept:
                own += size
                continue
            file = plan.kept_files[source - plan.first_kept]
            if file.path is not None:
                tensors[file] += 1
                nbytes[file] += size
            elif file.new:  # what this very build puts into the store is no gain yet
                gain = False
            else:
                stored += size
        begun += bool(stored)
        bytes_begun += stored
        bytes_read += own
        bytes_alone += sum(size for _, size in _reads(plan, work)) if gain else own
    taken = tuple([Taken(file.path, n, nbytes[file], file.interrupted) for file, n in tensors.items() if file.path])
    return Account(how, taken, begun, bytes_begun, bytes_read, bytes_alone)


def read_once(plan: Plan, outputs: Sequence[OutputPlan]) -> int:
    """The bytes of sources that are read for outputs made in one pass: what several need of one tensor counts once."""
    seen: set[tuple[str, int, int, int]] = set()
    total = 0
    for output in outputs:
        for work in output.actions:
            elements = work.nbytes // work.dtype.size
            for (source, offset), size in _reads(plan, work):
                key = work.name, elements, source, offset
                if source >= plan.first_kept:
                    continue
                if work.program == STAGED:  # gone through on its own
                    total += size
                elif key not in seen:
                    seen.add(key)
                    total += size
    return total


def _reads(plan: Plan, work: TensorWork) -> Iterator[tuple[tuple[int, int], int]]:
    """(source, offset) and bytes of all that one tensor is made from."""
    if work.program == COPY:
        yield work.reads[0], work.nbytes
        return
    if not work.computed:
        return
    staged = work.program == STAGED
    program = plan.staged[work.staged] if staged else plan.programs[work.program]
    times = 2 if staged and measured(plan.staged[work.staged]) else 1
    elements = work.nbytes // work.dtype.size
    for read, dtype in zip(work.reads, program.inputs, strict=False):  # a wide primary is read once more, in part
        yield read, times * elements * dtype.size


def _how(plan: Plan, work: TensorWork) -> str:
    if work.program == COPY:
        return KEPT if work.payload else COPIED
    if work.program in (ZERO, CONSTANT):
        return ZEROS if work.program == ZERO else SET
    if work.program == STAGED:
        return COMPUTED
    ops = plan.programs[work.program].ops
    cast = len(ops) == 1 and ops[0].divisor == 1 and ops[0].terms == ((Fraction(1), 0),)
    return CAST if cast else COMPUTED
