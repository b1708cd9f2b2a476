"""Declaring methods and kernels: what is checked, what plugins' keys hold, and where jobs find room."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from method_cases import doubles, family, results
from support.builds import plan, recipe, settings, write_models

import mergeflow
from mergeflow.build.quick import Asked, unchanged
from mergeflow.errors import MergeflowError, ResourceError
from mergeflow.methods import kernels, registry
from mergeflow.plan.jobs import jobs, room
from mergeflow.plan.place import KEEP, Budget, footprint, place

STABLE = ("distribution_crossover", "truncate_rank")

PLUGIN = '''
from mergeflow.methods.kernels import kernel
from mergeflow.methods.registry import Delta, method

def _apply(given, found, tiles, begin, out):
    out.copy_(tiles[0]).mul_(tiles[0])

SQUARE = kernel("plugin_square", version=1, operands=("delta",), result="delta", apply=_apply, zeros=True)

@method(SQUARE)
def plugin_square(delta: Delta) -> Delta:
    """delta * delta"""
    return SQUARE(delta)
'''


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a module that declares a method; what it declares is forgotten afterwards."""
    monkeypatch.setattr(registry, "_registered", dict(registry.built_in()))
    monkeypatch.setattr(kernels, "_formulas", dict(kernels._formulas))
    folder = tmp_path / "plugin"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield folder
    for name in ("plugin_one", "plugin_two"):
        sys.modules.pop(name, None)


def load(folder: Path, name: str, text: str) -> None:
    (folder / f"{name}.py").write_text(text)
    __import__(name)


def test_a_method_of_ones_own(tmp_path: Path, plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(plugin, "plugin_one", PLUGIN)
    models = family("F32", "a")
    found = results(tmp_path / "x", "plugin_square(a - o)", models, "float64")
    delta = doubles(models["a"]["row"]) - doubles(models["o"]["row"])
    assert np.array_equal(doubles(found["row"]), delta * delta)
    text = recipe("plugin_square(a - o)", "o a ", dtype="float64")
    before = {w.name: w.key for w in plan(tmp_path / "x", text).outputs[0].works}
    monkeypatch.setattr(kernels, "_formulas", {k: v for k, v in kernels._formulas.items() if k != "plugin_square"})
    monkeypatch.setattr(
        registry, "_registered", {k: v for k, v in registry._registered.items() if k != "plugin_square"}
    )
    load(plugin, "plugin_two", PLUGIN + "# another source\n")
    after = {w.name: w.key for w in plan(tmp_path / "x", text).outputs[0].works}
    assert {name for name in before if before[name] == after[name]} == {"same", "ids", "none"}


WHOLE = '''
import torch
from mergeflow.methods.registry import Delta, method
from mergeflow.methods.whole import whole_kernel

def _compute(given, operands):
    return torch.sort(operands[0].reshape(-1)).values.reshape(given.shape)

SORTED = whole_kernel("plugin_sorted", version=1, operands=("delta",), result="delta", compute=_compute,
                      room=lambda shape: 0, zeros=True)

@method(SORTED)
def plugin_sorted(delta: Delta) -> Delta:
    """delta, sorted"""
    return SORTED(delta)
'''


def test_a_method_of_ones_own_over_whole_tensors(tmp_path: Path, plugin: Path) -> None:
    load(plugin, "plugin_one", WHOLE)
    models = family("F32", "a")
    found = results(tmp_path / "x", "plugin_sorted(a - o)", models, "float64")
    delta = doubles(models["a"]["conv"]) - doubles(models["o"]["conv"])
    assert np.array_equal(doubles(found["conv"]).ravel(), np.sort(delta.ravel()))
    assert len(kernels.formula("plugin_sorted").kernel.origin) == 64


def test_two_kernels_of_one_name(plugin: Path) -> None:
    with pytest.raises(MergeflowError, match="two kernels are called ties_trim"):
        load(plugin, "plugin_one", PLUGIN.replace('"plugin_square", v', '"ties_trim", v'))


@pytest.mark.parametrize(
    ("annotation", "message"),
    [("Tensor", "the annotation Tensor is not known"), ("int", "parameter delta must be annotated as one of Model")],
)
def test_annotations(plugin: Path, annotation: str, message: str) -> None:
    with pytest.raises(MergeflowError, match=message):
        load(
            plugin,
            "plugin_one",
            "from __future__ import annotations\n" + PLUGIN.replace("delta: Delta", f"delta: {annotation}"),
        )


def test_every_built_in_method_says_what_it_is() -> None:
    for method in registry.built_in().values():
        assert method.formula
        assert method.tier == ("stable" if method.name in STABLE else "exact")
        cited = "arXiv" in method.doc or "Shoemake" in method.doc or "no paper" in method.doc
        assert cited or not method.kernels or method.name == "match_l1", method.name


def test_jobs_have_room_in_the_plan(tmp_path: Path) -> None:
    write_models(tmp_path, family("F16"))
    planned = plan(tmp_path, recipe("ties(o, [a, b, c])", "o a b c "))
    (output,) = planned.outputs
    large = [w._replace(shape=(40_000_000,)) for w in output.works if w.staged >= 0][:1]
    rooms = room(planned.staged, large)
    assert (rooms.keepable, rooms.torch) == (3 * 4 * 40_000_000, True)
    need = footprint(planned.programs, [large], planned.staged, compiled=False)
    rich, poor = place(need, Budget(1 << 33, 2)), place(need, Budget(300_000_000, 2))
    assert (rich.workers, rich.keep) == (2, KEEP)
    assert rich.peak >= 2 * (KEEP + rooms.buffers)
    assert poor.keep < KEEP
    assert poor.peak <= 300_000_000
    with pytest.raises(ResourceError, match="this merge needs"):
        place(need, Budget(200_000_000, 2))
    compiled = place(footprint(planned.programs, [large], planned.staged), Budget(200_000_000, 2))
    assert (compiled.workers, compiled.keep) == (2, 0)


def test_the_largest_job_is_the_first(tmp_path: Path) -> None:
    write_models(tmp_path, family("F16"))
    (output,) = (planned := plan(tmp_path, recipe("ties(o, [a, b, c])", "o a b c "))).outputs
    found = jobs([(output.works, output.layout.tensors)])
    assert [job.elements for job in found] == sorted([job.elements for job in found], reverse=True)
    assert len(found) == sum(w.staged >= 0 and w.nbytes > 0 for w in output.works) > 0
    assert planned.staged


def test_an_edited_plugin_is_seen_by_the_build_that_has_nothing_to_do(tmp_path: Path, plugin: Path) -> None:
    """The stamp of a finished build covers the files of the methods it used."""
    load(plugin, "plugin_one", PLUGIN)
    write_models(tmp_path, family("F32", "a"))
    (tmp_path / "recipe.yaml").write_text(recipe("o + plugin_square(a - o)", "o a "))
    time.sleep(0.04)  # files that were written this very moment are not trusted
    asked = Asked(tmp_path / "recipe.yaml", (), {}, {})
    with mergeflow.load(asked.recipe, settings=settings(tmp_path)) as p:
        p.build(asked=asked)
    assert unchanged(asked, settings(tmp_path)) is not None
    (plugin / "plugin_one.py").write_text(PLUGIN + "# edited\n")
    assert unchanged(asked, settings(tmp_path)) is None
