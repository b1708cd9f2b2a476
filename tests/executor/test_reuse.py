"""After an edit only what it touches is computed: the rest is copied from what the last build left, and is checked."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.builds import HEAD, Heard, build, parts, plan, project, sha256, write_models
from support.checkpoints import Model, read, related, weights, write

from mergeflow.build.kept import _mark
from mergeflow.build.settings import BuildResult
from mergeflow.formats.files import fingerprint

RECIPE = (
    HEAD
    + """sources: { a: a.safetensors, b: b.safetensors, c: c.safetensors }
params: { m: 0.3, k: { default: 0.5, "in.*": 0.4 } }
outputs:
  x.safetensors: a + (b - c) * k
"""
)


def models() -> dict[str, Model]:
    rng = np.random.default_rng(8)
    large = weights(rng, "F16", (1_200_001,))
    base = {f"{where}.{i}": weights(rng, "F16", (50 + i,)) for where in ("in", "mid", "out") for i in range(20)}
    return {name: {"out.large": related(rng, large), **{n: related(rng, t) for n, t in base.items()}} for name in "abc"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_models(tmp_path, models())
    return tmp_path


def again(folder: Path, text: str, **more: object) -> tuple[BuildResult, str]:
    """A build over what is there; its result, and the sha256 of x that a build from nothing gives."""
    result = build(folder, text, **more)
    fresh = folder / "fresh"
    fresh.mkdir(exist_ok=True)
    for name in "abc":
        (fresh / f"{name}.safetensors").write_bytes((folder / f"{name}.safetensors").read_bytes())
    build(fresh, text, force=True)
    return result, sha256(fresh / "x.safetensors")


def tally(result: BuildResult) -> tuple[int, int]:
    return result.outputs[0].tally.computed, result.outputs[0].tally.reused


def test_one_weight_of_a_profile(folder: Path) -> None:
    build(folder, RECIPE)
    result, wanted = again(folder, RECIPE.replace('"in.*": 0.4', '"in.*": 0.7'))
    assert tally(result) == (20, 41)
    assert sha256(folder / "x.safetensors") == wanted
    source_bytes = sum(len(t.data) for n, t in models()["a"].items() if n.startswith("in."))
    assert result.outputs[0].bytes_read == 3 * source_bytes


@pytest.mark.parametrize(
    ("edit", "computed", "reused"),
    [
        (("mergeflow: 1", "# words\nmergeflow: 1"), None, 0),
        (("a: a.safetensors, b: b.safetensors", "b: b.safetensors, a: a.safetensors"), None, 0),
        ((" a:", " z:"), None, 0),
        (("m: 0.3", "m: 0.4"), None, 0),
        (("default: 0.5", "default: 0.6"), 41, 20),
        (("* k", "* (k + 0)"), None, 0),
        (("* k\n", "* k * 0.5\n"), 61, 0),
        (("(b - c) * k\n", "b * k - c * k\n"), None, 0),
        (("x.safetensors: a + (b - c) * k", "x.safetensors: { from: a + (b - c) * k, dtype: float32 }"), 61, 0),
        (("x.safetensors: a + (b - c) * k", "x.safetensors: { from: a + (b - c) * k, metadata: { t: u } }"), 0, 61),
        (("x.safetensors: a + (b - c) * k", 'x.safetensors: { from: a + (b - c) * k, drop: ["mid.*"] }'), 0, 41),
    ],
    ids=lambda value: str(value) if not isinstance(value, tuple) else value[1][-30:].strip(),
)
def test_edits(folder: Path, edit: tuple[str, str], computed: int | None, reused: int) -> None:
    """What is computed and what is taken over; None: nothing is built at all."""
    build(folder, RECIPE)
    text = RECIPE.replace(*edit)
    assert text != RECIPE
    if edit[0] == " a:":
        text = text.replace("a + (", "z + (")
    result, wanted = again(folder, text)
    assert result.outputs[0].built == (computed is not None)
    if computed is not None:
        assert tally(result) == (computed, reused)
    assert sha256(folder / "x.safetensors") == wanted


def test_one_changed_tensor_in_a_source(folder: Path) -> None:
    build(folder, RECIPE)
    b = read(folder / "b.safetensors")
    b["mid.7"] = b["mid.7"]._replace(data=b["mid.7"].data[:-2] + b"\0\0")
    write(folder / "b.safetensors", b)
    result, wanted = again(folder, RECIPE)
    assert tally(result) == (1, 60)
    assert sha256(folder / "x.safetensors") == wanted


def test_a_source_that_was_only_touched(folder: Path) -> None:
    build(folder, RECIPE)
    os.utime(folder / "b.safetensors")
    assert not build(folder, RECIPE).outputs[0].built


def test_another_output_has_it(folder: Path) -> None:
    """A new output is made of what others hold, in part of one and in part of another."""
    build(folder, RECIPE)
    two = RECIPE.replace("  x.saf", "  y.saf").replace("default: 0.5", "default: 0.9").replace("m: 0.3", "m: 0.9")
    build(folder, two)
    third = two.replace("  y.saf", "  x.saf").replace('0.9, "in.*": 0.4', '0.9, "in.*": 0.4, "out.*": 0.5')
    result, wanted = again(folder, third)
    assert tally(result) == (0, 61)
    assert result.outputs[0].bytes_read == 0
    assert sha256(folder / "x.safetensors") == wanted


def rot(folder: Path, path: Path, at: int) -> None:
    """Turn one bit as a disk does: with no trace in what the system and mergeflow know of the file."""
    with project(folder, RECIPE) as p:
        record = p.records.find(path)
        assert record is not None
        known = p.memo.find(record.at)
        assert known is not None
        with path.open("r+b") as file:
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1]))
        now = fingerprint(path.stat())
        p.records.put(path, replace(record, at=now))
        keys = p.records.made(path)[32:]
        p.records.put_made(path, _mark(now, keys) + keys)
        p.memo.remember(now, known)


@pytest.mark.parametrize("name", ["in.3", "in.19"])
def test_damage_is_found_as_it_is_copied(folder: Path, name: str) -> None:
    """What is left of the file is used, the rest computed again, with one warning."""
    build(folder, RECIPE)
    text = RECIPE.replace("default: 0.5", "default: 0.6")
    (where,) = [spec for spec in plan(folder, text).outputs[0].layout.tensors if spec.name == name]
    rot(folder, folder / "x.safetensors", where.start + 5)
    heard = Heard()
    result, wanted = again(folder, text, report=heard)
    assert tally(result) == (41, 20)
    assert sha256(folder / "x.safetensors") == wanted
    assert heard.warnings == ["1 tensor of an earlier build is damaged: computed again"]


@pytest.mark.skipif(not hasattr(os, "preadv"), reason="faults are injected into POSIX's calls")
def test_what_cannot_be_read_any_more_is_computed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk gives an error where the last build's output lies, of which most was to be copied."""
    build(folder, RECIPE)
    text = RECIPE.replace('"in.*": 0.4', '"in.*": 0.7')
    bad, read_there = (folder / "x.safetensors").stat().st_ino, os.preadv
    with project(folder, text) as p:
        p.plan()
        failures: list[int] = []

        def preadv(fd: int, views: list[memoryview], offset: int) -> int:
            if os.fstat(fd).st_ino == bad and offset > 10_000:
                failures.append(offset)
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return read_there(fd, views, offset)

        monkeypatch.setattr(os, "preadv", preadv)
        heard = Heard()
        p.report = heard
        result = p.build()
        monkeypatch.undo()
    assert failures
    assert result.outputs[0].built
    assert len(heard.warnings) == 1
    assert heard.warnings[0].endswith("damaged: computed again")
    found = sha256(folder / "x.safetensors")
    build(folder, text, force=True)
    assert sha256(folder / "x.safetensors") == found


def test_a_file_that_goes_while_it_is_planned(folder: Path) -> None:
    build(folder, RECIPE)
    x = folder / "x.safetensors"
    text = RECIPE.replace("default: 0.5", "default: 0.6").replace("  x.saf", "  y.saf")
    with project(folder, text) as p:
        planned = p.plan()
        assert planned.outputs[0].kept
        (folder / "x.safetensors").unlink()
        p.plan = lambda outputs=(): planned  # type: ignore[method-assign]
        result = p.build()
    assert result.outputs[0].built
    y = sha256(folder / "y.safetensors")
    build(folder, text, force=True)
    assert sha256(folder / "y.safetensors") == y
    assert not x.exists()
    assert not parts(folder)


def test_forced_builds_take_nothing_over(folder: Path) -> None:
    build(folder, RECIPE)
    assert tally(build(folder, RECIPE.replace("default: 0.5", "default: 0.6"), force=True)) == (61, 0)


def test_a_file_somebody_edited_is_not_used(folder: Path) -> None:
    build(folder, RECIPE)
    model = read(folder / "x.safetensors")
    model["in.3"] = model["in.3"]._replace(data=bytes(len(model["in.3"].data)))
    write(folder / "x.safetensors", model)
    result = build(folder, RECIPE.replace("  x.saf", "  y.saf"))
    assert tally(result) == (61, 0)


def test_keys_of_the_file_before_are_not_those_of_this_one(folder: Path) -> None:
    """A build beside this one may read the index between two writes to it: a new record, and still the old keys."""
    build(folder, RECIPE)
    x = folder / "x.safetensors"
    with project(folder, RECIPE) as p:
        old = p.records.made(x)
    build(folder, RECIPE.replace("default: 0.5", "default: 0.6"))
    with project(folder, RECIPE) as p:
        p.records.put_made(x, old)
    result, wanted = again(folder, RECIPE)
    assert tally(result) == (61, 0)
    assert sha256(x) == wanted


def test_keys_that_changed_places_are_not_used(folder: Path) -> None:
    """As a damaged index may have it: each is the key of a tensor, only of another one of the same shape."""
    build(folder, RECIPE)
    x = folder / "x.safetensors"
    names = sorted(models()["a"])
    with project(folder, RECIPE) as p:
        made = bytearray(p.records.made(x))
        one, other = (slice(32 * (i + 1), 32 * (i + 2)) for i in map(names.index, ("mid.3", "out.3")))
        made[one], made[other] = made[other], made[one]
        p.records.put_made(x, bytes(made))
    result, wanted = again(folder, RECIPE.replace('"in.*": 0.4', '"in.*": 0.7'))
    assert sha256(x) == wanted
    assert tally(result) == (61, 0)
