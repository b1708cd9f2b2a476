"""Taking tensors from files that earlier builds have left: what can still be read of outputs is copied, and hashed as
it is; what is read of the store's objects is hashed before it is used."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

from mergeflow.digest import CHUNK, hash_bytes, payload_digest
from mergeflow.errors import MergeflowError
from mergeflow.events import PhaseEnded, PhaseStarted, Progressed, Reporter
from mergeflow.formats.many import ReadFiles
from mergeflow.formats.scan import Scan
from mergeflow.formats.workers import Queue, drain
from mergeflow.plan.kept import Check, KeptFile
from mergeflow.plan.plans import OutputPlan
from mergeflow.store.objects import Store


class EarlierFile(ReadFiles):
    """What an earlier build has left. What cannot be read of it (a bad sector, a file that was cut) is zeros: the
    digest of the copy shows it, and the tensor is computed again like any that is damaged."""

    def read_into(self, view: memoryview, position: int) -> None:
        try:
            super().read_into(view, position)
        except MergeflowError:
            view[:] = bytes(view.nbytes)


def open_outputs(stack: ExitStack, files: Sequence[KeptFile], first: int) -> dict[int, ReadFiles]:
    """Those that are still what they were when the build was planned, by the numbers that works have for them."""
    opened: dict[int, ReadFiles] = {}
    for number, kept in enumerate(files, first):
        if kept.path is None:
            continue
        try:
            file = EarlierFile([kept.path])
        except MergeflowError:
            continue  # it is gone, which costs computing what it held
        stack.enter_context(file)
        if file.opened == (kept.at,):
            opened[number] = file
    return opened


def open_objects(
    stack: ExitStack, store: Store, files: Sequence[KeptFile], first: int, checks: Mapping[int, Sequence[Check]],
    workers: int, report: Reporter,
) -> dict[int, ReadFiles]:  # fmt: skip
    """The objects that can be read and whose tensors, as far as they are needed, are what they should be; one that is
    not is dropped from the store."""
    opened = {}
    for number, kept in enumerate(files, first):
        if not kept.object or (not kept.new and number not in checks):
            continue
        reader = store.open(kept.object)
        if reader is None:
            continue
        reader.close()
        try:
            file = stack.enter_context(ReadFiles([reader.path]))
            if _checked(file, checks.get(number, ()), workers, report):
                opened[number] = file
                continue
        except MergeflowError:
            pass  # cut short, which is damage like any other
        store.reject(kept.object)
    return opened


def _checked(file: ReadFiles, checks: Sequence[Check], workers: int, report: Reporter) -> bool:
    """Read and hash these tensors."""
    if not checks:
        return True
    total = sum(check.nbytes for check in checks)
    report(PhaseStarted("checking", "stored results", total))
    damaged: list[Check] = []

    def start() -> Callable[[Check], None]:
        buffer = memoryview(bytearray(CHUNK))

        def work(check: Check) -> None:
            chunks = []
            for at in range(0, check.nbytes, CHUNK):
                view = buffer[: min(CHUNK, check.nbytes - at)]
                file.read_into(view, check.offset + at)
                chunks.append(hash_bytes(view))
                report(Progressed(view.nbytes))
            if payload_digest(b"".join(chunks)) != check.payload:
                damaged.append(check)

        return work

    drain(Queue(checks), start, workers)
    report(PhaseEnded("checking", "stored results"))
    return not damaged


def without(output: OutputPlan, there: Container[int], first: int) -> OutputPlan:
    """The output with what is taken from other files computed instead, where such a file is not there."""
    kept = {name: work for name, work in output.kept.items() if all(s < first or s in there for s, _ in work.reads)}
    return output if len(kept) == len(output.kept) else replace(output, kept=kept)


def damaged_names(output: OutputPlan, scan: Scan) -> list[str]:
    """The tensors that were copied, and whose bytes were not what they should have been."""
    if not output.kept:
        return []
    numbers = {spec.name: i for i, spec in enumerate(output.layout.tensors)}
    copied = [(name, work.payload) for name, work in output.kept.items() if work.payload]
    return [name for name, payload in copied if scan.payload(numbers[name]) != payload]
