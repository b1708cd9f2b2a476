"""What kernels give is kept in the store: an edit of the sums around them does not compute it again, and nothing that
happens to the store changes a result."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.builds import HEAD, Heard, build, parts, plan, project, sha256, write_models
from support.checkpoints import Model, numbers, read, related, weights, write

from mergeflow.build import storing
from mergeflow.build.settings import BuildResult
from mergeflow.build.storing import Shelf
from mergeflow.errors import RecipeError
from mergeflow.methods import combined, kernels, sparse
from mergeflow.plan.cost import Rates
from mergeflow.plan.plans import Plan

RECIPE = (
    HEAD
    + """sources: { base: base.safetensors, x: x.safetensors, y: y.safetensors }
params: { k: 0.7, d: 0.2 }
steps:
  t: ties(base, [x, y], density=d)
outputs:
  mix.safetensors: base + (t - base) * k
"""
)
KEEP = RECIPE.replace("t: ties(base, [x, y], density=d)", "t: { expr: x*0.5 + y*0.2 + base*0.3, keep: true }")


def models() -> dict[str, Model]:
    rng = np.random.default_rng(8)
    base = {
        "large": weights(rng, "F16", (1_100_001,)),
        "ids": numbers("I64", range(7)),
        **{f"s.{i}": weights(rng, "F16", (i,)) for i in range(20)},
    }
    same = base["s.5"]
    return {
        name: {n: t if n in ("ids", "s.5") else related(rng, t) for n, t in base.items()} | {"s.5": same}
        for name in ("base", "x", "y")
    }


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Models, and a disk so fast that keeping always pays."""
    monkeypatch.setattr(Shelf, "_rates", lambda self: Rates(1e15, 1e15))
    write_models(tmp_path, models())
    return tmp_path


def fresh(folder: Path, text: str) -> str:
    """What a build from nothing gives."""
    other = folder / "fresh"
    other.mkdir(exist_ok=True)
    for name in ("base", "x", "y"):
        shutil.copy(folder / f"{name}.safetensors", other)
    build(other, text, force=True)
    return sha256(other / "mix.safetensors")


def kernels_run(planned: Plan) -> int:
    """How many tensors this plan applies kernels in."""
    works = [w for o in planned.outputs if o.build for w in o.actions] + [w for o in planned.objects for w in o.actions]
    return sum(work.staged >= 0 for work in works)


def objects(folder: Path) -> list[Path]:
    return sorted((folder / "cache" / "objects").rglob("*.safetensors"))


def test_an_edit_of_the_sum_runs_no_kernel(folder: Path) -> None:
    first = plan(folder, RECIPE)
    assert kernels_run(first) == 19
    assert [o.title for o in first.objects] == ["sum_sign(elect=sum, normalize=true)"]
    build(folder, RECIPE)
    assert len(objects(folder)) == 1
    edited = RECIPE.replace("k: 0.7", "k: 0.3")
    assert kernels_run(plan(folder, edited)) == 0
    build(folder, edited)
    assert sha256(folder / "mix.safetensors") == fresh(folder, edited)


def test_an_edit_of_the_kernel_runs_it(folder: Path) -> None:
    build(folder, RECIPE)
    edited = RECIPE.replace("d: 0.2", "d: 0.4")
    assert kernels_run(plan(folder, edited)) == 19
    build(folder, edited)
    assert len(objects(folder)) == 2
    assert sha256(folder / "mix.safetensors") == fresh(folder, edited)


def test_a_changed_tensor_runs_the_kernel_there(folder: Path) -> None:
    build(folder, RECIPE)
    y = read(folder / "y.safetensors")
    y["s.7"] = y["s.7"]._replace(data=y["s.7"].data[:-2] + b"\0\0")
    write(folder / "y.safetensors", y)
    planned = plan(folder, RECIPE)
    assert [w.name for o in planned.objects for w in o.actions] == ["s.7"]
    assert kernels_run(planned) == 1
    result = build(folder, RECIPE)
    assert (result.outputs[0].tally.computed, result.outputs[0].tally.reused) == (1, 18)
    assert sha256(folder / "mix.safetensors") == fresh(folder, RECIPE)


def test_another_version_of_a_kernel_runs_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(folder, RECIPE)
    newer = replace(sparse.TRIM, kernel=replace(sparse.TRIM.kernel, version=sparse.TRIM.kernel.version + 1))
    monkeypatch.setitem(kernels._formulas, newer.kernel.name, newer)
    for module in (sparse, combined):
        monkeypatch.setattr(module, "TRIM", newer)
    planned = plan(folder, RECIPE)
    assert planned.outputs[0].build
    assert kernels_run(planned) == 19
    build(folder, RECIPE)
    assert len(objects(folder)) == 2


def test_two_steps_that_are_the_same_are_kept_once(folder: Path) -> None:
    text = KEEP.replace("steps:\n", "steps:\n  u: { expr: y*0.2 + x*0.5 + base*0.3, keep: true }\n")
    text += "  other.safetensors: base*0.5 + u*0.5\n"
    build(folder, text)
    assert len(objects(folder)) == 1
    assert sha256(folder / "mix.safetensors") == fresh(folder, KEEP)


def test_without_the_store_the_bytes_are_the_same(folder: Path) -> None:
    build(folder, RECIPE)
    first = sha256(folder / "mix.safetensors")
    shutil.rmtree(folder / "cache")
    build(folder, RECIPE, force=True)
    assert sha256(folder / "mix.safetensors") == first == fresh(folder, RECIPE)


def test_one_result_serves_all_outputs_and_dtypes_of_one_compute_dtype(folder: Path) -> None:
    text = (
        RECIPE + "  half.safetensors: { from: t, dtype: bfloat16 }\n  whole.safetensors: { from: t, dtype: float32 }\n"
    )
    planned = plan(folder, text)
    assert kernels_run(planned) == 38  # float32 is computed in float64: that is another result
    build(folder, text)
    third = text + "  third.safetensors: base*0.5 + t*0.5\n"
    assert kernels_run(plan(folder, third)) == 0


def test_a_step_that_is_to_be_kept(folder: Path) -> None:
    planned = plan(folder, KEEP)
    assert [o.title for o in planned.objects] == ["t"]
    build(folder, KEEP)
    assert sha256(folder / "mix.safetensors") == fresh(folder, KEEP)
    using = KEEP.replace("base + (t - base) * k", "t")
    planned = plan(folder, using)
    assert not planned.objects
    assert all(len(w.reads) == 1 for w in planned.outputs[0].actions)  # every tensor is read off the store
    build(folder, using)
    assert sha256(folder / "mix.safetensors") == fresh(folder, using)
    into = KEEP.replace("base + (t - base) * k", "ties(base, [t, y], density=0.5)")
    build(folder, into)
    assert sha256(folder / "mix.safetensors") == fresh(folder, into)


def rot(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: rot(path, path.stat().st_size - 3),
        lambda path: rot(path, path.stat().st_size // 2),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"x" * 5000),
        lambda path: path.unlink(),
        lambda path: (path.parents[2] / "objects.sqlite").write_bytes(b"garbage" * 1000),
        lambda path: (path.parents[2] / "objects.sqlite").unlink(),
        lambda path: (path.parents[2] / "index.sqlite").write_bytes(b"garbage" * 1000),
    ],
    ids=["last value", "middle", "cut", "empty", "garbage", "gone", "index garbage", "index gone", "records garbage"],
)
def test_harm_to_the_store_costs_time_only(folder: Path, harm) -> None:  # type: ignore[no-untyped-def]
    build(folder, RECIPE)
    harm(objects(folder)[0])
    edited = RECIPE.replace("k: 0.7", "k: 0.3")
    heard = Heard()
    build(folder, edited, heard)
    assert len(heard.warnings) <= 1
    assert sha256(folder / "mix.safetensors") == fresh(folder, edited)
    assert not parts(folder)
    build(folder, RECIPE)
    assert sha256(folder / "mix.safetensors") == fresh(folder, RECIPE)


def test_an_object_that_goes_between_plan_and_build(folder: Path) -> None:
    build(folder, RECIPE)
    edited = RECIPE.replace("k: 0.7", "k: 0.3")
    with project(folder, edited) as p:
        planned = p.plan()
        objects(folder)[0].unlink()
        p.plan = lambda outputs=(): planned  # type: ignore[method-assign]
        p.build()
    assert sha256(folder / "mix.safetensors") == fresh(folder, edited)


def test_what_does_not_pay_is_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shelf, "_rates", lambda self: Rates(1e6, 1e6))
    planned = plan(folder, RECIPE)
    assert not planned.objects
    assert [d.reason.partition(":")[0] for d in planned.declined] == ["not worth it"]
    assert len(plan(folder, KEEP).objects) == 1  # but what is asked for is


def test_what_has_no_room_is_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERGEFLOW_CACHE_SIZE", "1MB")
    planned = plan(folder, RECIPE)
    assert [d.reason for d in planned.declined] == ["there is no room for it in the store"]
    build(folder, RECIPE)
    assert not objects(folder)


def test_no_room_for_what_is_to_be_kept_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERGEFLOW_CACHE_SIZE", "0")
    heard = Heard()
    build(folder, KEEP, heard)
    assert heard.warnings == [
        "t is not kept, though the recipe says `keep: true`: there is no room for it in the store"
    ]
    assert not objects(folder)
    assert sha256(folder / "mix.safetensors") == fresh(folder, KEEP)


@pytest.mark.parametrize("size", ["much", "-1GB", "10 apples"])
def test_a_limit_that_is_no_size(folder: Path, monkeypatch: pytest.MonkeyPatch, size: str) -> None:
    monkeypatch.setenv("MERGEFLOW_CACHE_SIZE", size)
    with pytest.raises(RecipeError, match=r"MERGEFLOW_CACHE_SIZE is .* which is no size"):
        build(folder, RECIPE)
    assert not (folder / "mix.safetensors").exists()


def test_a_cache_that_cannot_be_written_to(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the folder should be lies a file. The build goes on without it."""
    monkeypatch.undo()  # the disk is measured, or would be
    wanted = fresh(folder, RECIPE)
    (folder / "cache").write_text("in the way")
    heard = Heard()
    build(folder, RECIPE, heard)
    assert heard.warnings
    assert sha256(folder / "mix.safetensors") == wanted


def test_the_disk_is_measured_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    first = plan(folder, RECIPE)
    assert first.rates is not None
    assert min(first.rates.read, first.rates.write) > 0
    monkeypatch.setattr(storing, "_measure", lambda folder: pytest.fail("measured again"))
    assert plan(folder, RECIPE).rates == first.rates
    assert not parts(folder)


def test_the_store_stays_within_its_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERGEFLOW_CACHE_SIZE", "6MB")
    for d in ("0.1", "0.2", "0.3"):
        build(folder, RECIPE.replace("d: 0.2", f"d: {d}"))
    assert sum(path.stat().st_size for path in objects(folder)) <= 6_000_000
    edited = RECIPE.replace("d: 0.2", "d: 0.3").replace("k: 0.7", "k: 0.3")
    assert kernels_run(plan(folder, edited)) == 0  # the last one is still there


def test_forced_builds_compute_everything(folder: Path) -> None:
    build(folder, RECIPE)
    assert kernels_run(plan(folder, RECIPE, force=True)) == 19


def statistics(folder: Path) -> tuple[int, int]:
    with project(folder, RECIPE) as p:
        found = p.shelf.store.statistics()
    return found.hits, found.misses


def test_hits_are_counted(folder: Path) -> None:
    build(folder, RECIPE)
    assert statistics(folder) == (0, 19)
    result: BuildResult = build(folder, RECIPE.replace("k: 0.7", "k: 0.3"))
    assert result.outputs[0].built
    assert statistics(folder) == (19, 19)
