"""docs/numerics.md: the measured table is what is measured."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file
from support.tiny_models import settings

from mergeflow import Project
from mergeflow.recipe import loads

PAGE = Path(__file__).resolve().parents[2] / "docs/numerics.md"
COUNT = 1_000_000
Half = npt.NDArray[np.float16]


def triples() -> list[Half]:
    rng = np.random.default_rng(0)
    return [(rng.standard_normal(COUNT) * 0.1).astype(np.float16) for _ in range(3)]


def whole(x: Half) -> npt.NDArray[np.int64]:
    """A float16 as a multiple of 2**-24, which every one of them is."""
    return (x.astype(np.float64) * 2**24).astype(np.int64)


def nearest(tenths: npt.NDArray[np.int64]) -> Half:
    """The float16 nearest to tenths / 10 · 2**-24, ties to even, decided by integers."""
    best = (tenths.astype(np.float64) / 10 / 2**24).astype(np.float16)
    for towards in (np.float16(np.inf), np.float16(-np.inf)):
        other = np.nextafter(best, towards)
        ours, theirs = np.abs(10 * whole(best) - tenths), np.abs(10 * whole(other) - tenths)
        even = (other.view(np.uint16) & 1) == 0
        best = np.where((theirs < ours) | ((theirs == ours) & even), other, best)
    return best


def test_the_measured_table(tmp_path: Path) -> None:
    models = dict(zip("abc", triples(), strict=True))
    for name, values in models.items():
        save_file({"w": values}, tmp_path / f"{name}.safetensors")
    text = (
        "mergeflow: 1\nsources: { a: a.safetensors, b: b.safetensors, c: c.safetensors }\n"
        "outputs: { mix.safetensors: a + (b - c) * 0.3 }\n"
    )
    with Project(loads(text, "mix.yaml", tmp_path), settings(tmp_path)) as project:
        project.build()
    a, b, c = models.values()
    right = nearest(10 * whole(a) + 3 * whole(b) - 3 * whole(c))
    wide, share = [x.astype(np.float32) for x in (a, b, c)], np.float32(0.3)
    ways = [
        load_file(tmp_path / "out/mix.safetensors")["w"],
        (wide[0] + (wide[1] * share - wide[2] * share)).astype(np.float16),
        a + ((b - c).astype(np.float32) * share).astype(np.float16),
    ]
    missed = [int((way.view(np.uint16) != right.view(np.uint16)).sum()) for way in ways]
    shown = re.findall(r"^\|[^|]*\| ([\d,]+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert missed == [int(number.replace(",", "")) for number in shown]
