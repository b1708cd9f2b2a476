"""supermerger's mergehistory.csv: a table of merges, a row each; all of them become outputs of one recipe."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping

from mergeflow.errors import Place, RecipeError
from mergeflow.exchange import supermerger
from mergeflow.exchange.draft import Draft, Imported, Value, one_line, stem
from mergeflow.recipe.expression import spell

_MODEL = re.compile(r"(?P<name>.*?)\s*(?:[\[(](?P<hash>[0-9a-fA-F]{8,64})[\])])?")
MOST_ROWS = 5000


def is_history(text: str) -> bool:
    head = text.partition("\n")[0].lower()
    return "," in head and all(f"model {x}" in head.replace("_", " ") for x in "ab") and "mode" in head


def read(text: str, path: str, row: int | None = None) -> Imported:
    """All merges of the table, or the one whose ID is `row`. A row that cannot be imported is a loss; none at all is an
    error."""
    draft = Draft(f"supermerger's history {stem(path)}")
    made: dict[str, str] = {}  # the names of earlier results -> their steps
    count = 0
    refused: RecipeError | None = None
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise RecipeError(f"the table cannot be read: {error}", place=Place(path)) from None
    if len(rows) > MOST_ROWS:
        raise RecipeError(f"the table has more than {MOST_ROWS:,} rows", place=Place(path), hint="cut it into parts")
    for line, fields in enumerate(rows, 2):
        entry = {_key(k): v.strip() for k, v in fields.items() if isinstance(k, str) and isinstance(v, str)}
        identity = entry.get("id") or str(line - 1)
        if row is not None and identity != str(row):
            continue
        try:
            _merge(draft, entry, made)
            count += 1
        except RecipeError as error:
            error.place = Place(path, line, 1)
            if row is not None:
                raise
            refused = refused or error
            draft.lose(f"row {one_line(identity)} is left out: {error.message}")
    if not count:
        if refused is not None:
            raise refused
        wanted = f"no merge with the ID {row}" if row is not None else "no merge that can be imported"
        raise RecipeError(f"the table has {wanted}", place=Place(path))
    return draft.finish()


def _key(name: str) -> str:
    return name.strip().lower().replace("_", " ")


def _merge(draft: Draft, entry: Mapping[str, str], made: dict[str, str]) -> None:
    names = {x: spell(_model(draft, entry[f"model {x}"], made)) for x in "abc" if entry.get(f"model {x}", "")}
    mbw = entry.get("use mbw", "")
    recipe = {
        "mode": entry.get("mode", ""),
        "calcmode": entry.get("calcmode", ""),
        "mbw": mbw,
        "base_alpha": entry.get("alpha", ""),
        "base_beta": entry.get("beta", ""),
        "weights_alpha": entry.get("weights alpha", ""),
        "weights_beta": entry.get("weights beta", ""),
        "elemental_merge": entry.get("elemental", ""),
    }
    expr = supermerger.expression(draft, recipe, names, "")
    _say_what_is_lost(draft, entry)
    name = entry.get("custom name") or entry.get("name") or f"merge {entry.get('id', '')}"
    value: Value = expr
    settings = entry.get("save settings", entry.get("save setting", "")).lower()
    step = draft.step(stem(one_line(name)), expr)
    made[stem(one_line(name)).casefold()] = step
    value = {"from": spell(step), "dtype": "float16"} if "fp16" in settings else spell(step)
    draft.output(name, value)


def _say_what_is_lost(draft: Draft, entry: Mapping[str, str]) -> None:
    name = one_line(entry.get("name") or entry.get("id", ""))
    for column, what in (("plus lora", "a LoRA"), ("adjust", "an adjustment")):
        if entry.get(column, "").lower() not in ("", "none", "false", "0"):
            draft.lose(f"{name}: {what} is not imported: {one_line(entry[column])}")


def _model(draft: Draft, cell: str, made: Mapping[str, str]) -> str:
    """A model as a cell names it: `name [10 digits]`; an earlier result is its step."""
    found = _MODEL.fullmatch(one_line(cell))
    name, digits = (found["name"], found["hash"]) if found else (cell, None)
    earlier = made.get(stem(name).casefold())
    if earlier is not None:
        return earlier
    file = name.replace("\\", "/").rpartition("/")[2]
    path = file if file.lower().endswith((".safetensors", ".ckpt")) else f"{file}.safetensors"
    value: Value = {"path": path, "hash": digits.lower()} if digits and len(digits) in (8, 10, 12, 64) else path
    return draft.source(path, stem(path), value)
