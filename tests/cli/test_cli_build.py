"""build and merge: what they make, what they say, and what they leave alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_models import RECIPE, write_model
from safetensors.numpy import load_file
from support.commands import run, run_json

LEWD, HALF = Path("out/lewd.safetensors"), Path("out/half.safetensors")


def test_builds_all_outputs_then_finds_them_up_to_date(folder: Path) -> None:
    first = run("build")
    assert first.stdout.startswith("built 2 outputs: computed 6 tensors, copied 2, wrote ")
    assert first.stdout.count("\n") == 1
    assert "hashed" in first.stderr
    assert "out/lewd.safetensors: it is not there" in first.stderr
    before = LEWD.stat().st_mtime_ns
    second = run("build")
    assert second.stdout == "all 2 outputs are up to date\n"
    assert second.stderr == ""
    assert LEWD.stat().st_mtime_ns == before


def test_builds_only_what_is_named_by_path_or_file_name(folder: Path) -> None:
    run("build", "half.safetensors")
    assert not LEWD.exists()
    assert run("build", "recipe.yaml", "out/half.safetensors").stdout == "out/half.safetensors is up to date\n"


def test_set_and_source_change_the_result_and_are_relative_to_the_current_folder(folder: Path) -> None:
    recipes = folder / "elsewhere"
    recipes.mkdir()
    (recipes / "r.yaml").write_text(RECIPE.replace("a.safetensors", "../a.safetensors"), encoding="utf-8")
    run("build", "elsewhere/r.yaml", "lewd.safetensors", exit_code=4)
    given = ("--source", "b=b.safetensors", "--source", "c=c.safetensors", "--set", "m=0")
    run("build", "elsewhere/r.yaml", "lewd.safetensors", *given)
    assert np.array_equal(load_file(LEWD)["layer.0.weight"], load_file("a.safetensors")["layer.0.weight"])


def test_output_root_and_cache_are_where_they_are_said_to_be(folder: Path) -> None:
    run("build", "--output-root", "made", "--cache", "records")
    assert Path("made/out/lewd.safetensors").exists()
    assert Path("records/index.sqlite").exists()
    assert not Path("made/cache").exists()


def test_dry_run_prints_the_plan_and_makes_nothing(folder: Path) -> None:
    assert "build  out/lewd.safetensors: it is not there" in run("build", "-n").stdout
    assert not Path("out").exists()


def test_json_is_one_object_with_everything_that_was_made(folder: Path) -> None:
    built = run_json("build")
    assert built["schema"] == "mergeflow/build/1"
    assert [o["path"] for o in built["outputs"]] == [LEWD.as_posix(), HALF.as_posix()]
    assert all(o["built"] and o["digest"].startswith("b3:") for o in built["outputs"])
    again = run_json("build")
    assert [o["built"] for o in again["outputs"]] == [False, False]


def test_a_file_of_somebody_else_is_overwritten_only_by_force(folder: Path) -> None:
    LEWD.parent.mkdir()
    LEWD.write_bytes(b"precious")
    assert "is not overwritten" in run("build", exit_code=2).stderr
    assert LEWD.read_bytes() == b"precious"
    run("build", "--force")
    assert load_file(LEWD)


def test_keep_going_makes_the_rest_and_says_what_failed(folder: Path) -> None:
    bad = load_file("a.safetensors")
    bad["layer.0.weight"][0, 0] = np.inf
    from safetensors.numpy import save_file

    save_file(bad, "bad.safetensors")
    text = """\
mergeflow: 1
sources: { a: a.safetensors, b: bad.safetensors, c: c.safetensors }
options: { nonfinite: error }
outputs: { x.safetensors: a + (c - a) * 65504 * 100, y.safetensors: a * 0.5 + c * 0.5 }
"""
    Path("big.yaml").write_text(text, encoding="utf-8")
    result = run("build", "big.yaml", "-k", exit_code=1)
    assert "failed: x.safetensors" in result.stderr
    assert result.stdout.startswith("built y.safetensors, 1 failed")
    assert Path("y.safetensors").exists()
    failed = run_json("build", "big.yaml", "-k", exit_code=1)
    assert failed["failed"]
    assert failed["outputs"][0]["error"]["exit_code"] == 1


def test_warnings_are_said_once_and_are_in_the_json(folder: Path) -> None:
    fewer = load_file("b.safetensors")
    del fewer["layer.1.weight"]
    from safetensors.numpy import save_file

    save_file(fewer, "b.safetensors")
    result = run("build")
    assert result.stderr.count("warning: b lacks 1 of 4 tensors") == 1
    assert len(run_json("build", "--force")["warnings"]) == 1


def test_locked_builds_only_what_the_lock_says(folder: Path) -> None:
    assert "there is no lock" in run("build", "--locked", exit_code=4).stderr
    run("lock")
    run("build", "--locked")
    write_model(folder / "b.safetensors", 77)
    assert "source b is" in run("build", "--locked", exit_code=6).stderr


@pytest.mark.parametrize(
    ("arguments", "kept_to"),
    [
        (("-j", "1"), lambda placement: placement["workers"] == 1),
        (("--device", "cpu"), lambda placement: placement["device"] == "cpu"),
        (("--memory", "1GiB"), lambda placement: placement["peak"] <= 1 << 30),
    ],
    ids=["jobs", "device", "memory"],
)
def test_machine_options(folder: Path, arguments: tuple[str, str], kept_to: Callable[[dict[str, Any]], bool]) -> None:
    assert all(kept_to(output["placement"]) for output in run_json("plan", *arguments)["outputs"])
    run("build", *arguments)
    built = [path.read_bytes() for path in sorted(Path("out").iterdir())]
    run("build", "--force")
    assert built == [path.read_bytes() for path in sorted(Path("out").iterdir())]


def test_too_little_memory_is_exit_7_with_what_would_do(folder: Path) -> None:
    assert "--memory " in run("build", "--memory", "1MB", exit_code=7).stderr


def test_merge_without_a_recipe(folder: Path) -> None:
    names = ("a=a.safetensors", "b=b.safetensors", "c=c.safetensors", "m=0.3")
    result = run("merge", "a + (b - c) * m", *names, "-o", "mix.safetensors", "--save-recipe", "saved/mix.yaml")
    assert result.stdout.startswith("built mix.safetensors")
    assert "../a.safetensors" in Path("saved/mix.yaml").read_text(encoding="utf-8")
    assert run("build", "saved/mix.yaml").stdout == "mix.safetensors is up to date\n"
    again = run("merge", "a + (b - c) * m", *names, "-o", "mix.safetensors", "--save-recipe", "saved/mix.yaml")
    assert again.stdout == "mix.safetensors is up to date\n"


def test_merge_to_another_folder_keeps_its_records_here(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "far" / "mix.safetensors"
    run("merge", "a*0.5 + b*0.5", "a=a.safetensors", "b=b.safetensors", "-o", target, "--dtype", "float32")
    assert load_file(target)["layer.0.weight"].dtype == np.float32
    assert Path("cache/index.sqlite").exists()
    assert not (target.parent / "cache").exists()


def test_merge_does_not_overwrite_a_recipe_and_says_so_before_any_work(folder: Path) -> None:
    Path("mix.yaml").write_text("mine", encoding="utf-8")
    run("merge", "a", "a=a.safetensors", "-o", "m.safetensors", "--save-recipe", "mix.yaml", exit_code=2)
    assert Path("mix.yaml").read_text(encoding="utf-8") == "mine"
    assert not Path("m.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "exit_code", "said"),
    [
        (("a + b", "a=a.safetensors", "b=b.safetensors"), 2, "two whole models"),
        (("a + zz", "a=a.safetensors"), 2, "is called zz"),
        (("a*0,5", "a=a.safetensors"), 2, "write 0.5"),
        (("a", "a=gone.safetensors"), 4, "there is no such file"),
        (("a", "a"), 2, "write it as NAME=VALUE"),
        (("a", "a=a.safetensors", "a=b.safetensors"), 2, "a is given twice"),
    ],
)
def test_mistakes_in_merge(folder: Path, arguments: tuple[str, ...], exit_code: int, said: str) -> None:
    result = run("merge", *arguments, "-o", "m.safetensors", exit_code=exit_code)
    assert said in result.stderr
    assert "command line:" not in result.stderr
    assert not Path("m.safetensors").exists()
