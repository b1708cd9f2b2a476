"""The front of all importers: what a file is shows in its content, whatever it is called."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from mergeflow.errors import MissingInput, Place, RecipeError, ResourceError
from mergeflow.exchange import graph, history, mecha, mergekit, runs, webui
from mergeflow.exchange.draft import Imported, Locate
from mergeflow.exchange.held import architecture_of, held
from mergeflow.exchange.loose import table
from mergeflow.formats.contents import read_contents
from mergeflow.formats.torchlayout import SUFFIXES, claims_path, read_claims
from mergeflow.recipe.yamltext import decode

MOST_BYTES = 16 << 20  # of a text
_KNOWN = (
    "imported are models with the merge metadata of A1111's webui, supermerger or mergeflow; mergehistory.csv, texts "
    "of sdweb-merge-board, .mecha, configurations of mergekit, and what `export --to a1111-steps` writes"
)


def read(
    path: Path, *, row: int | None = None, faithful: bool = False, locate: Locate = lambda found: found
) -> Imported:
    """A recipe of what the file says. `row`: the one merge of a history to import; `faithful`: with the roundings of
    mergekit; `locate`: makes a path that is relative to the current folder one that the recipe can have.

    Raises:
        MissingInput: there is no such file.
        RecipeError: it holds no recipe that is known, or one that cannot be said here.
        IntegrityError: it is a damaged model file.
    """
    start = _start(path)
    if path.is_dir() or _is_model(start):
        _only_for(path, row, faithful=faithful)
        return _model(path)
    text = decode(_bytes(path), str(path)).text
    document = table(text) if text.lstrip().startswith("{") else {}
    if not document and history.is_history(text):
        _only_for(path, None, faithful=faithful)
        return history.read(text, str(path), row)
    _only_for(path, row, faithful=False)
    if "merge_method" in document or (not document and not _is_ours(text) and mergekit.is_config(text)):
        return mergekit.read(text, str(path), faithful=faithful, locate=locate)
    _only_for(path, None, faithful=faithful)
    if document:
        return _document(document, path)
    if mecha.is_mecha(text):
        return mecha.read(text, str(path), locate)
    if runs.is_runs(text):
        return runs.read(text, str(path), locate)
    if _is_ours(text):
        raise RecipeError(f"{path} is a recipe of mergeflow already", hint=f"mergeflow plan {path}")
    if runs.is_board(text):
        return runs.read_board(text, str(path), locate)
    raise RecipeError("nothing here is a recipe of a tool that is known", place=Place(str(path)), hint=_KNOWN)


def _only_for(path: Path, row: int | None, *, faithful: bool) -> None:
    """Refuses options that mean nothing for such a file."""
    if row is not None:
        raise RecipeError(f"--id is for the rows of mergehistory.csv, and {path} is none")
    if faithful:
        raise RecipeError(f"--faithful is for configurations of mergekit, and {path} is none")


def _start(path: Path) -> bytes:
    try:
        if path.is_dir():
            return b""
        with path.open("rb") as file:
            return file.read(16)
    except (FileNotFoundError, NotADirectoryError):
        raise MissingInput(f"there is no file {path}") from None
    except (OSError, ValueError) as error:
        raise ResourceError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _is_model(start: bytes) -> bool:
    """Safetensors, a zip as torch writes, or a pickle."""
    return (start[8:9] == b"{" and start[4:8] == b"\0" * 4) or start[:2] == b"PK" or start[:1] == b"\x80"


def _bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        message = f"the file is larger than {MOST_BYTES >> 20} MB, too large for a recipe"
        raise RecipeError(message, place=Place(str(path)))
    return data


def _is_ours(text: str) -> bool:
    return any(line.startswith("mergeflow:") for line in text.splitlines())


def _model(path: Path) -> Imported:
    contents = read_contents(path)
    metadata: Mapping[str, str] = contents.metadata
    if not metadata and path.suffix.lower() in SUFFIXES:
        metadata = read_claims(claims_path(path)) or {}
    if metadata.get(graph.GRAPH) or metadata.get(graph.RECIPE):
        return graph.read(metadata, str(path), held(contents))
    if metadata.get(webui.RECIPE):
        return webui.read(metadata, str(path), architecture_of(contents).name)
    if metadata.get("mecha_recipe"):
        return mecha.read(metadata["mecha_recipe"], str(path))
    raise RecipeError(f"{path} does not say what it was merged from", hint=_KNOWN)


def _document(document: Mapping[str, object], path: Path) -> Imported:
    """JSON: metadata as it was copied out of a model file, or as mergeflow keeps it beside a torch file."""
    inner = document.get("metadata", document.get("__metadata__"))
    found = inner if isinstance(inner, Mapping) else document
    if "interp_method" in found or found.get("type") == "sd-webui-supermerger":
        found = {webui.RECIPE: dict(found)}
    if "schema" in found and "forms" in found:
        found = {graph.GRAPH: dict(found)}
    texts = {key: value if isinstance(value, str) else json.dumps(value, default=str) for key, value in found.items()}
    model = str(path.with_name(path.name.removesuffix(".json").removesuffix(".mergeflow")))
    if texts.get(graph.GRAPH) or texts.get(graph.RECIPE):
        return graph.read(texts, model)
    if texts.get(webui.RECIPE):
        return webui.read(texts, model)
    raise RecipeError("nothing here is a recipe of a tool that is known", place=Place(str(path)), hint=_KNOWN)
