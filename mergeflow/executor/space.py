"""Whether the disks have room for outputs that are written together: all of them lie there at once, beside the files
that they replace, which go when the new ones are complete."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from mergeflow.errors import ResourceError
from mergeflow.formats.parts import clear_dead_parts, disk_of
from mergeflow.plan.plans import OutputPlan, Plan
from mergeflow.tensors import human_bytes


def make_room(plan: Plan, outputs: Sequence[OutputPlan]) -> Mapping[str, ResourceError]:
    """Clear away what dead builds have left, and say which outputs there is no room for, by path; those before them
    come first. What this build takes of dead ones stays until it has ended, so that nothing is lost when it is killed
    in turn. Where it takes the room that the outputs need, it goes: rather computed again than not at all."""
    clear(outputs, {file.path for file in plan.kept_files if file.path is not None})
    lacking = without_room(outputs)
    return without_room(outputs) if lacking and clear(outputs) else lacking


def clear(outputs: Sequence[OutputPlan], spare: Collection[Path] = ()) -> bool:
    """Remove what dead builds have left where these outputs go, but what is to be spared; whether there was any."""
    folders = list(dict.fromkeys(output.target.parent for output in outputs))
    removed = [path for folder in folders for path in clear_dead_parts(folder, spare)]
    return bool(removed)


def without_room(outputs: Sequence[OutputPlan]) -> dict[str, ResourceError]:
    """Those that do not fit beside the ones before them, each with its error."""
    free: dict[int, int] = {}
    taken: dict[int, int] = {}
    lacking: dict[str, ResourceError] = {}
    for output in outputs:
        size = sum(output.layout.sizes(output.target))
        disk, here = disk_of(output.target)
        room, before = free.setdefault(disk, here), taken.get(disk, 0)
        if before + size > room:
            lacking[output.path] = _error(output.target, size, room, before)
        else:
            taken[disk] = before + size
    return lacking


def _error(target: Path, size: int, free: int, before: int) -> ResourceError:
    message = f"{target}: needs {human_bytes(size)}, the disk has {human_bytes(free)} free"
    if not before:
        return ResourceError(message, hint="free some space, or write it to another disk")
    return ResourceError(
        f"{message}, {human_bytes(before)} of it for what is written together with it",
        hint="free some space, or name fewer outputs at a time; --keep-going makes those that there is room for",
    )
