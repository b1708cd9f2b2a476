"""Files beside an output, on request: found, checked, renewed, cleaned, and never somebody else's."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest
from outputs import build, built, wanted
from support.builds import project
from support.tiny_models import SD1, write_model

from mergeflow.build.quick import Asked, unchanged
from mergeflow.errors import IntegrityError, MergeflowError, MissingInput, RecipeError

CONFIG = b"model:\n  base_learning_rate: 1.0e-4\n  target: ldm.models.diffusion.ddpm.LatentDiffusion\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in "abc":
        write_model(tmp_path / f"{name}.safetensors", SD1, seed=name)
    (tmp_path / "a.yaml").write_bytes(CONFIG)
    time.sleep(0.03)
    return tmp_path


def text(expression: str = "a + b - c", out: str = "out/mix.safetensors", sidecars: str = "[config, sha256]",
         more: str = "") -> str:  # fmt: skip
    return wanted(f"  {out}: {{ from: {expression}, sidecars: {sidecars}{more} }}\n")


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="there is no sha256sum here")
@pytest.mark.parametrize(
    ("out", "more", "files"),
    [
        ("out/mix.safetensors", "", 1),
        ("out/mix.ckpt", "", 1),
        ("out/my 柚子 mix.safetensors", "", 1),
        ("out/mix.safetensors", ", shard_size: 1MB", 2),
    ],
)
def test_sha256sum_accepts_the_list(folder: Path, out: str, more: str, files: int) -> None:
    build(folder, text(out=f"'{out}'", sidecars="sha256", more=more))
    sums = folder / f"{out}.sha256"
    done = subprocess.run(
        ["sha256sum", "--strict", "-c", sums.name], cwd=sums.parent, capture_output=True, text=True, check=True,
        env={"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.stdout.count(": OK") == files
    assert not done.stderr


def test_the_config_of_the_first_model(folder: Path) -> None:
    build(folder, text())
    assert (folder / "out/mix.yaml").read_bytes() == CONFIG
    before = (folder / "out/mix.yaml").stat()
    assert not any(built(build(folder, text())))
    assert (folder / "out/mix.yaml").stat() == before


def test_they_are_renewed_when_what_they_are_of_changes(folder: Path) -> None:
    build(folder, text())
    first = (folder / "out/mix.safetensors.sha256").read_text()
    (folder / "a.yaml").write_bytes(CONFIG + b"# edited\n")
    assert not any(built(build(folder, text())))  # the model is the same
    assert (folder / "out/mix.yaml").read_bytes().endswith(b"# edited\n")
    assert all(built(build(folder, text("a*0.5 + b*0.5"))))
    assert (folder / "out/mix.safetensors.sha256").read_text() != first


@pytest.mark.parametrize("name", ["mix.yaml", "mix.safetensors.sha256"])
def test_one_that_is_gone_is_written_again(folder: Path, name: str) -> None:
    build(folder, text())
    kept = (folder / "out" / name).read_bytes()
    (folder / "out" / name).unlink()
    assert not any(built(build(folder, text())))
    assert (folder / "out" / name).read_bytes() == kept


def test_the_stamp_of_a_finished_build_looks_at_them(folder: Path) -> None:
    with project(folder, text()) as p:
        asked = Asked(folder / "recipe.yaml", (), {}, {}, time.time_ns() + 10**9)
        p.build(asked=asked)
        assert unchanged(asked, p.settings) is not None
        (folder / "out/mix.safetensors.sha256").write_text("edited")
        assert unchanged(asked, p.settings) is None


@pytest.mark.parametrize(("name", "content"), [("mix.yaml", b"my notes"), ("mix.safetensors.sha256", b"my notes"),
                                               ("mix.safetensors.sha256", b"0" * 64 + b"  other.bin\n")])  # fmt: skip
def test_somebody_elses_file_stays(folder: Path, name: str, content: bytes) -> None:
    (folder / "out").mkdir()
    (folder / "out" / name).write_bytes(content)
    with pytest.raises(RecipeError, match="is not what mergeflow built there"):
        build(folder, text())
    assert (folder / "out" / name).read_bytes() == content
    assert not (folder / "out/mix.safetensors").exists()
    build(folder, text(), force=True)
    assert (folder / "out" / name).read_bytes() != content


def test_clean_takes_them_along_and_only_ours(folder: Path) -> None:
    build(folder, text())
    with project(folder, text()) as p:
        assert [path.name for path, _ in p.clean()] == ["mix.safetensors"]
    assert not list((folder / "out").iterdir())
    build(folder, text())
    (folder / "out/mix.yaml").write_bytes(CONFIG + b"# mine now\n")
    with project(folder, text()) as p:
        list(p.clean())
    assert [path.name for path in (folder / "out").iterdir()] == ["mix.yaml"]


def test_there_is_no_config(folder: Path) -> None:
    (folder / "a.yaml").unlink()
    with pytest.raises(MissingInput, match=r"asks for a\.yaml beside a, and there is none") as caught:
        build(folder, text())
    assert caught.value.place is not None
    assert not (folder / "out").exists()


@pytest.mark.parametrize("content", [b"mergeflow: 1\nsources: {}\n", b"model: x\n" * 200_000, b"\xff\xfe\0model"])
def test_a_file_of_that_name_that_is_no_config(folder: Path, content: bytes) -> None:
    (folder / "a.yaml").write_bytes(content)
    with pytest.raises(IntegrityError, match="is not the config of a model"):
        build(folder, text())


def test_two_outputs_and_one_config(folder: Path) -> None:
    (folder / "b.yaml").write_bytes(CONFIG)
    both = "  out/mix.{}: {{ from: {}, sidecars: config }}\n"
    build(folder, wanted(both.format("safetensors", "a") + both.format("ckpt", "b")))
    (folder / "b.yaml").write_bytes(CONFIG + b"# another\n")
    with pytest.raises(RecipeError, match="and these differ"):
        build(folder, wanted(both.format("safetensors", "a") + both.format("ckpt", "b")))


@pytest.mark.parametrize("force", [False, True])
def test_a_recipe_or_a_source_is_never_overwritten(folder: Path, force: bool) -> None:
    with pytest.raises(MergeflowError, match=r"recipe\.yaml, which is written with recipe\.safetensors"):
        build(folder, text(out="recipe.safetensors", sidecars="config"), force=force)
    build(folder, text("a", "model.safetensors", "[]", ", shard_size: 1MB"))
    shard = "model-00001-of-00001.safetensors"
    sources = {"a": shard, "b": "b.safetensors"}
    again = "  model.safetensors: { from: a*0.5 + b*0.5, shard_size: 1MB }\n"
    with pytest.raises(MergeflowError, match="would overwrite its own input"):
        build(folder, wanted(again, sources=sources), force=force)


def test_outputs_do_not_share_files(folder: Path) -> None:
    lines = "  m.safetensors: { from: a, shard_size: 1MB }\n  m-00001-of-00001.safetensors: b\n"
    with pytest.raises(RecipeError, match=r"would both write m-00001-of-00001\.safetensors"):
        build(folder, wanted(lines))
