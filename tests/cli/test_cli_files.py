"""inspect, hash, lock, verify and clean: what is said of files, and what is done to them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from cli_models import write_model
from safetensors.numpy import load_file, save_file
from support.commands import run, run_json

from mergeflow.recipe import loads

LEWD, HALF = Path("out/lewd.safetensors"), Path("out/half.safetensors")


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_inspect_a_plain_file(folder: Path) -> None:
    shown = run("inspect", "a.safetensors").stdout
    assert "4, 193 parameters" in shown
    assert "float16 (3 tensors, 384 B)" in shown
    assert "made by mergeflow" not in shown
    assert "layer.2.weight" not in shown.split("architecture")[0]
    listed = run("inspect", "a.safetensors", "--tensors").stdout
    assert "float16  4×16  128 B  layer.2.weight" in listed
    data = run_json("inspect", "a.safetensors")
    assert data["parameters"] == 193
    assert len(data["tensors"]) == 4


def test_inspect_says_what_a_file_was_made_of(folder: Path) -> None:
    run("build")
    shown = run("inspect", HALF).stdout
    assert "= 0.5·s1 + 0.5·r1" in shown
    assert "= 1·s1 + 0.3·s2 − 0.3·s3, rounded to float16" in shown
    assert "the first model" in shown
    assert run_json("inspect", HALF)["digest"].startswith("b3:")


def test_inspect_recognises_components(folder: Path) -> None:
    from support.tiny_models import SD1
    from support.tiny_models import write_model as write_real

    write_real(folder / "sd.safetensors", SD1, "x")
    shown = run("inspect", "sd.safetensors").stdout
    assert "Stable Diffusion 1: " in shown
    assert "clip_l  2 tensors" in shown


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "is empty"), (b"PK\x03\x04" + bytes(40), "zip file"), (b"{}", "not an index of a sharded model")],
)
def test_inspect_says_what_is_wrong_with_a_file(folder: Path, content: bytes, said: str) -> None:
    Path("x.safetensors").write_bytes(content)
    assert said in run("inspect", "x.safetensors", exit_code=5).stderr


def test_hashes_are_those_that_others_compute(folder: Path) -> None:
    whole = hashlib.sha256(Path("a.safetensors").read_bytes()).hexdigest()
    assert run("hash", "--only", "sha256", "a.safetensors").stdout == f"{whole}  a.safetensors\n"
    (values,) = run_json("hash", "a.safetensors")["files"]
    assert values["sha256"] == whole
    assert values["a1111"] == whole[:10]
    assert values["old"] == hashlib.sha256(b"").hexdigest()[:8]
    assert values["model"].startswith("b3:")
    assert len(values["autov3"]) == 12
    assert "A1111's 10 digits" in run("hash", "a.safetensors").stdout


def test_hash_of_a_file_that_is_no_model(folder: Path) -> None:
    result = run("hash", "recipe.yaml")
    assert "not a model file but text" in result.stderr
    assert hashlib.sha256(Path("recipe.yaml").read_bytes()).hexdigest() in result.stdout
    run("hash", "--only", "model", "recipe.yaml", exit_code=5)
    run("hash", "gone.safetensors", exit_code=4)


@pytest.mark.skipif(os.name == "nt", reason="\\ parts folders there")
def test_hash_lines_escape_names_as_sha256sum_does(folder: Path) -> None:
    Path("a\\b.safetensors").write_bytes(Path("a.safetensors").read_bytes())
    line = run("hash", "--only", "sha256", "a\\b.safetensors").stdout
    assert line.startswith("\\")
    assert line.endswith("  a\\\\b.safetensors\n")


def test_lock_is_written_checked_and_explained(folder: Path) -> None:
    assert "there is no lock" in run("lock", "--check", exit_code=4).stderr
    assert "2 of them not built yet" in run("lock").stdout
    assert "recipe.lock holds" in run("lock", "--check").stdout
    run("build")
    assert "not built → b3:" in run("lock", "--check", exit_code=3).stdout
    run("lock")
    assert run("lock").stdout.startswith("recipe.lock is unchanged")
    before = Path("recipe.lock").read_bytes()
    differs = run("lock", "--check", "--set", "m=0.5", exit_code=3)
    assert "output out/lewd.safetensors: key: k3:" in differs.stdout
    assert run_json("lock", "--check", "--set", "m=0.5", exit_code=3)["written"] is False
    assert Path("recipe.lock").read_bytes() == before


def test_lock_keeps_what_is_expected_of_outputs_that_are_not_built_here(folder: Path) -> None:
    run("build")
    run("lock")
    before = Path("recipe.lock").read_bytes()
    run("clean")
    run("lock", "--check")
    run("lock")
    assert Path("recipe.lock").read_bytes() == before


def test_verify_reads_the_bytes_and_not_the_memo(folder: Path) -> None:
    run("build")
    assert "as it claims" in run("verify", LEWD).stdout
    status = LEWD.stat()
    damage(LEWD)
    os.utime(LEWD, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "it claims to be" in run("verify", LEWD, HALF, exit_code=5).stdout
    LEWD.write_bytes(LEWD.read_bytes()[:-5])
    assert "cut short" in run("verify", LEWD, exit_code=5).stdout


def test_verify_of_files_that_claim_nothing_or_are_not_there(folder: Path) -> None:
    assert "it claims nothing" in run("verify", "a.safetensors", exit_code=2).stdout
    assert "missing" in run("verify", "a.safetensors", "gone.safetensors", exit_code=4).stdout
    run("verify", exit_code=2)
    assert "--recipe recipe.yaml" in run("verify", "recipe.yaml", exit_code=2).stderr


def test_verify_with_a_lock(folder: Path) -> None:
    run("build")
    run("lock")
    verified = run_json("verify", "--recipe", "recipe.yaml")
    assert [f["verdict"] for f in verified["files"]] == ["ok"] * 5
    assert "as locked (b)" in run("verify", "--lock", "recipe.lock", "b.safetensors").stdout
    write_model(folder / "b.safetensors", 99)
    run("build")
    differs = run("verify", "--recipe", "recipe.yaml", exit_code=3).stdout
    assert differs.count("differs") == 3
    assert "none that the lock names" in run("verify", "--lock", "recipe.lock", "b.safetensors", exit_code=3).stdout
    damage(LEWD)
    run("verify", "--recipe", "recipe.yaml", exit_code=5)
    LEWD.unlink()
    run("verify", "--recipe", "recipe.yaml", exit_code=3)


def test_clean_removes_what_is_ours_and_nothing_else(folder: Path) -> None:
    assert run("clean").stdout == "there is nothing to remove\n"
    run("build")
    assert "would remove out/lewd.safetensors" in run("clean", "-n").stdout.replace("\\", "/")
    assert LEWD.exists()
    damage(HALF)
    result = run("clean")
    assert "it stays" in result.stderr
    assert not LEWD.exists()
    assert HALF.exists()
    assert run_json("clean", "--force")["removed"] == [str(HALF.resolve())]
    assert not HALF.exists()
    assert Path("a.safetensors").exists()


def test_init_writes_a_recipe_that_can_be_read_and_overwrites_nothing(folder: Path) -> None:
    assert "exists already" in run("init", exit_code=2).stderr
    run("init", "new.yaml")
    recipe = loads(Path("new.yaml").read_text(encoding="utf-8"))
    assert list(recipe.outputs) == ["mix.safetensors"]
    assert "mergeflow init x.yaml" in run("init", "x.txt", exit_code=2).stderr
    Path("models").mkdir()
    for name, source in (("a", "a"), ("b", "b"), ("base", "c")):
        save_file(load_file(f"{source}.safetensors"), f"models/{name}.safetensors")
    run("build", "new.yaml")


def test_reference_commands(folder: Path) -> None:
    assert "add_difference  " in (listed := run("methods").stdout)
    assert "  a + (b − c)·m\n" in listed
    assert "arXiv:2212.04089" in run("methods", "add_difference").stdout
    assert "did you mean weighted_sum" in run("methods", "weigthed_sum", exit_code=2).stderr
    assert run_json("methods", "scale")["methods"][0]["tier"] == "exact"
    assert "Stable Diffusion 1" in run("arch").stdout
    assert "cond_stage_model.*" in run("arch", "sd1").stdout
    assert run_json("arch", "sd1")["architectures"][0]["groups"]["text_encoder"] == ["clip_l"]
    assert '"$schema"' in run("schema").stdout
