"""Files beside an output, on request (`sidecars:`): the config that webuis load a model with, a list of sha256, a
statement of where it comes from, a model card.

`mix.safetensors` has `mix.yaml`, the file of that kind beside its first model; `mix.safetensors.sha256`, one line for
each of its files as sha256sum writes them: `sha256sum -c mix.safetensors.sha256` in that folder checks them;
`mix.safetensors.provenance.json` (`provenance.statement`) and `mix.card.md` (`provenance.card`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from mergeflow.errors import IntegrityError, MissingInput
from mergeflow.formats.files import ReadFile
from mergeflow.formats.sharded import INDEX

CONFIG_LIMIT = 1_000_000
_MODEL = re.compile(rb"^model\s*:", re.MULTILINE)
_SUM = re.compile(r"([0-9a-f]{64})  (\S.*)")


def plain_name(target: Path) -> str:
    """What a recipe calls an output: that of an index is the model's."""
    return target.name.removesuffix(INDEX)


def config_path(target: Path) -> Path:
    return target.with_name(Path(plain_name(target)).stem + ".yaml")


def sums_path(target: Path) -> Path:
    return target.with_name(plain_name(target) + ".sha256")


def statement_path(target: Path) -> Path:
    return target.with_name(plain_name(target) + ".provenance.json")


def card_path(target: Path) -> Path:
    return target.with_name(Path(plain_name(target)).stem + ".card.md")


def read_config(source: Path, name: str) -> bytes:
    """The config beside the file of a source.

    Raises:
        MissingInput: there is none.
        IntegrityError: what lies there is something else, such as a recipe of that name.
    """
    path = source.with_suffix(".yaml")
    try:
        with ReadFile(path) as file:
            data = file.read(min(file.size, CONFIG_LIMIT + 1), 0)
    except MissingInput:
        raise MissingInput(
            f"sidecars: config asks for {path.name} beside {name}, and there is none",
            hint="put it there, or leave config out of sidecars:",
        ) from None
    if len(data) > CONFIG_LIMIT or not _MODEL.search(data):
        raise IntegrityError(
            f"{path}: is not the config of a model: those have a section `model:`",
            hint="leave config out of sidecars:, or put the config there",
        )
    return data


def sums_text(hashes: Mapping[Path, str]) -> str:
    """Lines for sha256sum, which marks and escapes names with backslashes (line breaks are in no output's name)."""
    lines = []
    for path, sha256 in hashes.items():
        name = path.name.replace("\\", "\\\\")
        mark = "\\" if name != path.name else ""
        lines.append(f"{mark}{sha256}  {name}\n")
    return "".join(lines)


def read_sums(path: Path) -> dict[str, str]:
    """sha256 by file name; empty where there is no such list."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    found: dict[str, str] = {}
    for line in lines:
        if match := _SUM.fullmatch(line.removeprefix("\\")):
            found[match[2].replace("\\\\", "\\") if line.startswith("\\") else match[2]] = match[1]
    return found


def is_sums(path: Path, target: Path) -> bool:
    """Whether a file is a list of the hashes of this output and of nothing else."""
    stem = Path(plain_name(target)).stem
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return False
    found = [_SUM.fullmatch(line.removeprefix("\\")) for line in lines]
    return bool(found) and all(match is not None and match[2].startswith(stem) for match in found)
