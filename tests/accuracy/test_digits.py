"""Merges of trained weights read what their parents read: the digits of `make demo`, which each parent knows half of.

References are merges of the same parents by numpy, in float64, from the papers' formulas: an accuracy for methods that
draw nothing, the range of ten draws for those that do.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mergeflow

pytest.importorskip("sklearn")
DEMO = Path(__file__).resolve().parents[2] / "recipes" / "demo"
FAR = 30.0  # points of accuracy above either parent
Array = np.ndarray
Deltas = list[Array]

SUMS: dict[str, tuple[str, Callable[[Array, Array, Array], Array]]] = {
    "weighted_sum": ("weighted_sum(a, b, 0.5)", lambda o, a, b: (a + b) / 2),
    "task_arithmetic": ("task_arithmetic(base, [a, b], scale=0.6)", lambda o, a, b: o + 0.6 * ((a - o) + (b - o))),
    "ties": ("ties(base, [a, b])", lambda o, a, b: o + elected([kept(a - o, 0.2), kept(b - o, 0.2)])),
    "ties-half": ("ties(base, [a, b], density=0.5)", lambda o, a, b: o + elected([kept(a - o, 0.5), kept(b - o, 0.5)])),
    "slerp": ("slerp(a, b, 0.5)", lambda o, a, b: along_the_arc(a, b)),
}  # fmt: skip
RANDOM: dict[str, tuple[str, Callable[[np.random.Generator, Array, Array, Array], Array]]] = {
    "dare": (
        "dare(base, [a @ 0.6, b @ 0.6], density=0.5, seed={seed})",
        lambda rng, o, a, b: o + 0.6 * (drawn(rng, a - o, 0.5) + drawn(rng, b - o, 0.5)),
    ),
    "dare_ties": (
        "dare_ties(base, [a, b], density=0.5, seed={seed})",
        lambda rng, o, a, b: o + elected([drawn(rng, a - o, 0.5), drawn(rng, b - o, 0.5)]),
    ),
    "della": (
        "della(base, [a, b], density=0.5, epsilon=0.2, seed={seed})",
        lambda rng, o, a, b: o + elected([drawn(rng, d, 0.4 + 0.2 * ranks(d)) for d in (a - o, b - o)]),
    ),
}
OTHERS = {
    "karcher": "karcher([a, b])",
    "nuslerp": "nuslerp([a, b], base=base)",
    "breadcrumbs": "breadcrumbs(base, [a @ 0.6, b @ 0.6], density=0.9)",
    "breadcrumbs_ties": "breadcrumbs_ties(base, [a, b], density=0.9)",
    "ram": "ram(base, [a, b])",
    "sce": "sce(base, [a, b])",
    "sign_agreement": "base + sign_agreement([(a - base), (b - base)])",
    "geometric_median": "geometric_median([base, a, b])",
    "model_stock": "model_stock(base, [a, b])",
}


def kept(delta: Array, density: float) -> Array:
    least = np.sort(np.abs(delta), axis=None)[-max(1, int(density * delta.size))]
    return np.where(np.abs(delta) >= least, delta, 0)


def elected(deltas: Deltas) -> Array:
    sign = np.sign(sum(deltas))
    agree = [np.where(np.sign(d) == sign, d, 0) for d in deltas]
    return sum(agree) / np.maximum(1, sum((d != 0).astype(float) for d in agree))


def along_the_arc(a: Array, b: Array) -> Array:
    angle = np.arccos((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))
    return np.sin(angle / 2) / np.sin(angle) * (a + b)


def drawn(rng: np.random.Generator, delta: Array, chance: float | Array) -> Array:
    return np.where(rng.random(delta.shape) < chance, delta / chance, 0)


def ranks(delta: Array) -> Array:
    """0 for the smallest magnitude, 1 for the largest."""
    order = np.abs(delta).argsort(axis=None).argsort()
    return (order / max(1, delta.size - 1)).reshape(delta.shape)


def _reader() -> Callable[[Path], float]:
    """The demo's own measure, which reads the scans anew each time; here once."""
    sys.path.insert(0, str(DEMO))
    try:
        import digits
    finally:
        sys.path.remove(str(DEMO))
    digits.scans = cache(digits.scans)
    return lambda path: float(digits.accuracy(path)[-1])


class Digits:
    """The parents, and what a model of their kind reads right, in per cent."""

    def __init__(self, folder: Path) -> None:
        subprocess.run([sys.executable, DEMO / "digits.py", "train", folder], check=True, timeout=300)
        self.folder = folder
        self.accuracy = _reader()
        self.parents = {name: load_file(folder / f"{name}.safetensors") for name in ("base", "a", "b")}

    def merged(self, expressions: dict[str, str]) -> dict[str, float]:
        sources = ", ".join(f"{name}: {name}.safetensors" for name in self.parents)
        outputs = "".join(f"  {name}.safetensors: {text}\n" for name, text in expressions.items())
        recipe = self.folder / "recipe.yaml"
        recipe.write_text(
            f"mergeflow: 1\nsources: {{ {sources} }}\ndefaults: {{ dtype: float32 }}\noutputs:\n{outputs}"
        )
        settings = mergeflow.Settings(
            output_root=self.folder, cache=self.folder / "cache", memo=self.folder / "memo", force=True
        )
        with mergeflow.load(recipe, settings=settings) as project:
            project.build()
        return {name: self.accuracy(self.folder / f"{name}.safetensors") for name in expressions}

    def by_numpy(self, formula: Callable[[Array, Array, Array], Array]) -> float:
        wide = {name: {k: v.astype(np.float64) for k, v in model.items()} for name, model in self.parents.items()}
        found = {k: formula(*(wide[name][k] for name in ("base", "a", "b"))).astype(np.float32) for k in wide["base"]}
        save_file(found, self.folder / "reference.safetensors")
        return self.accuracy(self.folder / "reference.safetensors")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    return Digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def parents(digits: Digits) -> float:
    return max(digits.accuracy(digits.folder / f"{name}.safetensors") for name in "ab")


def test_methods_that_draw_nothing_read_what_the_reference_reads(digits: Digits, parents: float) -> None:
    found = digits.merged({name: expression for name, (expression, _) in SUMS.items()})
    wanted = {name: digits.by_numpy(formula) for name, (_, formula) in SUMS.items()}
    assert found == {name: pytest.approx(share, abs=0.4) for name, share in wanted.items()}, "two scans in 599"
    assert min(found.values()) > parents + FAR


def test_methods_that_draw_read_what_ten_draws_of_the_reference_read(digits: Digits, parents: float) -> None:
    seeds = range(3)
    asked = {f"{name}-{s}": text.format(seed=s) for name, (text, _) in RANDOM.items() for s in seeds}
    found = digits.merged(asked)
    for name, (_, formula) in RANDOM.items():
        draws = [
            digits.by_numpy(lambda o, a, b, f=formula, s=s: f(np.random.default_rng(s), o, a, b)) for s in range(10)
        ]
        for share in (found[f"{name}-{s}"] for s in seeds):
            assert min(draws) - 3 <= share <= max(draws) + 3, (name, share, draws)
            assert share > parents + FAR


def test_other_methods_are_far_above_the_parents_too(digits: Digits, parents: float) -> None:
    found = digits.merged(OTHERS)
    assert {name: share for name, share in found.items() if share <= parents + FAR} == {}
