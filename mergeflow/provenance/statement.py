"""Where an output comes from, as others read it: an in-toto statement (v1) with a SLSA provenance predicate (v1).

in-toto: a statement has `_type`, a non-empty `subject` of names with digests, `predicateType` and `predicate`. SLSA:
the predicate has `buildDefinition` (buildType, externalParameters, internalParameters, resolvedDependencies) and
`runDetails` (builder). A build on somebody's own machine is Build L1, and no more is claimed.

There is no time, machine or path in it: the same build writes the same statement everywhere. Digests are sha256 of
files and, under `mergeflow`, BLAKE3 of tensors whatever their container; a sharded source has only the latter.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergeflow import __version__
from mergeflow.plan.embed import GRAPH

TYPE = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:x-mergeflow:build:1"  # docs/sharing.md says what the parameters mean
BUILDER = "urn:x-mergeflow:builder:local"


@dataclass(frozen=True, slots=True)
class Material:
    """A source. `model` is the digest of its tensors (`b3:…`), `sha256` that of its file, '' where there are several;
    `origin` is where it can be fetched, `license` what the recipe says of it."""

    name: str
    model: str
    sha256: str = ""
    origin: str = ""
    license: str = ""


@dataclass(frozen=True, slots=True)
class Made:
    """An output as it lies there. `path` is the recipe's name of it, `files` the sha256 of each file by name, `claims`
    what it says of itself; `recipe` and `overrides` are as they may be passed on."""

    path: str
    files: Mapping[str, str]
    model: str
    claims: Mapping[str, str]
    materials: Sequence[Material]
    recipe: str = ""
    overrides: Sequence[str] = ()


def statement_text(made: Made) -> str:
    return json.dumps(statement(made), indent=2, ensure_ascii=False) + "\n"


def statement(made: Made) -> dict[str, Any]:
    return {
        "_type": TYPE,
        "subject": [{"name": name, "digest": {"sha256": sha256}} for name, sha256 in made.files.items()],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "output": made.path,
                    "recipe": made.recipe,
                    "overrides": list(made.overrides),
                },
                "internalParameters": {"model": made.model, "graph": json.loads(made.claims[GRAPH])},
                "resolvedDependencies": [_dependency(material) for material in made.materials],
            },
            "runDetails": {"builder": {"id": BUILDER, "version": {"mergeflow": __version__}}},
        },
    }


def _dependency(material: Material) -> dict[str, Any]:
    digest = {"mergeflow": material.model.removeprefix("b3:")}
    found: dict[str, Any] = {"name": material.name}
    if material.origin:
        found["uri"] = material.origin
    found["digest"] = {"sha256": material.sha256, **digest} if material.sha256 else digest
    if material.license:
        found["annotations"] = {"license": material.license}
    return found


def read_statement(path: Path) -> dict[str, Any] | None:
    """A statement of mergeflow's; None where that is something else."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        ours = document["predicate"]["buildDefinition"]["buildType"] == BUILD_TYPE and document["_type"] == TYPE
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return document if ours else None


def subjects(document: Mapping[str, Any]) -> dict[str, str]:
    """The sha256 that a statement gives to each file name; what is not as it should be is left out."""
    return {name: digest["sha256"] for name, digest in _described(document.get("subject")) if "sha256" in digest}


def source_names(document: Mapping[str, Any]) -> dict[str, str]:
    """What a statement calls the sources, by the digests of their tensors; what is not as it should be is left out."""
    described = _described(document["predicate"]["buildDefinition"].get("resolvedDependencies"))
    return {f"b3:{digest['mergeflow']}": name for name, digest in described if "mergeflow" in digest}


def _described(listed: object) -> Iterator[tuple[str, dict[str, str]]]:
    """The names and digests of in-toto's resource descriptors. A file beside a model may say anything."""
    for entry in listed if isinstance(listed, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("name"), str) and isinstance(entry.get("digest"), dict):
            yield entry["name"], {kind: value for kind, value in entry["digest"].items() if isinstance(value, str)}
