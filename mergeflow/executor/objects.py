"""Making objects of the store: what is worth keeping is computed first, and outputs begin from it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

from mergeflow.errors import ResourceError
from mergeflow.events import PhaseEnded, PhaseStarted, Reporter, Warned
from mergeflow.executor.device import Device
from mergeflow.executor.run import Sink, make, open_sources
from mergeflow.formats.files import Fingerprint
from mergeflow.formats.scan import Scan
from mergeflow.plan.plans import Plan
from mergeflow.plan.stored import ObjectPlan
from mergeflow.store.objects import Store


def write_object(
    plan: Plan,
    planned: ObjectPlan,
    device: Device,
    report: Reporter,
    expected: Mapping[int, tuple[Fingerprint, ...]],
    store: Store,
) -> int:
    """Compute one object into the store; the bytes of sources that were read for it. Where it fails for want of room,
    the build goes on without it.

    Raises:
        IntegrityError: a source is not the file that was planned with.
    """
    with ExitStack() as stack:
        sources = open_sources(stack, plan, planned.actions, expected)
        try:
            writing = stack.enter_context(store.begin(planned.keyed, kind=planned.kind, title=planned.title))
            scan = Scan(planned.layout.tensors, samples=False)
            report(PhaseStarted("computing", planned.title, planned.layout.file_size))
            make(plan, [planned], None, device, report, sources, [Sink(writing, scan)])
            for file in sources.values():
                file.check_unchanged()
            writing.commit(scan.finish().payloads)
            report(PhaseEnded("computing", planned.title))
        except ResourceError as error:
            report(Warned(f"{planned.title} is not kept: {error.message}"))
        return sum(file.bytes_read for file in sources.values())
