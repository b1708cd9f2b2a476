"""What makes tensors whose programs have kernels: compiled calls where all of a program's kernels are compiled, torch
otherwise. The same bytes; torch is imported only when there is something for it to do."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mergeflow.executor.device import KERNELS_VARIABLE, Kernels
from mergeflow.executor.pieces import Making
from mergeflow.formats.many import ReadFiles
from mergeflow.plan.jobs import Job
from mergeflow.plan.program import Staged

if TYPE_CHECKING:
    from mergeflow.executor.compiled import CompiledStages
    from mergeflow.executor.stages import Stages


class Makers:
    """Runs jobs, in one thread. `keep` is how many bytes of operands may be kept between passes; `there` runs those
    that an accelerator can."""

    def __init__(self, programs: Sequence[Staged], keep: int, there: Kernels | None = None) -> None:
        self._programs, self._keep, self._there = programs, keep, there
        self._compiled = _compiled(programs)
        self._torch: Stages | None = None

    def run(self, job: Job, files: Mapping[int, ReadFiles]) -> Making:
        """A job, ready to be gone through."""
        if self._there is not None:
            made = self._there.run(job, files, lambda: self._here(job, files))
            if made is not None:
                return made
        return self._here(job, files)

    def _here(self, job: Job, files: Mapping[int, ReadFiles]) -> Making:
        """On the CPU."""
        if self._compiled is not None and self._compiled.can_run(job):
            return self._compiled.run(job, files)
        if self._torch is None:
            from mergeflow.executor.stages import Stages

            self._torch = Stages(self._programs, self._keep)
        return self._torch.run(job, files)


def _compiled(programs: Sequence[Staged]) -> CompiledStages | None:
    if os.environ.get(KERNELS_VARIABLE) == "torch":
        return None
    try:
        from mergeflow.executor.compiled import CompiledStages
    except ImportError:  # there was no compiler when this was installed
        return None
    return CompiledStages(programs)
