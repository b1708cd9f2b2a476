"""The stamp of a finished build: it may only say that nothing is to be done when planning would say so too."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.builds import recipe, settings, write_models
from support.checkpoints import numbers, write

import mergeflow
from mergeflow.build.quick import Asked, unchanged
from mergeflow.events import OutputDone

TEXT = recipe("a + (b - c)*m", more="params: { m: 0.3 }\n")


def build(folder: Path, asked: Asked | None = None, **more: object) -> list[bool]:
    """Which outputs a full build makes; it leaves its stamp."""
    asked = asked or ask(folder)
    with mergeflow.load(asked.recipe, set=dict(asked.overrides), settings=settings(folder, **more)) as p:
        return [o.built for o in p.build(asked.outputs, asked=asked).outputs]


def ask(folder: Path, *outputs: str, **overrides: str) -> Asked:
    return Asked(folder / "recipe.yaml", outputs, overrides, {})


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    write_models(tmp_path, {m: {"w": numbers("F32", [i, i + 1])} for i, m in enumerate("abc")})
    (tmp_path / "recipe.yaml").write_text(TEXT)
    return tmp_path


@pytest.fixture
def done(fresh: Path) -> Path:
    time.sleep(0.04)
    assert build(fresh) == [True]
    return fresh


def test_the_same_build_again_is_known_to_be_done(done: Path) -> None:
    found = unchanged(ask(done), settings(done))
    assert found is not None
    assert [(o.path, o.built, o.target) for o in found] == [("mix.safetensors", False, done / "mix.safetensors")]
    assert build(done) == [False]


def rewrite(path: Path) -> None:
    status = path.stat()
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def other_recipe(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(TEXT.replace("0.3", "0.4"))


CHANGES: dict[str, Callable[[Path], object]] = {
    "a source": lambda f: rewrite(f / "b.safetensors"),
    "a source is gone": lambda f: (f / "b.safetensors").unlink(),
    "a source is another": lambda f: write(f / "b.safetensors", {"w": numbers("F32", [7, 7])}),
    "the output": lambda f: rewrite(f / "mix.safetensors"),
    "the output is gone": lambda f: (f / "mix.safetensors").unlink(),
    "the recipe": other_recipe,
    "a comment": lambda f: (f / "recipe.yaml").write_text(TEXT + "# later\n"),
    "the index is gone": lambda f: (f / "cache" / "index.sqlite").unlink(),
    "the index is damaged": lambda f: (f / "cache" / "index.sqlite").write_bytes(b"damaged" * 999),
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_is_a_reason_to_plan(done: Path, change: str) -> None:
    CHANGES[change](done)
    assert unchanged(ask(done), settings(done)) is None


def test_a_build_asked_for_in_other_words_is_another(done: Path) -> None:
    assert unchanged(ask(done, m="0.4"), settings(done)) is None
    assert unchanged(ask(done, "mix.safetensors"), settings(done)) is None
    assert unchanged(replace(ask(done), sources={"a": "c.safetensors"}), settings(done)) is None
    assert unchanged(ask(done), settings(done, force=True)) is None
    assert unchanged(ask(done), settings(done, locked=True)) is None
    other = replace(settings(done), output_root=done / "elsewhere")
    assert unchanged(ask(done), other) is None
    assert unchanged(ask(done), settings(done)) is not None


def test_a_build_with_overrides_has_a_stamp_of_its_own(done: Path) -> None:
    assert build(done, ask(done, m="0.4")) == [True]
    assert unchanged(ask(done, m="0.4"), settings(done)) is not None
    assert unchanged(ask(done), settings(done)) is None  # the output is no longer what it was


def test_sources_written_a_moment_ago_leave_no_stamp(fresh: Path) -> None:
    """They could be written again within the same tick of the clock, and look as before."""
    time.sleep(0.04)
    write(fresh / "b.safetensors", {"w": numbers("F32", [7, 8])})
    assert build(fresh) == [True]
    assert unchanged(ask(fresh), settings(fresh)) is None
    time.sleep(0.04)
    assert build(fresh) == [False]
    assert unchanged(ask(fresh), settings(fresh)) is not None


def test_a_recipe_written_a_moment_ago_leaves_no_stamp(fresh: Path) -> None:
    time.sleep(0.04)
    other_recipe(fresh)
    assert build(fresh) == [True]
    assert unchanged(ask(fresh), settings(fresh)) is None


def test_a_source_that_is_a_link_is_followed(fresh: Path) -> None:
    (fresh / "b.safetensors").rename(fresh / "real.safetensors")
    (fresh / "b.safetensors").symlink_to("real.safetensors")
    time.sleep(0.04)
    assert build(fresh) == [True]
    assert unchanged(ask(fresh), settings(fresh)) is not None
    (fresh / "b.safetensors").unlink()
    (fresh / "b.safetensors").symlink_to("c.safetensors")
    assert unchanged(ask(fresh), settings(fresh)) is None


def test_a_nested_recipe_counts_as_well(done: Path) -> None:
    (done / "inner.yaml").write_text(TEXT + "steps: { s: a + (b - c) }\n")
    (done / "recipe.yaml").write_text(
        "mergeflow: 1\nsources: { s: { recipe: inner.yaml, step: s } }\noutputs: { mix.safetensors: s }\n"
    )
    time.sleep(0.04)
    assert build(done) == [True]
    assert unchanged(ask(done), settings(done)) is not None
    (done / "inner.yaml").write_text(TEXT + "steps: { s: a + (c - b) }\n")
    assert unchanged(ask(done), settings(done)) is None


def test_what_failed_leaves_no_stamp(fresh: Path) -> None:
    (fresh / "recipe.yaml").write_text(TEXT + "  two.safetensors: a*0.5 + b*0.4\n")
    time.sleep(0.04)
    with pytest.raises(mergeflow.MergeflowError):
        build(fresh)
    assert unchanged(ask(fresh), settings(fresh)) is None


def test_a_recipe_that_is_removed_during_its_build_leaves_no_stamp(fresh: Path) -> None:
    time.sleep(0.04)
    asked = ask(fresh)

    def report(event: object) -> None:
        if isinstance(event, OutputDone):
            asked.recipe.unlink()

    with mergeflow.load(asked.recipe, settings=settings(fresh), report=report) as p:
        assert [o.built for o in p.build(asked=asked).outputs] == [True]
    (fresh / "recipe.yaml").write_text(TEXT)
    assert unchanged(asked, settings(fresh)) is None
