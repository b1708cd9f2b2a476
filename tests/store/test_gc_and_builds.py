"""gc while a build is at work: what the build uses stays, everything else may go, and the limit holds in the end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.builds import HEAD, TESTS, Heard, build, parts, project, sha256, write_models
from support.checkpoints import related, weights

from mergeflow.build.storing import SIZE_VARIABLE, Shelf
from mergeflow.plan.cost import Rates
from mergeflow.store.objects import Limits

RECIPE = (
    HEAD
    + """sources: { a: a.safetensors, b: b.safetensors, c: c.safetensors }
params: { k: 0.7, d: 0.2 }
steps: { t: "ties(a, [b, c], density=d)" }
outputs:
  mix.safetensors: a + (t - a) * k
"""
)
EDITED = RECIPE.replace("k: 0.7", "k: 0.3")

BUILD = """
import sys
from pathlib import Path
import mergeflow
from mergeflow.build.storing import Shelf
from mergeflow.events import Warned
from mergeflow.plan.cost import Rates
from support.builds import settings

folder, verb = Path(sys.argv[1]), sys.argv[2]
Shelf._rates = lambda self: Rates(1e15, 1e15)
waited = []
def report(event):
    if isinstance(event, Warned):
        print("warned", event.message, flush=True)
    if getattr(event, "verb", "") == verb and not waited:
        waited.append(True)
        print("waiting", flush=True)
        sys.stdin.readline()
with mergeflow.load(folder / "recipe.yaml", settings=settings(folder), report=report) as p:
    p.build()
    print("hits", p.shelf.store.statistics().hits, flush=True)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Models, and a disk so fast that keeping always pays."""
    monkeypatch.setattr(Shelf, "_rates", lambda self: Rates(1e15, 1e15))
    rng = np.random.default_rng(5)
    base = {f"t{i}": weights(rng, "F16", (400 + i,)) for i in range(9)}
    write_models(tmp_path, {name: {n: related(rng, t) for n, t in base.items()} for name in "abc"})
    return tmp_path


def waiting(folder: Path, verb: str) -> subprocess.Popen[str]:
    """A build of the recipe there, in another process, that stands still where it begins to do this."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", BUILD, str(folder), verb], env={**os.environ, "PYTHONPATH": TESTS},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n", process.communicate()[1]
    return process


def ended(process: subprocess.Popen[str]) -> list[str]:
    out, error = process.communicate("go on\n", timeout=120)
    assert process.returncode == 0, error
    return out.splitlines()


def collect(folder: Path) -> set[str]:
    """gc of everything that it may take; the objects that are left."""
    with project(folder, EDITED) as p:
        p.shelf.store.gc(Limits(max_size=0, grace=0.0))
        return {o.id for o in p.shelf.store.objects()}


def alone(folder: Path, text: str) -> str:
    other = folder / "alone"
    other.mkdir()
    for name in "abc":
        (other / f"{name}.safetensors").write_bytes((folder / f"{name}.safetensors").read_bytes())
    build(other, text, force=True)
    return sha256(other / "mix.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["checking", "merging"])
def test_what_a_build_begins_from_stays(folder: Path, verb: str) -> None:
    """It is paused before it has read the object, and in the middle."""
    build(folder, RECIPE)
    with project(folder, RECIPE) as p:
        (used,) = p.shelf.store.objects()
    build(folder, RECIPE.replace("d: 0.2", "d: 0.5"))
    (folder / "recipe.yaml").write_text(EDITED, encoding="utf-8")
    process = waiting(folder, verb)
    assert collect(folder) == {used.id}
    assert ended(process) == ["hits 9"]
    assert sha256(folder / "mix.safetensors") == alone(folder, EDITED)
    assert collect(folder) == set()


@pytest.mark.parametrize("verb", ["computing", "merging"])
def test_what_a_build_makes_for_itself_stays(folder: Path, verb: str) -> None:
    (folder / "recipe.yaml").write_text(EDITED, encoding="utf-8")
    process = waiting(folder, verb)
    left = collect(folder)
    assert len(left) == (verb == "merging")  # until then it has no name
    assert len(parts(folder)) == 1
    assert ended(process) == ["hits 0"]
    assert sha256(folder / "mix.safetensors") == alone(folder, EDITED)
    assert not parts(folder)
    heard = Heard()
    build(folder, RECIPE, heard)
    assert not [e for e in heard if getattr(e, "verb", "") == "computing"]  # it was there still


def test_a_lease_of_a_killed_build_keeps_nothing(folder: Path) -> None:
    build(folder, RECIPE)
    (folder / "recipe.yaml").write_text(EDITED, encoding="utf-8")
    process = waiting(folder, "merging")
    process.kill()
    process.communicate()
    assert len(list(folder.glob("cache/leases/*"))) == 1
    assert collect(folder) == set()
    assert not list(folder.glob("cache/leases/*"))
    build(folder, EDITED)
    assert sha256(folder / "mix.safetensors") == alone(folder, EDITED)
    assert not parts(folder)


@pytest.mark.parametrize("limit", [0, 5_000, 40_000])
def test_a_build_ends_at_or_under_the_limit(folder: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """Also where it found more there than the limit has been lowered to, and used it."""
    text = RECIPE + "  other.safetensors: ties(b, [a, c], density=0.4)\n"
    for d in ("0.1", "0.2", "0.3"):
        build(folder, text.replace("d: 0.2", f"d: {d}"))
    monkeypatch.setenv(SIZE_VARIABLE, f"{limit}B")
    for edit in ("d: 0.35", "d: 0.3", "d: 0.45"):
        with project(folder, text.replace("d: 0.2", edit).replace("k: 0.7", "k: 0.1")) as p:
            p.build()
            kept = sum(o.size for o in p.shelf.store.objects())
        files = sum(path.stat().st_size for path in (folder / "cache" / "objects").rglob("*.safetensors"))
        assert kept == files
        assert kept <= limit
