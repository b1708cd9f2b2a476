"""The Makefile of docs/make.md under a real make; and depfiles with every name that a file may have."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli_models import write_model
from support.commands import run

from mergeflow.build import depfile
from mergeflow.errors import RecipeError

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["plain", "a b", "a#b", "a$b", "a%b", "a:b", "a*b", "[a]", "柚子", "~a", "a'b", 'a"b', "a&b", "{a}", "a?b",
         "a@b",
         "a  b", "a\\ b", "a\\#b", "a+b", "-a", "a,b", "a`b", "<a>", "model (1).x", "a!b"]  # fmt: skip

needs_make = pytest.mark.skipif(
    shutil.which("make") is None or os.name == "nt", reason="there is no GNU make, or its file names are others"
)


def make(folder: Path, *words: str) -> str:
    """What make says; mergeflow is this interpreter's."""
    done = subprocess.run(
        ["make", *words, f"MERGEFLOW={sys.executable} -m mergeflow"],
        cwd=folder, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def age(folder: Path) -> None:
    """All files an hour older than they are."""
    for path in folder.rglob("*"):
        if path.is_file() and "memo" not in path.parts:
            status = path.stat()
            os.utime(path, ns=(status.st_atime_ns - 3600 * 10**9, status.st_mtime_ns - 3600 * 10**9))


@pytest.mark.slow
@needs_make
def test_the_makefile_that_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERGEFLOW_MEMO", str(tmp_path / "memo"))
    folder = tmp_path / "work"
    (folder / "recipes").mkdir(parents=True)
    (block,) = re.findall(r"^```make\n(.*?)^```$", (ROOT / "docs/make.md").read_text(), re.MULTILINE | re.DOTALL)
    (folder / "Makefile").write_text(block)
    for seed, name in enumerate("abc"):
        write_model(folder / f"{name}.safetensors", seed)
    (folder / "recipes/common.yml").write_text("mergeflow: 1\nparams: { m: 0.3 }\nsources: { b: ../b.safetensors }\n")
    (folder / "recipes/one.yaml").write_text(
        "mergeflow: 1\ninclude: [common.yml]\nsources: { a: ../a.safetensors }\n"
        "outputs:\n  models/one.safetensors: weighted_sum(a, b, m)\n"
    )
    (folder / "recipes/two.yaml").write_text(
        "mergeflow: 1\nsources: { c: ../c.safetensors }\noutputs: { models/two.safetensors: c }\n"
    )
    one, two = folder / "models/one.safetensors", folder / "models/two.safetensors"
    assert "built models/one.safetensors" in make(folder)
    assert one.exists()
    assert two.exists()
    age(folder)
    assert "Nothing to be done" in make(folder)

    os.utime(folder / "b.safetensors")  # touched only: looked at, and left
    before = one.stat().st_mtime_ns
    said = make(folder)
    assert "models/one.safetensors is up to date" in said
    assert "two" not in said
    assert one.stat().st_mtime_ns == before
    age(folder)

    (folder / "recipes/common.yml").write_text("mergeflow: 1\nparams: { m: 0.4 }\nsources: { b: ../b.safetensors }\n")
    said = make(folder)
    assert "built models/one.safetensors" in said
    assert "two" not in said

    write_model(folder / "c.safetensors", seed=9)
    assert "built models/two.safetensors" in make(folder)

    (folder / "recipes/common.yml").unlink()
    (folder / "recipes/one.yaml").write_text(
        "mergeflow: 1\nsources: { a: ../a.safetensors }\noutputs: { models/one.safetensors: a }\n"
    )
    assert "built models/one.safetensors" in make(folder)


@needs_make
@pytest.mark.parametrize("name", NAMES)
def test_make_reads_every_name(tmp_path: Path, name: str) -> None:
    """An older target is made again, a newer one is not."""
    made, given = f"made {name}", name
    for path, when in ((made, 2000), (given, 1000)):
        (tmp_path / path).touch()
        os.utime(tmp_path / path, (when, when))
    (tmp_path / "deps").write_text(depfile.text([made], [given]))
    target = depfile.escaped(made, target=True)
    (tmp_path / "Makefile").write_text(
        f"all: {target.replace(chr(92) + '%', '%')}\n{target}: ; @echo again\n-include deps\n"
    )
    assert "again" not in make(tmp_path)
    os.utime(tmp_path / given, (3000, 3000))
    assert "again" in make(tmp_path)
    (tmp_path / given).unlink()
    assert "again" in make(tmp_path)


@pytest.mark.parametrize("name", ["a|b", "a;b", "a=b", "a(b)", "a\nb"])
def test_what_make_cannot_read_is_an_error(name: str) -> None:
    with pytest.raises(RecipeError, match="cannot stand in a Makefile"):
        depfile.text(["x"], [name])


def test_the_depfile_of_a_build(folder: Path) -> None:
    run("build", "recipe.yaml", "--depfile", "mix.d")
    lines = (folder / "mix.d").read_text().splitlines()
    assert lines[0].startswith("# mergeflow depfile")
    assert lines[1:6] == [
        "out/half.safetensors out/lewd.safetensors: \\",
        "  a.safetensors \\",
        "  b.safetensors \\",
        "  c.safetensors \\",
        "  recipe.yaml",
    ]
    run("build", "recipe.yaml", "out/half.safetensors", "--depfile", "mix.d")
    assert (folder / "mix.d").read_text().splitlines()[1] == "out/half.safetensors: \\"
    run("build", "recipe.yaml", "--depfile", "mix.d")
    (folder / "mix.d").unlink()
    run("build", "recipe.yaml", "--depfile", "mix.d")
    assert (folder / "mix.d").exists()
    run("build", "-n", "recipe.yaml", "--depfile", "other.d")
    assert not (folder / "other.d").exists()


def test_only_a_depfile_is_overwritten(folder: Path) -> None:
    before = (folder / "recipe.yaml").read_text()
    assert "is no depfile" in run("build", "recipe.yaml", "--depfile", "recipe.yaml", exit_code=2).output
    assert (folder / "recipe.yaml").read_text() == before
