"""How amounts and durations are written, and amounts read: on the command line, in recipes and in the environment."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.commands import run

from mergeflow.build import storing, targets
from mergeflow.build.machine import parse_memory
from mergeflow.cli.text import seconds
from mergeflow.errors import Place, RecipeError, ResourceError
from mergeflow.tensors import parse_bytes


@pytest.mark.parametrize(
    ("duration", "text"),
    [
        (0.04, "0.0 s"), (9.94, "9.9 s"), (12.4, "12 s"), (99.4, "99 s"), (100.0, "1 min 40 s"), (119.7, "2 min 0 s"),
        (3599.6, "60 min 0 s"),
    ],
)  # fmt: skip
def test_durations(duration: float, text: str) -> None:
    assert seconds(duration) == text


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("0", 0), ("0B", 0), ("999", 999), ("1.5KB", 1500), ("2 kib", 2048), ("1.1GB", 1_100_000_000),
        (" 3T ", 3 * 10**12), ("0.000000001 GB", 1), ("0.3KiB", 307), ("9" * 15 + "T", (10**15 - 1) * 10**12),
        ("", None), ("GB", None), ("1,5GB", None), ("-1", None), ("1e3", None), ("5 giga", None), ("1.GB", None),
    ],
)  # fmt: skip
def test_amounts_of_bytes(text: str, nbytes: int | None) -> None:
    assert parse_bytes(text) == nbytes


@pytest.mark.parametrize("text", ["much", "0", "0.0000000001GB"])
def test_what_is_no_memory(text: str) -> None:
    with pytest.raises(RecipeError):
        parse_memory(text)


def test_drives_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows not even the topmost folder of a path has to exist."""
    monkeypatch.setattr(Path, "exists", lambda self, **more: False)
    assert storing._there(Path("/no/such")) == Path("/no/such")
    with pytest.raises(ResourceError, match="there is no /"):
        targets._check_writable("mix.safetensors", Path("/no/such/mix.safetensors"), Place())


def test_names_in_a_file_cannot_move_the_cursor(tmp_path: Path) -> None:
    file = tmp_path / "odd.safetensors"
    name, note = "a\x1b]0;renamed\x07", "b\x1b[2Jc\x9b1A"
    save_file({name: np.zeros(2, np.float32)}, file, metadata={"note": note})
    for arguments in (["inspect", file, "--tensors"], ["diff", file, file], ["check", file]):
        shown = run(*arguments).stdout
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", shown), arguments
    assert r"a\x1b]0;renamed\x07" in run("inspect", file, "--tensors").stdout
    told = json.loads(run("inspect", file, "--json").stdout)
    assert told["metadata"]["note"] == note
