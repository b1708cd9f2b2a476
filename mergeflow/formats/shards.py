"""A model in several files, named by an index: {"metadata": {…}, "weight_map": {tensor name: file name}}."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from mergeflow.errors import IntegrityError, MissingInput
from mergeflow.formats.files import ReadFile
from mergeflow.formats.stored import Contents, in_file_order, listed, recognise
from mergeflow.formats.strictjson import Duplicate, parse_json
from mergeflow.tensors import TensorSpec

INDEX_LIMIT = 100_000_000
SHARD_LIMIT = 10_000


def read_shards(index: Path, read_file: Callable[[Path], Contents]) -> Contents:
    """The model that an index describes. Shards lie beside the index; index and shards must agree on every name. Its
    metadata are those that all shards share, and the texts in the index.

    Raises:
        MissingInput: when a shard is not there.
        IntegrityError: when the index is not valid, or it and the shards disagree.
    """
    weight_map, facts = _read_index(index)
    names = sorted(set(weight_map.values()))
    if len(names) > SHARD_LIMIT:
        raise IntegrityError(f"{index}: names {len(names):,} files")
    for name in names:
        if not _plain(name):
            raise IntegrityError(
                f"{index}: names a file outside of its own folder: {name[:200]!r}",
                hint="an index may only name files beside it",
            )
    missing = [n for n in names if not os.path.exists(index.parent / n)]  # noqa: PTH110  # too long names as well
    if missing:
        raise MissingInput(
            f"{index}: {len(missing)} of its {len(names)} files are not there: {listed(missing)}",
            hint="the model was downloaded or copied only in part",
        )
    parts = [read_file(index.parent / n) for n in names]
    _agree(index, weight_map, dict(zip(names, parts, strict=True)))
    kinds = sorted({p.container for p in parts})
    joined = join(index, "sharded " + " and ".join(kinds), [("", p) for p in parts])
    said = {k: v for k, v in facts.items() if isinstance(v, str)}
    shown = {k: str(v)[:200] for k, v in facts.items()}
    return replace(joined, metadata={**joined.metadata, **said}, extras={**joined.extras, **shown})


def join(path: Path, container: str, parts: Iterable[tuple[str, Contents]]) -> Contents:
    """Several contents as one, the names in each behind its prefix. Metadata that all agree on is kept."""
    files: list[Path] = []
    tensors: dict[str, TensorSpec] = {}
    metadata: dict[str, str] | None = None
    extras: dict[str, str] = {}
    for prefix, part in parts:
        for t in part.tensors.values():
            name = prefix + t.name
            if name in tensors:
                raise IntegrityError(
                    f"{path}: tensor {name!r} is in two files: {files[tensors[name].file].name} and "
                    f"{part.files[t.file].name}"
                )
            tensors[name] = t._replace(name=name, file=t.file + len(files))
        files += part.files
        same = part.metadata if metadata is None else dict(metadata.items() & part.metadata.items())
        metadata = {k: same[k] for k in sorted(same)}
        extras |= {prefix + k: v for k, v in part.extras.items()}
    ordered = in_file_order(tensors.values())
    return Contents(container, tuple(files), ordered, metadata or {}, extras, recognise(ordered.values()))


def _read_index(index: Path) -> tuple[dict[str, str], dict[str, str | float]]:
    """Its weight_map, and the plain values of its metadata."""
    with ReadFile(index) as file:
        if file.size > INDEX_LIMIT:
            raise IntegrityError(f"{index}: not an index: it has {file.size:,} bytes")
        raw = file.read(file.size, 0)
    try:
        document = parse_json(raw)
    except Duplicate as error:
        raise IntegrityError(f"{index}: names {error.name[:200]!r} twice") from None
    except (ValueError, RecursionError):
        raise IntegrityError(f"{index}: not an index: it is not valid JSON") from None
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise IntegrityError(
            f"{index}: not an index of a sharded model: it has no weight_map from names to files",
            hint="give the folder, the index (…safetensors.index.json) or a model file",
        )
    if not weight_map:
        raise IntegrityError(f"{index}: its weight_map is empty")
    facts = document.get("metadata")
    plain = facts.items() if isinstance(facts, dict) else ()
    return weight_map, {k: v for k, v in plain if isinstance(v, (str, int, float, bool))}


def _plain(name: str) -> bool:
    """Whether this is a file's bare name, on this system and on others."""
    return name not in ("", ".", "..") and not any(c in name for c in "/\\:\0") and len(name) <= 255


def _agree(index: Path, weight_map: dict[str, str], parts: dict[str, Contents]) -> None:
    asked: dict[str, set[str]] = {file: set() for file in parts}
    for name, file in weight_map.items():
        asked[file].add(name)
    for file, part in parts.items():
        expected = asked[file]
        if absent := sorted(expected - part.tensors.keys()):
            raise IntegrityError(f"{index}: {file} should hold {listed(absent)}, and does not")
        if extra := sorted(part.tensors.keys() - expected):
            raise IntegrityError(
                f"{index}: {file} holds {listed(extra)}, of which the index says nothing, or that another file has it",
                hint="index and files are not of the same model: fetch them again",
            )
