"""A model that is a folder: a pipeline as diffusers saves it, a model as transformers saves it, or one lone file.

A pipeline has model_index.json and a folder for each part; its tensors are named `<folder>.<name in the file>`. Which
file of a part is read: safetensors before pickles, and the one without a variant before others ("…fp16.safetensors").
What was chosen, and what else was there, is said in the extras; a choice between equals is refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mergeflow.errors import IntegrityError, MissingInput
from mergeflow.formats.files import ReadFile, explain_os_error
from mergeflow.formats.shards import join
from mergeflow.formats.stored import Contents, listed
from mergeflow.formats.strictjson import parse_json

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
_STEM = r"(?:diffusion_pytorch_model|pytorch_model|model)"
# One file or an index, with or without a variant: model.fp16.safetensors, model.safetensors.index.fp16.json
_WEIGHTS = re.compile(
    rf"{_STEM}(?:\.(?P<variant>[\w-]+))?\.(?P<kind>safetensors|bin)"
    r"(?P<index>\.index(?:\.(?P<index_variant>[\w-]+))?\.json)?"
)
_SHARD = re.compile(rf"{_STEM}(?:\.[\w-]+)?-\d{{5}}-of-\d{{5}}(?:\.[\w-]+)?\.(?:safetensors|bin)")
_WEIGHTLESS = ("tokenizer", "scheduler", "processor", "extractor")
_JSON_LIMIT = 10_000_000


def read_folder(folder: Path, read_file: Callable[[Path], Contents]) -> Contents:
    """The model in a folder; `read_file` reads a model file or an index.

    Raises:
        MissingInput: when it holds no model, or a part of a pipeline is not there.
        IntegrityError: when it cannot be told which file is meant, or one of them is damaged.
    """
    names = _names(folder)
    if "model_index.json" in names:
        return _pipeline(folder, read_file)
    chosen = _choose(folder, names)
    if chosen is None:
        raise MissingInput(
            f"{folder}: a folder without a model", hint=f"it holds {listed(sorted(names), 12) or 'nothing'}"
        )
    name, note = chosen
    part = read_file(folder / name)
    return replace(part, container="folder", extras={"file": note, **part.extras})


def _pipeline(folder: Path, read_file: Callable[[Path], Contents]) -> Contents:
    parts, notes = [], {}
    for component, class_name in _components(folder / "model_index.json"):
        place = folder / component
        weightless = any(word in class_name.lower() for word in _WEIGHTLESS)
        if not os.path.isdir(place):  # noqa: PTH112  # unlike Path's it answers names that are too long for one
            if weightless:
                continue
            raise MissingInput(
                f"{folder}: its part {component[:200]} ({class_name[:200]}) is not there",
                hint="the model was downloaded or copied only in part",
            )
        names = _names(place)
        chosen = _choose(place, names)
        if chosen is None:
            if weightless:
                continue
            raise MissingInput(
                f"{place}: a part ({class_name}) without a model file",
                hint=f"it holds {listed(sorted(names), 12) or 'nothing'}",
            )
        name, notes[component] = chosen
        parts.append((component + ".", read_file(place / name)))
    if not parts:
        raise MissingInput(f"{folder}: its model_index.json names no part with a model file")
    joined = join(folder, "folder", parts)
    return replace(joined, extras={**notes, **joined.extras}, other={})


def _components(index: Path) -> list[tuple[str, str]]:
    """(folder, class) of each part that the pipeline has, by name."""
    with ReadFile(index) as file:
        raw = file.read(min(file.size, _JSON_LIMIT), 0)
    try:
        document = parse_json(raw)
    except (ValueError, RecursionError):
        raise IntegrityError(f"{index}: not valid JSON") from None
    if not isinstance(document, dict):
        raise IntegrityError(f"{index}: not a JSON object")
    result = []
    for name, value in sorted(document.items()):
        match value:
            case [_, str(class_name)] if not name.startswith("_"):
                if not re.fullmatch(r"\w[\w-]*", name):
                    raise IntegrityError(f"{index}: names a part outside of its own folder: {name[:200]!r}")
                result.append((name, class_name))
    return result


def _names(folder: Path) -> set[str]:
    try:
        return {p.name for p in folder.iterdir()}
    except OSError as error:
        raise explain_os_error(error, "listing it", folder) from error


def _choose(folder: Path, names: set[str]) -> tuple[str, str] | None:
    """The file to read and what to say of the choice, or None where there is no model file at all."""
    for kind in ("safetensors", "bin"):
        found: dict[str, list[str]] = {}
        for name in sorted(names):
            m = _WEIGHTS.fullmatch(name)
            if m and m["kind"] == kind and not _SHARD.fullmatch(name):
                found.setdefault(m["variant"] or m["index_variant"] or "", []).append(name)
        if not found:
            continue
        variant = "" if "" in found else min(found)
        others = [n for v, files in found.items() if v != variant for n in files]
        if len(found[variant]) > 1 or (variant and others):
            raise _ambiguous(folder, [n for files in found.values() for n in files])
        name = found[variant][0]
        return name, name + (f" (not {listed(others)})" if others else "")
    lone = sorted(n for n in names if n.lower().endswith(SUFFIXES) and not n.startswith("."))
    if len(lone) > 1:
        raise _ambiguous(folder, lone)
    return (lone[0], lone[0]) if lone else None


def _ambiguous(folder: Path, names: list[str]) -> IntegrityError:
    return IntegrityError(
        f"{folder}: more than one model in this folder: {listed(sorted(names), 12)}", hint="give the file instead"
    )
