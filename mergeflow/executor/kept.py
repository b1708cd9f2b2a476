"""Taking tensors from files that earlier builds have left: what can still be read is copied, and hashed as it is."""

from __future__ import annotations

from collections.abc import Container, Sequence
from contextlib import ExitStack
from dataclasses import replace

from mergeflow.errors import MergeflowError
from mergeflow.formats.many import ReadFiles
from mergeflow.formats.scan import Scan
from mergeflow.plan.kept import KeptFile
from mergeflow.plan.planner import OutputPlan


def open_kept(stack: ExitStack, files: Sequence[KeptFile], first: int) -> dict[int, ReadFiles]:
    """Those that are still what they were when the build was planned, by the numbers that works have for them."""
    opened = {}
    for number, kept in enumerate(files, first):
        try:
            file = ReadFiles([kept.path])
        except MergeflowError:
            continue  # it is gone, which costs computing what it held
        stack.enter_context(file)
        if file.opened == (kept.at,):
            opened[number] = file
    return opened


def without(output: OutputPlan, there: Container[int], first: int) -> OutputPlan:
    """The output with what is taken from other files computed instead, where such a file is not there."""
    kept = {name: work for name, work in output.kept.items() if all(s < first or s in there for s, _ in work.reads)}
    return output if len(kept) == len(output.kept) else replace(output, kept=kept)


def damaged_names(output: OutputPlan, scan: Scan) -> list[str]:
    """The tensors that were copied, and whose bytes were not what they should have been."""
    if not output.kept:
        return []
    numbers = {spec.name: i for i, spec in enumerate(output.layout.tensors)}
    return [name for name, work in output.kept.items() if scan.payload(numbers[name]) != work.payload]
