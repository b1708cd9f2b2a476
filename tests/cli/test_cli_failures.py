"""Every way to end: exit codes, one message, and nothing but JSON on stdout when JSON was asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.commands import run, run_json

from mergeflow.cli import build, failure
from mergeflow.cli.main import SUMMARIES
from mergeflow.errors import MergeflowError, Place


@pytest.mark.parametrize(
    ("arguments", "exit_code", "said"),
    [
        (("bild",), 2, "did you mean build?"),
        (("mix.yaml",), 2, "mergeflow build mix.yaml"),
        (("build", "--forse"), 2, "--force"),
        (("build", "nope.yaml"), 4, "there is no recipe nope.yaml"),
        (("build", "nope"), 2, "no output is called nope"),
        (("build", "leud.safetensors"), 2, "did you mean out/lewd.safetensors"),
        (("build", "--set", "n=1"), 2, "no param is called n"),
        (("build", "--set", "m"), 2, "write it as NAME=VALUE"),
        (("build", "--source", "a=gone.safetensors"), 4, "gone.safetensors: there is no such file"),
        (("build", "--memory", "lots"), 2, "write it as 4GB"),
        (("build", "-j", "0"), 2, "--jobs"),
        (("inspect",), 2, "Usage: mergeflow inspect"),
        ((), 2, "Usage: mergeflow"),
    ],
)
def test_mistakes_are_answered(folder: Path, arguments: tuple[str, ...], exit_code: int, said: str) -> None:
    result = run(*arguments, exit_code=exit_code)
    assert result.stdout == ""
    assert said in result.stderr


def test_without_a_recipe_the_others_in_the_folder_are_named(folder: Path) -> None:
    Path("recipe.yaml").rename("mix.yaml")
    assert "name one of mix.yaml" in run("plan", exit_code=2).stderr


def test_places_and_hints_are_shown(folder: Path) -> None:
    text = Path("recipe.yaml").read_text(encoding="utf-8").replace("(b - c)", "(b - cc)")
    Path("recipe.yaml").write_text(text, encoding="utf-8")
    stderr = run("plan", exit_code=2).stderr
    assert stderr.startswith("mergeflow: error: recipe.yaml:5:18: ")
    assert "\n    lewd: a + (b - cc) * m\n  hint: did you mean c" in stderr
    error = run_json("plan", exit_code=2)
    assert error["schema"] == "mergeflow/error/1"
    assert error["place"] == {"file": "recipe.yaml", "line": 5, "column": 18, "text": "lewd: a + (b - cc) * m"}
    assert error["exit_code"] == 2
    assert "did you mean c" in error["hint"]


def test_usage_errors_are_json_too(folder: Path) -> None:
    assert run_json("build", "--forse", exit_code=2)["place"] is None


def test_traceback_only_when_asked_for(folder: Path) -> None:
    assert "Traceback" not in run("build", "nope", exit_code=2).stderr
    assert "Traceback" in run("build", "nope", "--debug", exit_code=2).stderr


@pytest.mark.parametrize(
    ("error", "exit_code", "said"),
    [
        (KeyboardInterrupt(), 130, "mergeflow: interrupted\n"),
        (failure.Terminated(), 143, "mergeflow: terminated\n"),
        (MemoryError(), 7, "not enough memory"),
        (PermissionError(13, "Permission denied", "x.safetensors"), 7, "x.safetensors: Permission denied"),
        (MergeflowError("it failed"), 1, "mergeflow: error: it failed\n"),
        (ZeroDivisionError("oops"), 70, "mergeflow: bug: ZeroDivisionError: oops\n"),
    ],
)
def test_whatever_happens_becomes_an_exit_code(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, exit_code: int, said: str
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(build, "run", fail)
    stderr = run("build", exit_code=exit_code).stderr
    assert said in stderr
    assert ("Traceback" in stderr) == (exit_code == 70)
    assert json.loads(run("build", "--json", exit_code=exit_code).stdout)["exit_code"] == exit_code


def test_long_messages_fit_on_a_screen() -> None:
    error = MergeflowError("x" * 10_000 + "\n" + "y\n" * 100, place=Place("f", 1, 2, "t"), hint="the way out")
    shown = failure.shown(failure.judge(error)).splitlines()
    assert len(shown) <= failure.MAX_LINES
    assert max(map(len, shown)) <= failure.MAX_LINE
    assert shown[-1] == "  hint: the way out"


@pytest.mark.parametrize("name", SUMMARIES)
def test_every_command_has_help_and_debug(name: str) -> None:
    text = run(name, "-h").stdout
    assert text.startswith(f"Usage: mergeflow {name} ")
    assert "--debug" in text
    assert max(map(len, text.splitlines())) <= 100 + 20


def test_the_list_of_commands() -> None:
    text = run("--help").stdout
    assert all(f"  {name} " in text for name in SUMMARIES)
    assert run("--version").stdout == "mergeflow 0.1.0\n"
