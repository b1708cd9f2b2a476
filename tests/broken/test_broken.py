"""What bad input gets: a message that says where, what and what to do, an exit code, and a folder as it was."""

from __future__ import annotations

from pathlib import Path

import broken_commands
import broken_files
import broken_meaning
import broken_recipes
import pytest
from broken_case import GOLDEN, Case, check_golden, fits_a_screen, prepare, run, small
from click.testing import CliRunner

from mergeflow.cli.main import cli

CASES = [
    case
    for cases in (broken_recipes.CASES, broken_files.CASES, broken_meaning.CASES, broken_commands.CASES)
    for case in cases
]


@pytest.fixture(scope="session")
def old(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An output that an earlier build made: ours to replace, were there something to replace it with."""
    folder = tmp_path_factory.mktemp("old")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        prepare(Case("", 0), folder, None)
        done = CliRunner().invoke(cli, ["merge", "a*0.25 + b*0.75", "a=a.safetensors", "b=b.safetensors", "-o", "mix.safetensors"])
        assert done.exit_code == 0, done.stderr
    return (folder / "mix.safetensors").read_bytes()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_broken(case: Case, tmp_path: Path, old: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    said = run(case, tmp_path, old, monkeypatch)
    check_golden(case.name, said)
    assert fits_a_screen(said)
    assert "Traceback" not in said
