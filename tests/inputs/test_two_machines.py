"""A recipe and its lock give the same file on a machine where everything is called and kept otherwise."""

from __future__ import annotations

import getpass
import re
import shutil
import socket
import time
from pathlib import Path

import pytest
import yaml
from machines import MIX, RECIPE, Machine, flipped, model, sha256

FILES = {name: model(i) for i, name in enumerate("abc")}


@pytest.fixture
def here(tmp_path: Path) -> Machine:
    """Machine A, which has built and locked."""
    machine = Machine(tmp_path / "A")
    machine.recipe(RECIPE)
    (machine.work / "models").mkdir()
    for name, data in FILES.items():
        (machine.work / "models" / f"{name}.safetensors").write_bytes(data)
    machine.run("build")
    machine.run("lock")
    return machine


@pytest.fixture
def there(here: Machine, tmp_path: Path) -> Machine:
    """Machine B: recipe and lock, nothing else."""
    machine = Machine(tmp_path / "B")
    for name in ("recipe.yaml", "recipe.lock"):
        shutil.copy(here.work / name, machine.work / name)
    return machine


def test_sources_are_found_by_their_content(here: Machine, there: Machine) -> None:
    there.put("SD 1.5/first one.safetensors", FILES["a"])
    there.put("模型/二.safetensors", FILES["b"])
    there.put("third.safetensors", FILES["c"])
    there.put("another.safetensors", model(9))
    told = there.run("build", "--locked").stderr
    assert "a: models/a.safetensors is not there; by its content it is" in told
    assert (there.work / MIX).read_bytes() == (here.work / MIX).read_bytes()
    assert "up to date" in there.run("build").stdout
    assert there.run("lock", "--check").stdout.startswith("recipe.lock holds")
    listed = there.json("fetch")["sources"]
    assert [(s["name"], s["how"]) for s in listed] == [("a", "found"), ("b", "found"), ("c", "found")]


@pytest.mark.parametrize("locked", [True, False])
def test_a_source_with_one_other_bit_is_not_taken_for_it(there: Machine, locked: bool) -> None:
    there.put("a.safetensors", FILES["a"])
    wrong = there.put("renamed.safetensors", flipped(FILES["b"]))
    there.put("c.safetensors", FILES["c"])
    result = there.run("build", *(["--locked"] if locked else []), exit_code=4)
    assert "models/b.safetensors: there is no such file, and no file in the model folders has the" in result.stderr
    assert f"{wrong}" in result.stderr
    assert "recipe.yaml:2:" in result.stderr
    assert not (there.work / MIX).exists()


def test_a_source_with_one_other_bit_at_its_path_is_refused_and_named(there: Machine) -> None:
    (there.work / "models").mkdir()
    for name, data in FILES.items():
        data = flipped(data) if name == "b" else data
        (there.work / "models" / f"{name}.safetensors").write_bytes(data)
    assert "recipe.lock does not hold: source b is b3:" in there.run("build", "--locked", exit_code=6).stderr
    assert not (there.work / MIX).exists()
    outcome = there.json("fetch", exit_code=6)["sources"][1]
    assert (outcome["name"], outcome["how"]) == ("b", "failed")


def test_what_was_built_is_not_kept_when_the_path_appears(there: Machine) -> None:
    for name, data in FILES.items():
        there.put(f"{name}.safetensors", data)
    time.sleep(0.05)  # so that they are trusted, and the build leaves a stamp
    there.run("build")
    (there.work / "models").mkdir()
    (there.work / "models" / "a.safetensors").write_bytes(model(7))
    assert "built out/mix.safetensors" in there.run("build").stdout


def test_a_recipe_that_asks_for_another_file_does_not_get_the_locked_one(there: Machine) -> None:
    for name, data in FILES.items():
        there.put(f"{name}.safetensors", data)
    there.recipe(RECIPE.replace("models/a.safetensors", "models/new.safetensors"))
    assert "models/new.safetensors: there is no such file" in there.run("build", exit_code=4).stderr


def test_source_on_the_command_line_is_never_looked_for(there: Machine) -> None:
    for name, data in FILES.items():
        there.put(f"{name}.safetensors", data)
    assert (
        "gone.safetensors: there is no such file"
        in there.run("build", "--source", "a=gone.safetensors", exit_code=4).stderr
    )


def test_the_lock_says_what_is_needed_and_nothing_of_the_machine(here: Machine) -> None:
    text = (here.work / "recipe.lock").read_text(encoding="utf-8")
    lock = yaml.safe_load(text)
    for name, data in FILES.items():
        source = lock["sources"][name]
        assert source["sha256"] == sha256(data)
        assert source["size"] == len(data)
        assert source["file"] == f"{name}.safetensors"
        assert (source["tensors"], source["dtypes"]) == (3, "float16")
    assert lock["outputs"][MIX.as_posix()]["sha256"] == sha256((here.work / MIX).read_bytes())
    assert "numerics" in lock
    for private in (str(here.folder), getpass.getuser(), socket.gethostname()):
        assert not re.search(rf"\b{re.escape(private)}\b", text)
    assert not re.search(r"20[0-9]{2}-[0-9]{2}-[0-9]{2}|[0-9]{10}\.", text)
    keys = [re.match(r" *([^ :]+):", line)[1] for line in text.splitlines() if re.match(r"[a-z]", line)]
    assert keys == sorted(keys)
    assert all(len(line) <= 120 for line in text.splitlines())


def test_lock_keeps_what_a_source_is_called_when_it_is_pointed_at(here: Machine) -> None:
    elsewhere = here.put("elsewhere.safetensors", FILES["a"])
    before = (here.work / "recipe.lock").read_bytes()
    here.run("lock", "--source", f"a={elsewhere}")
    assert (here.work / "recipe.lock").read_bytes() == before


def test_a_damaged_lock_is_only_asked_when_a_source_is_missing(there: Machine) -> None:
    (there.work / "recipe.lock").write_text("not a lock")
    assert "not a lock" in there.run("build", exit_code=5).stderr
    (there.work / "models").mkdir()
    for name, data in FILES.items():
        (there.work / "models" / f"{name}.safetensors").write_bytes(data)
    there.run("build")


def test_verify_looks_for_sources_by_their_content_too(there: Machine) -> None:
    for name, data in FILES.items():
        there.put(f"renamed {name}.safetensors", data)
    there.run("build")
    verified = there.json("verify", "--recipe", "recipe.yaml")
    assert [f["verdict"] for f in verified["files"]] == ["ok"] * 4
