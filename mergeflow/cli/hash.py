"""`mergeflow hash`: the digest of files, and the hashes that people quote."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mergeflow.cli import options
from mergeflow.cli.report import Screen
from mergeflow.cli.text import echo, print_json, table
from mergeflow.errors import IntegrityError

if TYPE_CHECKING:
    from mergeflow.sources.memo import Memo

SCHEMA = "mergeflow/hash/1"
LABELS = {
    "model": "of the tensors, whatever the container",
    "sha256": "of the file",
    "a1111": "A1111's 10 digits",
    "old": "A1111's old 8 digits",
    "autov3": "AutoV3",
}


@click.command(no_args_is_help=True)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@click.option("--only", type=click.Choice(list(LABELS)), help="One line a file; `sha256sum -c` reads those of sha256.")
@options.json_option
@options.debug_option
def command(files: tuple[Path, ...], only: str | None, as_json: bool) -> None:
    """Print the model digest of each FILE, its sha256, and the hashes that web UIs show. They are remembered."""
    from mergeflow.sources.memo import Memo, default_folder

    found = {}
    with Screen(brief=True) as screen, closing(Memo(default_folder(), screen.warn)) as memo:
        for file in files:
            found[file] = hashes(file, only, memo, screen)
    if as_json:
        print_json(SCHEMA, files=[{"file": str(file), **values} for file, values in found.items()])
    elif only:
        echo("\n".join(_line(str(values[only]), str(file)) for file, values in found.items()))
    else:
        for file, values in found.items():
            echo(str(file))
            rows = [(name, value or "-", LABELS[name]) for name, value in values.items()]
            echo("\n".join(table(rows, limit=80)))


def hashes(file: Path, only: str | None, memo: Memo, screen: Screen) -> dict[str, str | None]:
    """The hashes asked for. Files that are no model have a sha256 all the same, and only safetensors files
    an AutoV3."""
    from mergeflow.formats.contents import is_safetensors
    from mergeflow.formats.files import ReadFile
    from mergeflow.sources.hashes import autov3, old_hash, sha256
    from mergeflow.sources.identify import identify

    values: dict[str, str | None] = {}
    wanted = [only] if only else list(LABELS)
    model = None
    with ReadFile(file) as opened:
        try:
            if "model" in wanted:
                model = identify(file, memo, screen).model
            readable = is_safetensors(opened)
        except IntegrityError as error:
            if only:
                raise
            screen.warn(error.message)
            readable = False
        for name in wanted:
            if name == "model":
                values[name] = model
            elif name in ("sha256", "a1111"):
                values[name] = sha256(file, memo, screen)[: 64 if name == "sha256" else 10]
            elif name == "old":
                values[name] = old_hash(opened)
            else:
                values[name] = autov3(opened, memo, screen)[:12] if readable else None
    return values


def _line(value: str, file: str) -> str:
    """As sha256sum writes it, which marks and escapes names with line breaks and backslashes."""
    if "\\" in file or "\n" in file:
        escaped = file.replace("\\", "\\\\").replace("\n", "\\n")
        return f"\\{value}  {escaped}"
    return f"{value}  {file}"
