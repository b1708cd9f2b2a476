"""Which model is this: names, digests and facts of a source, from the memo or by reading it once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mergeflow.digest import model_digest, printable
from mergeflow.errors import IntegrityError
from mergeflow.events import PhaseEnded, PhaseStarted, Progressed, Reporter
from mergeflow.formats.contents import Contents, read_contents
from mergeflow.formats.files import Fingerprint, ReadFile
from mergeflow.formats.header import check_with_library
from mergeflow.formats.many import ReadFiles
from mergeflow.sources.memo import Known, Memo, quiet_since, wait_until_quiet
from mergeflow.tensors import TensorSpec

SAMPLE_BYTES = 64  # formats.scan.SAMPLE values of float32; that module takes long to import


@dataclass(frozen=True)
class Identified:
    """A model whose content is known. `at` are its files' fingerprints when it was: reading it later checks them.

    `tensors` are in the order of the files, and start at positions that count through all of them (formats.many).
    """

    path: Path
    contents: Contents
    at: tuple[Fingerprint, ...]
    tensors: Mapping[str, TensorSpec]
    known: Known

    @property
    def files(self) -> tuple[Path, ...]:
        return self.contents.files

    @property
    def metadata(self) -> Mapping[str, str]:
        return self.contents.metadata

    @property
    def size(self) -> int:
        return sum(at.size for at in self.at)

    @cached_property
    def digests(self) -> Mapping[str, bytes]:
        return dict(zip(self.tensors, self.known.digests, strict=True))

    @cached_property
    def payloads(self) -> Mapping[str, bytes]:
        """Digests of the tensors' bytes alone."""
        return dict(zip(self.tensors, self.known.payloads, strict=True))

    @cached_property
    def nonfinite(self) -> Mapping[str, int]:
        """The tensors that hold values that are not finite, and how many."""
        counts = zip(self.tensors, self.known.nonfinite, strict=True)
        return {name: n for name, n in counts if n}

    @cached_property
    def _positions(self) -> Mapping[str, int]:
        return {name: i for i, name in enumerate(self.tensors)}

    def sample(self, name: str) -> bytes:
        """The values kept of a tensor, as float32; none where none were kept, as of files that mergeflow wrote."""
        samples, at = self.known.samples, self._positions[name] * SAMPLE_BYTES
        return samples[at : at + SAMPLE_BYTES] if len(samples) == len(self.tensors) * SAMPLE_BYTES else b""

    @property
    def model(self) -> str:
        return printable(self.known.model)


def identify(path: Path, memo: Memo, report: Reporter, *, name: str = "", workers: int = 1) -> Identified:
    """Names, digests and facts of a model; its files are read whole only when the memo does not know them as they are.

    Raises:
        MissingInput: there is no such file.
        IntegrityError: it is not a valid model file, or it keeps changing while it is read.
    """
    for attempt in (1, 2):
        wait_until_quiet(path)
        contents = read_contents(path)
        with ReadFiles(contents.files) as files:
            at = files.opened
            tensors = _through(contents.tensors, files.starts)
        own: list[list[TensorSpec]] = [[] for _ in contents.files]
        for t in contents.tensors.values():
            own[t.file].append(t)
        parts = []
        for number, file in enumerate(contents.files):
            part = _known(file, at[number], own[number], memo, report, name or path.name, workers)
            if part is None:
                break
            parts.append(part)
        else:
            return Identified(path, contents, at, tensors, _joined(parts, tensors))
        if attempt == 2:
            raise IntegrityError(f"{path}: changes while it is being read", hint="wait until it is complete")
    raise AssertionError("unreachable")


def _through(tensors: Mapping[str, TensorSpec], starts: list[int]) -> Mapping[str, TensorSpec]:
    """The tensors of several files, at positions that count through all of them."""
    if len(starts) == 2:  # a file and its end
        return tensors
    return {name: t._replace(start=starts[t.file] + t.start, file=0) for name, t in tensors.items()}


def _known(
    path: Path, at: Fingerprint, tensors: list[TensorSpec], memo: Memo, report: Reporter, name: str, workers: int
) -> Known | None:
    """What is known of one file; None when it is no longer the one that was opened."""
    known = memo.find(at)
    if known is not None and len(known.digests) == len(tensors):
        return known
    if path.suffix == ".safetensors":
        check_with_library(path)
    with ReadFile(path) as file:
        if file.opened != at:
            return None
        settled = quiet_since(at, path)
        report(PhaseStarted("hashing", name, sum(t.nbytes for t in tensors)))
        known = _hash(file, tensors, report, workers)
        report(PhaseEnded("hashing", name))
        if file.fingerprint() != at:
            return None
    if settled:
        memo.remember(at, known)
    return known


def _joined(parts: list[Known], tensors: Mapping[str, TensorSpec]) -> Known:
    """What is known of several files as of one model."""
    if len(parts) == 1:
        return parts[0]
    digests = tuple(d for part in parts for d in part.digests)
    return Known(
        model_digest(zip(tensors, digests, strict=True)),
        digests,
        tuple(p for part in parts for p in part.payloads),
        tuple(n for part in parts for n in part.nonfinite),
        b"".join(part.low for part in parts),
        b"".join(part.high for part in parts),
        b"".join(part.samples for part in parts),
    )


def _hash(file: ReadFile, tensors: list[TensorSpec], report: Reporter, workers: int) -> Known:
    import numpy as np

    from mergeflow.formats.blocks import BLOCK, Block, blocks
    from mergeflow.formats.scan import Scan
    from mergeflow.formats.workers import Queue, drain

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
