"""After an output is published: it is remembered, what it replaces goes, and what was asked for is put beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeflow.build.settings import Tally
from mergeflow.build.state import is_recorded, put_records
from mergeflow.digest import model_digest, printable
from mergeflow.errors import MergeflowError, RecipeError
from mergeflow.events import Reporter
from mergeflow.formats.parts import write_file
from mergeflow.formats.sharded import INDEX, index_of, is_shard
from mergeflow.formats.torchlayout import claims_path, read_claims
from mergeflow.plan.bound import Bound
from mergeflow.plan.plans import OutputPlan, Plan
from mergeflow.provenance import beside
from mergeflow.provenance.sidecar import is_ours as recipe_is_ours
from mergeflow.provenance.sidecar import sidecar_path
from mergeflow.sources.hashes import sha256
from mergeflow.sources.memo import Known, Memo
from mergeflow.store.records import OutputRecord, Records

if TYPE_CHECKING:
    from mergeflow.executor.outputs import Written
    from mergeflow.formats.scan import Content

TOLD = ("provenance", "card")  # what `mergeflow.build.told` writes; most outputs have neither


def made_now(counts: Tally, took: float) -> dict[str, Any]:
    """What a record says of the building itself: when, how long the pass over the sources took (seconds), and how many
    tensors were computed, copied and reused."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"at": now, "seconds": round(took, 3), **counts._asdict()}


def remember(
    output: OutputPlan, written: Written, records: Records, memo: Memo, made: Mapping[str, Any] | None = None
) -> None:
    """By record and memo, file by file."""
    put_records(records, output, written.at, printable(written.content.model), made)
    for at, held in zip(written.at, output.layout.holds(), strict=True):
        if held.stop > held.start:
            memo.remember(at, _known(output, written.content, held))


def _known(output: OutputPlan, content: Content, held: slice) -> Known:
    tensors, digests = output.layout.tensors[held], content.digests[held]
    model = model_digest(zip((t.name for t in tensors), digests, strict=True))
    ranges = content.low[held].tobytes(), content.high[held].tobytes(), b""
    return Known(model, digests, content.payloads[held], content.nonfinite[held], *ranges)


def retire(output: OutputPlan, records: Records) -> Iterator[str]:
    """Remove what earlier builds wrote under this name in another shape: one file where there are shards now, shards
    where there is one file, or another number of them. Loaders would find it, and some prefer it. A file that is not
    as it was recorded stays; a line for each that readers of this output may take for it."""
    current = {*output.files}
    for path in _other_shapes(output.target, records):
        if path in current or not path.exists():
            continue
        if is_recorded(path, records.find(path)):
            path.unlink()
            records.forget(path)
        else:
            yield f"{path.name} beside {output.target.name} was not written by mergeflow; loaders may take it instead"


def _other_shapes(target: Path, records: Records) -> list[Path]:
    if target.name.endswith(INDEX):
        index, one = target, [target.with_name(beside.plain_name(target))]
    elif target.suffix.lower() == ".safetensors":
        index, one = index_of(target), [index_of(target)]
    else:
        return []
    return one + [path for path in records.paths() if path.parent == target.parent and is_shard(path, index)]


# Files beside an output


def side_files(output: OutputPlan, bound: Bound) -> dict[str, Path]:
    """Those that an output asks for, by what they are."""
    wanted = bound.outputs[output.path][1].sidecars
    where = {
        "config": beside.config_path(output.target),
        "sha256": beside.sums_path(output.target),
        "provenance": beside.statement_path(output.target),
        "card": beside.card_path(output.target),
    }
    return {kind: path for kind, path in where.items() if kind in wanted}


def check_apart(plan: Plan) -> None:
    """Files of outputs, and those beside them, are no inputs and not each other's.

    Raises:
        RecipeError: they are.
    """
    inputs = {path.resolve() for path in plan.bound.files}
    inputs |= {path.resolve() for fact in plan.facts.values() for path in fact.files}
    inputs |= {source.path.resolve() for source in plan.bound.sources}
    owner: dict[Path, str] = {}
    for output in plan.outputs:
        place = plan.bound.outputs[output.path][1].place
        beside_it = side_files(output, plan.bound)
        one = output.target.with_name(beside.plain_name(output.target))  # where shards are asked for, it makes room
        for path in dict.fromkeys((one, *output.files, *beside_it.values())):
            if path.resolve() in inputs:
                what = "an input" if len(output.files) == 1 or path in beside_it.values() else "its own input"
                raise RecipeError(
                    f"{path.name}, which is written with {output.path}, would overwrite {what}",
                    place=place,
                    hint="give the output another name",
                )
            shared = path == beside_it.get("config")  # which may be one and the same: see configs
            if owner.setdefault(path, output.path) != output.path and not shared:
                raise RecipeError(
                    f"{output.path} and {owner[path]} would both write {path.name}",
                    place=place,
                    hint="rename one of them",
                )


def configs(plan: Plan) -> dict[Path, bytes]:
    """What the configs beside the outputs are to be.

    Raises:
        MissingInput: there is none beside the first model.
        IntegrityError: what lies there is no config.
        RecipeError: two outputs would have different ones under one name.
    """
    found: dict[Path, bytes] = {}
    by: dict[Path, str] = {}
    for output in plan.outputs:
        if (path := side_files(output, plan.bound).get("config")) is None:
            continue
        place = plan.bound.outputs[output.path][1].place
        source = plan.bound.sources[output.resolved.primary]
        try:
            data = beside.read_config(source.path, source.name)
        except MergeflowError as error:
            error.place = place
            raise
        if found.setdefault(path, data) != data:
            raise RecipeError(
                f"{path.name} would be the config of {by[path]} and of {output.path}, and these differ",
                place=place,
                hint="give the outputs names that differ before the suffix",
            )
        by[path] = output.path
    return found


def strange_side_file(output: OutputPlan, bound: Bound, wanted: dict[Path, bytes], records: Records) -> Path | None:
    """A file in the place of one of those beside an output that somebody else has put there, or edited."""
    for kind, path in side_files(output, bound).items():
        if not path.exists() or is_recorded(path, records.find(path)):
            continue
        if kind == "config":
            same = path.read_bytes() == wanted[path]
        else:
            same = _is_told(kind, path) if kind in TOLD else beside.is_sums(path, output.target)
        if not same:
            return path
    return None


def leave_side_files(
    output: OutputPlan, plan: Plan, wanted: dict[Path, bytes], records: Records, memo: Memo, report: Reporter
) -> None:
    """Write those that are not there as they should be. The sha256 of a file is taken once for each build of it."""
    for kind, path in side_files(output, plan.bound).items():
        record = records.find(path)
        current = is_recorded(path, record)
        if kind == "sha256":
            if current and record is not None and record.key == output.key:
                continue
            data = beside.sums_text(_hashes(output, memo, report)).encode()
        else:
            if kind in TOLD:
                from mergeflow.build.told import tell

                files = {file.name: sha256 for file, sha256 in _hashes(output, memo, report).items()}
                of_output = records.find(output.target)
                data = tell(kind, plan, output, files, of_output.model if of_output else "", memo, report)
            else:
                data = wanted[path]
            if current and path.read_bytes() == data:
                continue
        records.put(path, OutputRecord(write_file(path, data), output.key, "", {}))


def _hashes(output: OutputPlan, memo: Memo, report: Reporter) -> dict[Path, str]:
    """The sha256 of the files that an output consists of: those with tensors, and the one that it is known by."""
    files = zip(output.files, output.layout.holds(), strict=True)
    listed = [file for file, held in files if held.stop > held.start or file == output.target]
    return {file: sha256(file, memo, report) for file in listed}


# Cleaning


def files_there(target: Path) -> list[Path]:
    """The files of an output that are there, of whatever build; the shards of one whose index is gone, too."""
    found = [target]
    if target.name.endswith(INDEX) and target.parent.is_dir():
        found = [*sorted(path for path in target.parent.iterdir() if is_shard(path, target)), target]
    return [path for path in found if path.exists()]


def remove_side_files(target: Path, records: Records) -> None:
    """What mergeflow has written beside an output: its recipe, its claims, its config, its hashes, what is told of
    it."""
    recipe, claims = sidecar_path(target), claims_path(target)
    config, sums = beside.config_path(target), beside.sums_path(target)
    ours = [
        (recipe, recipe_is_ours(recipe)),
        (claims, read_claims(claims) is not None),
        (sums, beside.is_sums(sums, target)),
        (config, is_recorded(config, records.find(config))),
        (statement := beside.statement_path(target), _is_told("provenance", statement)),
        (card := beside.card_path(target), _is_told("card", card)),
    ]
    for path, is_mine in ours:
        if is_mine:
            path.unlink(missing_ok=True)
            records.forget(path)


def _is_told(kind: str, path: Path) -> bool:
    """Whether mergeflow wrote a statement or a card as it is."""
    if not path.exists():
        return False
    from mergeflow.build.told import is_told

    return is_told(kind, path)
