"""The forms of all steps, one after the other: what was found below one is used for the next, and is right."""

from __future__ import annotations

import random
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import pytest
from support.builds import HEAD, plan, write_models
from support.checkpoints import numbers

from mergeflow.cli.describe import describe
from mergeflow.ir.analysis import Analysis, Case
from mergeflow.ir.forms import Applied
from mergeflow.ir.nodes import topological
from mergeflow.plan.plans import Plan

Shares = Mapping[str, Fraction]
NAMES = "abc"


def mixed(seed: int, count: int) -> tuple[dict[str, str], dict[str, Shares]]:
    """Steps that are weighted sums of those before them, and the shares of the sources in each: an oracle."""
    rng = random.Random(seed)
    right: dict[str, Shares] = {name: {name: Fraction(1)} for name in NAMES}
    steps: dict[str, str] = {}
    for i in range(count):
        one, two, three = (rng.choice(list(right)) for _ in range(3))
        m = Fraction(rng.randint(-9, 9), 10)
        steps[f"s{i}"] = f"{one} + ({two} - {three})*{float(m)}"
        parts = ((Fraction(1), one), (m, two), (-m, three))
        total = {n: sum((k * right[x].get(n, Fraction(0)) for k, x in parts), Fraction(0)) for n in NAMES}
        right[f"s{i}"] = {n: share for n, share in total.items() if share}
    return steps, right


def planned(folder: Path, steps: Mapping[str, str], output: str) -> Plan:
    lines = "".join(f"  {name}: {text}\n" for name, text in steps.items())
    write_models(folder, {name: {"w": numbers("F32", [i + 1.0])} for i, name in enumerate(NAMES)})
    sources = "".join(f"  {name}: {name}.safetensors\n" for name in NAMES)
    return plan(folder, f"{HEAD}sources:\n{sources}steps:\n{lines}outputs: {{ mix.safetensors: {output} }}\n")


@pytest.mark.parametrize("seed", range(3))
def test_shares_of_every_step(tmp_path: Path, seed: int) -> None:
    steps, right = mixed(seed, 40)
    made = planned(tmp_path, steps, "s39")
    bound = made.bound
    order = topological(bound.steps.values())
    analysis = Analysis(order, Case(frozenset(), {}, frozenset()))
    for name in random.Random(seed).sample(list(steps), len(steps)):  # in any order
        form = analysis.form(bound.steps[name])
        assert {bound.sources[leaf].name: share for share, leaf in form.terms} == right[name]


def test_methods_in_steps_before(tmp_path: Path) -> None:
    """A method that two steps use is one term of the third."""
    steps = {"x": "slerp(a, b, t=0.3)", "y": "x + (b - c)*0.5", "z": "y + (x - y)*0.25 + (a - c)"}
    made = planned(tmp_path, steps, "z")
    bound = made.bound
    analysis = Analysis(topological(bound.steps.values()), Case(frozenset(), {}, frozenset()))
    for _ in range(2):
        y, z = (analysis.form(bound.steps[name]) for name in "yz")
        assert [share for share, leaf in y.terms if isinstance(leaf, Applied)] == [1]
        assert [share for share, leaf in z.terms if isinstance(leaf, Applied)] == [1]
        shares = {bound.sources[leaf].name: share for share, leaf in z.terms if isinstance(leaf, int)}
        assert shares == {"a": 1, "b": Fraction(3, 8), "c": Fraction(-11, 8)}


def test_all_steps_of_a_long_chain_are_shown(tmp_path: Path) -> None:
    steps = {"s0": "a"} | {f"s{i}": f"s{i - 1} + (b - c)*0.001" for i in range(1, 300)}
    made = planned(tmp_path, steps, "s299")
    shown = describe(made)["steps"]
    assert len(shown) == 300
    for i in (1, 150, 299):
        share = f"{i / 1000:g}"
        assert shown[i]["forms"][0]["form"] == f"1·a + {share}·b − {share}·c"
