"""Making outputs: one pass over their sources, then each is published on its own, when all of it is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from mergeflow.digest import printable
from mergeflow.errors import MergeflowError, ResourceError
from mergeflow.events import PhaseEnded, PhaseStarted, Reporter, Warned
from mergeflow.executor.device import Device, DeviceLost
from mergeflow.executor.kept import damaged_names, open_objects, open_outputs, without
from mergeflow.executor.run import Sink, make, open_sources
from mergeflow.executor.space import clear, make_room
from mergeflow.formats.files import Fingerprint
from mergeflow.formats.journal import SourceFile
from mergeflow.formats.output import OutputFiles
from mergeflow.formats.scan import Content, Scan
from mergeflow.plan.plans import OutputPlan, Plan
from mergeflow.store.objects import Store


@dataclass(frozen=True, slots=True)
class Written:
    """A published output: its content and the fingerprints of its files after the rename. `lost`: results that are not
    finite; `overflowed`: those of them that only the output's dtype could not hold."""

    content: Content
    at: tuple[Fingerprint, ...]
    lost: int
    overflowed: int


@dataclass(frozen=True, slots=True)
class Finished:
    """One pass: what came of each output, in their order, and the bytes that were read of sources and of what earlier
    builds have left."""

    results: tuple[Written | MergeflowError, ...]
    bytes_read: int
    bytes_kept: int


def write_outputs(
    plan: Plan,
    outputs: Sequence[OutputPlan],
    device: Device,
    report: Reporter,
    expected: Mapping[int, tuple[Fingerprint, ...]],
    store: Store,
    check: Callable[[OutputPlan, str], None] = lambda output, digest: None,
    *,
    partial: bool = False,
) -> Finished:
    """Make outputs in one pass over their sources. `expected` is what each source's files looked like when it was
    identified; `check` is given each result's digest before it is published, and may raise.

    An output that cannot be published (a check, a full disk, `nonfinite: error`) is an error in the results; the
    others are not touched by it. With `partial`, so is one that the disk has no room for beside those before it.

    Raises:
        IntegrityError: a source is not the file that was planned with; no output is published.
        ResourceError: disk or memory, before anything is made.
        DeviceLost: an accelerator does not answer any more; what was made until then is left for the next build.
    """
    lacking = make_room(plan, outputs)
    if lacking and not partial:
        raise next(iter(lacking.values()))
    fitting = [output for output in outputs if output.path not in lacking]
    made = _made(plan, fitting, device, report, expected, store, check) if fitting else Finished((), 0, 0)
    results = dict(zip([output.path for output in fitting], made.results, strict=True))
    return replace(made, results=tuple([{**results, **lacking}[output.path] for output in outputs]))


def _made(
    plan: Plan, outputs: Sequence[OutputPlan], device: Device, report: Reporter,
    expected: Mapping[int, tuple[Fingerprint, ...]], store: Store, check: Callable[[OutputPlan, str], None],
) -> Finished:  # fmt: skip
    """The outputs that there is room for."""
    placement = outputs[0].placement
    assert placement is not None
    with ExitStack() as stack:
        parts = _begin(stack, outputs)
        for part, output in zip(parts, outputs, strict=True):
            _keep_journals(part, plan, output, expected)
        sinks = [
            Sink(part, Scan(output.layout.tensors, samples=False), part.done)
            for part, output in zip(parts, outputs, strict=True)
        ]
        sources = open_sources(stack, plan, [w for o in outputs for w in o.works], expected)
        with ExitStack() as kept_stack:  # closed before anything is published: it may take the place of these
            kept = open_outputs(kept_stack, plan.kept_files, plan.first_kept)
            stored = open_objects(
                kept_stack, store, plan.kept_files, plan.first_kept, plan.checks, placement.workers, report
            )
            outputs = [without(output, {**kept, **stored}, plan.first_kept) for output in outputs]
            name = outputs[0].path if len(outputs) == 1 else f"{len(outputs)} outputs"
            report(PhaseStarted("merging", name, sum(output.layout.file_size for output in outputs)))
            try:
                make(plan, outputs, None, device, report, {**sources, **kept, **stored}, sinks)
            except DeviceLost:  # no fault of what was made before; the CPU can go on from there
                for part in parts:
                    part.leave()
                raise
            bytes_kept = sum(f.bytes_read for f in kept.values())
        damaged = [damaged_names(output, sink.scan) for output, sink in zip(outputs, sinks, strict=True)]
        if any(damaged):
            count = sum(map(len, damaged))
            what = "1 tensor of an earlier build is" if count == 1 else f"{count:,} tensors of earlier builds are"
            report(Warned(f"{what} damaged: computed again"))
            again = [replace(output, kept={}) for output in outputs]
            make(plan, again, damaged, device, report, sources, sinks)
        for file in sources.values():
            file.check_unchanged()
        results = tuple(
            _publish(plan, output, part, sink, report, check)
            for output, part, sink in zip(outputs, parts, sinks, strict=True)
        )
        report(PhaseEnded("merging", name))
        return Finished(results, sum(f.bytes_read for f in sources.values()), bytes_kept)


def _begin(stack: ExitStack, outputs: Sequence[OutputPlan]) -> list[OutputFiles]:
    """The files of the outputs. Where the system refuses them, by a quota, say, all that dead builds have left goes."""
    try:
        return _opened(stack, outputs)
    except ResourceError:
        if not clear(outputs):
            raise
    return _opened(stack, outputs)


def _opened(stack: ExitStack, outputs: Sequence[OutputPlan]) -> list[OutputFiles]:
    with ExitStack() as opening:
        parts = [opening.enter_context(OutputFiles(output.target, output.layout)) for output in outputs]
        stack.enter_context(opening.pop_all())
    return parts


def _keep_journals(
    part: OutputFiles, plan: Plan, output: OutputPlan, expected: Mapping[int, tuple[Fingerprint, ...]]
) -> None:
    """For the build that comes after this one, should it be killed."""
    numbers = sorted({source for work in output.works for source, _ in work.reads})
    sources = [
        SourceFile(path.absolute(), at)
        for i in numbers
        for path, at in zip(plan.facts[i].files, expected[i], strict=True)
    ]
    kept = [output.kept.get(work.name) for work in output.works]
    payloads = [work.payload if work is not None else b"" for work in kept]
    part.keep_journals(output.path, [work.key for work in output.works], payloads, sources)


def _publish(
    plan: Plan,
    output: OutputPlan,
    part: OutputFiles,
    sink: Sink,
    report: Reporter,
    check: Callable[[OutputPlan, str], None],
) -> Written | MergeflowError:
    """What is around the tensors, which needs the digest of what was written, and the final names."""
    try:
        content = sink.scan.finish()
        lost = sink.lost + _lost_before(output, content)
        _judge(plan, output, lost, sink.overflowed, report)
        digest = printable(content.model)
        part.finish(content.digests)
        check(output, digest)
        return Written(content, part.commit(), lost, sink.overflowed)
    except MergeflowError as error:
        part.discard()
        return error


def _lost_before(output: OutputPlan, content: Content) -> int:
    """Values that are not finite in tensors of earlier builds: they count as if they were computed now."""
    if not output.kept:
        return 0
    copied = {name for name, work in output.kept.items() if work.payload}
    counts = zip(output.layout.tensors, content.nonfinite, strict=True)
    return sum(n for spec, n in counts if n and spec.name in copied)


def _judge(plan: Plan, output: OutputPlan, lost: int, overflowed: int, report: Reporter) -> None:
    """What to say, or do, about results that are not finite."""
    policy = plan.bound.recipe.options.nonfinite
    if not lost or policy == "allow":
        return
    message = f"{output.path}: {lost:,} values are NaN or infinite"
    if overflowed:
        message += f"; {overflowed:,} of them are too large for the output's dtype"
    if policy == "error":
        raise MergeflowError(
            message, hint="a wider dtype may hold them; options: { nonfinite: warn } writes them all the same"
        )
    report(Warned(message))
