"""What bad input gets: a message that says where, what and what to do, an exit code, and a folder as it was."""

from __future__ import annotations

import shlex
from pathlib import Path

import broken_commands
import broken_files
import broken_meaning
import broken_recipes
import pytest
from broken_case import GOLDEN, Case, check_golden, fits_a_screen, prepare, run, spoken, tree
from click.testing import CliRunner
from support.builds import python

from mergeflow.cli.main import cli

CASES = [
    case
    for cases in (broken_recipes.CASES, broken_files.CASES, broken_meaning.CASES, broken_commands.CASES)
    for case in cases
]
ALONE = (  # tried in a process of their own as well
    "name-misspelt", "content-truncated-data", "architectures-differ", "memory-too-small", "output-not-ours",
    "nan-in-a-source",
)  # fmt: skip
ELSEWHERE = ("disk-", "folder-", "long-")  # golden files of other tests in this folder

COMMAND = """
import atexit, sys
atexit.register(lambda: print("torch" in sys.modules))
from mergeflow.cli.main import main
sys.argv[0] = "mergeflow"
try:
    main()
except SystemExit as end:
    print(end.code)
"""


@pytest.fixture(scope="session")
def old(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An output that an earlier build made: ours to replace, were there something to replace it with."""
    folder = tmp_path_factory.mktemp("old")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        prepare(Case("", 0), folder, None)
        words = "merge a*0.25+b*0.75 a=a.safetensors b=b.safetensors -o mix.safetensors"
        done = CliRunner().invoke(cli, shlex.split(words))
        assert done.exit_code == 0, done.stderr
    return (folder / "mix.safetensors").read_bytes()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_broken(case: Case, tmp_path: Path, old: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old").mkdir()
    said = run(case, tmp_path / "old", old, monkeypatch)
    check_golden(case.name, said)
    assert fits_a_screen(said)
    assert "Traceback" not in said
    (tmp_path / "new").mkdir()
    assert run(case, tmp_path / "new", None, monkeypatch).replace("/new", "/old") == said


@pytest.mark.parametrize("name", ALONE)
def test_torch_is_not_imported(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same in a process of its own, where nothing has imported anything yet."""
    case = next(case for case in CASES if case.name == name)
    prepare(case, tmp_path, None)
    before = tree(tmp_path)
    monkeypatch.chdir(tmp_path)
    done = python(COMMAND, *shlex.split(case.command), MERGEFLOW_MEMO=str(tmp_path.parent / "memo"))
    assert done.stdout.split() == [str(case.code), "False"]
    assert spoken(done.stderr, tmp_path) == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")
    assert tree(tmp_path) == before


def test_no_two_cases_and_no_golden_file_is_left_over() -> None:
    names = [case.name for case in CASES]
    assert sorted(set(names)) == sorted(names)
    files = {path.stem for path in GOLDEN.glob("*.txt") if not path.stem.startswith(ELSEWHERE)}
    assert files == set(names)
