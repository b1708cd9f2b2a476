"""Which file is this: header, digests and facts of a source, from the memo or by reading it once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mergeflow.digest import printable
from mergeflow.errors import IntegrityError, MissingInput
from mergeflow.events import PhaseEnded, PhaseStarted, Progressed, Reporter
from mergeflow.formats.files import Fingerprint, ReadFile
from mergeflow.formats.header import Header, check_with_library, read_header
from mergeflow.sources.memo import Known, Memo, quiet_since


@dataclass(frozen=True)
class Identified:
    """A file whose content is known. `at` is its fingerprint when it was: reading it later checks that."""

    path: Path
    at: Fingerprint
    header: Header
    known: Known

    @cached_property
    def digests(self) -> Mapping[str, bytes]:
        return dict(zip(self.header.tensors, self.known.digests, strict=True))

    @cached_property
    def nonfinite(self) -> Mapping[str, int]:
        """The tensors that hold values that are not finite, and how many."""
        counts = zip(self.header.tensors, self.known.nonfinite, strict=True)
        return {name: n for name, n in counts if n}

    @property
    def model(self) -> str:
        return printable(self.known.model)


def identify(path: Path, memo: Memo, report: Reporter, *, name: str = "", workers: int = 1) -> Identified:
    """Header, digests and facts of a file; it is read whole only when the memo does not know it as it is now.

    Raises:
        MissingInput: there is no such file.
        IntegrityError: it is not a valid safetensors file, or it keeps changing while it is read.
    """
    if not path.exists():
        raise MissingInput(f"{path}: there is no such file")
    for attempt in (1, 2):
        with ReadFile(path) as file:
            header = read_header(file)
            known = memo.find(file.opened)
            if known is not None and len(known.digests) == len(header.tensors):
                return Identified(path, file.opened, header, known)
            check_with_library(path)
            settled = quiet_since(file.opened, path)
            report(PhaseStarted("hashing", name or path.name, file.size))
            known = _hash(file, header, report, workers)
            report(PhaseEnded("hashing", name or path.name))
            if file.fingerprint() == file.opened:
                if settled:
                    memo.remember(file.opened, known)
                return Identified(path, file.opened, header, known)
            if attempt == 2:
                raise IntegrityError(f"{path}: changes while it is being read", hint="wait until it is complete")
    raise AssertionError("unreachable")


def _hash(file: ReadFile, header: Header, report: Reporter, workers: int) -> Known:
    import numpy as np

    from mergeflow.formats.blocks import BLOCK, Block, blocks
    from mergeflow.formats.scan import Scan
    from mergeflow.formats.workers import Queue, drain

    tensors = list(header.tensors.values())
    scan = Scan(tensors, samples=True)

    def worker() -> Callable[[Block], None]:
        buffer = np.empty(BLOCK, np.uint8)

        def work(block: Block) -> None:
            data = buffer[: block.nbytes]
            file.read_into(data.data, block.offset)
            scan.add(data, block)
            report(Progressed(block.nbytes))

        return work

    drain(Queue(blocks(tensors, BLOCK)), worker, workers)
    content = scan.finish()
    samples = b"" if content.samples is None else content.samples.tobytes()
    ranges = content.low.tobytes(), content.high.tobytes()
    return Known(content.model, content.digests, content.payloads, content.nonfinite, *ranges, samples)
