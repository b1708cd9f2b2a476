"""Recipe → what its output says of itself → recipe: hypothesis writes the recipes, and the key of the file, which says
what its bytes are, is the same. Nothing is built."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

import mergeflow
from mergeflow.build.settings import Settings
from mergeflow.exchange import graph
from mergeflow.plan.plans import OutputPlan
from mergeflow.recipe import loads

SOURCES = ("a", "b", "c", "few")
NUMBERS = st.sampled_from(["0.3", "1", "-0.25", "1/3", "k", "2 - k", "0.0625"])
SHARES = st.sampled_from(["0.2", "0.5", "d", "1"])
HEAD = """mergeflow: 1
sources: { a: a.safetensors, b: b.safetensors, c: c.safetensors, few: few.safetensors }
params:
  k: { default: 0.3, "*attn*": 0.5, strange.name: 0 }
  d: { default: 0.3, "*attn*": 0.6 }
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of an architecture that nobody knows; one of them lacks a tensor."""
    found = tmp_path_factory.mktemp("graphs")
    for seed, name in enumerate(SOURCES):
        random = np.random.default_rng(seed)
        names = ("strange.name", "x.attn.0", "mlp", "深い層/重み")[: 3 if name == "few" else None]
        tensors = {n: random.standard_normal((3, 4)).astype(np.float16) for n in names}
        save_file({**tensors, "steps": np.array([seed], np.int64)}, found / f"{name}.safetensors")
    return found


@st.composite
def recipes(draw: st.DrawFn) -> str:
    names = list(SOURCES)
    steps = []
    for i in range(draw(st.integers(0, 4))):
        value = draw(expressions(names))
        rounded = draw(st.sampled_from(["", "", "float16", "bfloat16", "float32"]))
        steps.append(f"  s{i}: {{ expr: '{value}'{f', round: {rounded}' if rounded else ''} }}")
        names.append(f"s{i}")
    last = names[-2:] + names[:3]
    free = f"linear([{draw(st.sampled_from(last))} @ 0.7, {draw(st.sampled_from(last))} @ 0.4], normalize=false)"
    output = f"from: '{draw(expressions(last) | st.just(free))}'"
    if dtype := draw(st.sampled_from(["", "", "float32", "bfloat16"])):
        output += f", dtype: {dtype}"
    if draw(st.booleans()):
        output += ", metadata: { modelspec.title: A title, note: 'two\\nlines' }"
    lines = ["steps:", *steps] if steps else []
    seed = draw(st.sampled_from(["", "options: { seed: 7 }", "options: { compute: float64 }"]))
    return HEAD + "\n".join([*lines, f"outputs: {{ mix.safetensors: {{ {output} }} }}", seed, ""])


@st.composite
def expressions(draw: st.DrawFn, names: list[str]) -> str:
    x, y, z = (draw(st.sampled_from(names)) for _ in range(3))
    m, d = draw(NUMBERS), draw(SHARES)
    return draw(st.sampled_from([
        x, f"{x} + ({y} - {z}) * ({m})", f"weighted_sum({x}, {y}, {m})", f"average({x}, {y}, {z})",
        f"ties({x}, [{y}, {z} @ 0.5], density={d})", f"dare({x}, [{y}, {z}], density={d}, scale=0.7)",
        f"{x} + ties_trim({y} - {z}, {d}) * ({m})", f"slerp({x}, {y}, {m})", f"median({x}, {y}, {z})",
        f"{x} + sum_sign([{y} - {x}, ties_trim({z} - {x}, {d}) @ 0.5]) * 0.5",
        f"add_perpendicular({x}, {y}, {z}, {m})", f"mergekit_linear([{x} @ 0.3, {y}], dtype=float16)",
        f"{x} + mergekit_elect([{y} - {x}, mergekit_trim({z} - {x}, {d}) @ 0.5], dtype=bfloat16)",
    ]))  # fmt: skip


def planned(folder: Path, text: str) -> OutputPlan:
    settings = Settings(output_root=folder / "out", memo=folder / "memo")
    with mergeflow.Project(loads(text, folder=folder), settings) as project:
        (output,) = project.plan().outputs
    return output


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(recipes())
def test_a_graph_is_the_whole_recipe(folder: Path, text: str) -> None:
    first = planned(folder, text)
    found = graph.read(dict(first.layout.metadata), "mix.safetensors")
    again = planned(folder, found.text)
    assert again.key == first.key, found.text
    assert again.layout.metadata == first.layout.metadata
    twice = graph.read(dict(again.layout.metadata), "mix.safetensors")
    assert twice.text == found.text
