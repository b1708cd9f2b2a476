"""Sweeps bound and planned: one output for each value, each the same as if it were written out by hand."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.tiny_models import DIGITS, SD1, settings, write_sources

from mergeflow import Project
from mergeflow.build.targets import choose
from mergeflow.errors import MergeflowError, UnknownName
from mergeflow.plan.bind import bind
from mergeflow.plan.bound import Bound
from mergeflow.plan.plans import Plan
from mergeflow.recipe import loads

HEAD = "mergeflow: 1\nsources: { a: a.safetensors, b: b.safetensors, c: c.safetensors }\n"
LINE = HEAD + "params: { s: { sweep: [0, 0.25, 0.5] } }\noutputs: { 'mix-{s}.safetensors': a + (b - c)*s }\n"


def bound(text: str, folder: Path = Path(), **overrides: str) -> Bound:
    return bind(loads(text, "mix.yaml", folder, overrides))


def plan(text: str, folder: Path, **overrides: str) -> Plan:
    with Project(loads(text, "mix.yaml", folder, overrides), settings(folder)) as project:
        write_sources(project.bound, SD1)
        return project.plan()


def refused(text: str, **overrides: str) -> MergeflowError:
    with pytest.raises(MergeflowError) as caught:
        bound(text, **overrides)
    return caught.value


def forms(planned: Plan) -> dict[str, str]:
    return {output.path: output.snapshot.form for output in planned.outputs}


# -- one output for each value -------------------------------------------------------------------------------------


def test_a_grid_in_the_order_of_the_recipe() -> None:
    found = bound(
        HEAD
        + "params:\n  m: { sweep: [0.1, 0.2] }\n  half: m / 2\n  g: { sweep: { low: 0.3, '': 1 } }\n"
        + "outputs:\n  'any{g}-{m:.2f}.safetensors': a + (b - c)*half + (c - a)*g\n  one.safetensors: a\n"
    )
    assert list(found.outputs) == [
        "anylow-0.10.safetensors", "any-0.10.safetensors", "anylow-0.20.safetensors", "any-0.20.safetensors",
        "one.safetensors",
    ]  # fmt: skip
    points = list(found.points.values())
    assert points[2].labels == {"m": "0.2", "g": "low"}
    assert points[2].numbers == {"m": Fraction(1, 5), "half": Fraction(1, 10), "g": Fraction(3, 10)}
    assert (points[4].labels, points[4].numbers) == ({}, {})
    assert found.numbers == {}


def test_each_is_the_recipe_written_out(tmp_path: Path) -> None:
    """Keys of files and tensors, and the bytes, against one recipe for each value; the bytes against numpy too."""
    text = (
        HEAD
        + "params:\n  s: { sweep: { from: 0, to: 1, by: 0.25 } }\n  x: { sweep: { full: b, half: mid } }\n"
        + "  k: { default: s, '*.bias': 1 - s }\nsteps:\n  mid: a*0.5 + b*0.5\n  mix: weighted_sum(a, x, k)\n"
        + "outputs: { '{x}-{s}.safetensors': { from: mix, dtype: float32, metadata: { title: '{x} at {s:.1f}' } } }\n"
    )
    with Project(loads(text, "mix.yaml", tmp_path), settings(tmp_path)) as project:
        write_sources(project.bound, DIGITS)
        swept = {output.path: output for output in project.plan().outputs}
        assert all(output.built for output in project.build().outputs)
    a, b = (load_file(tmp_path / f"{name}.safetensors") for name in "ab")
    for label, model in (("full", "b"), ("half", "mid")):
        for s in ("0", "0.25", "0.5", "0.75", "1"):
            path = f"{label}-{s}.safetensors"
            alone = (
                HEAD
                + f"params:\n  s: {s}\n  k: {{ default: s, '*.bias': 1 - s }}\nsteps:\n  mid: a*0.5 + b*0.5\n"
                + f"  mix: weighted_sum(a, {model}, k)\noutputs:\n  {path}:\n    from: mix\n    dtype: float32\n"
                + f"    metadata: {{ title: {label} at {float(s):.1f} }}\n"
            )
            here = tmp_path / "alone" / path
            with Project(loads(alone, "alone.yaml", tmp_path), settings(here)) as project:
                (output,) = project.plan().outputs
                assert output.key == swept[path].key
                assert [w.key for w in output.works] == [w.key for w in swept[path].works]
                project.build()
            file = tmp_path / "out" / path
            assert file.read_bytes() == (here / "out" / path).read_bytes()
            x = {n: a[n].astype(float) / 2 + b[n].astype(float) / 2 if model == "mid" else b[n] for n in b}
            share = {name: 1 - float(s) if name.endswith(".bias") else float(s) for name in a}
            made = load_file(file)
            for name in a:
                exact = a[name].astype(float) * (1 - share[name]) + x[name].astype(float) * share[name]
                np.testing.assert_array_equal(made[name], exact.astype(np.float32))


def test_what_does_not_depend_on_the_sweep_is_shared() -> None:
    found = bound(
        HEAD
        + "params:\n  s: { sweep: [0, 0.5, 1] }\n  t: { sweep: [1, 2] }\nsteps:\n  base: a*0.5 + b*0.5\n"
        + "  mix: base + (b - c)*s\n  more: mix + (a - c)*t\noutputs: { '{s}-{t}.safetensors': more }\n"
    )
    assert [source.name for source in found.sources] == ["a", "b", "c"]
    assert len(found.variants["mix"]) == 3, "once for each s, not for each of six choices"
    assert len(found.variants["more"]) == 6
    mixed = [variant.node.of for variant in found.variants["mix"]]
    assert len({id(node.inputs()[0]) for node in mixed}) == 1, "all are sums over the same node of base"
    assert [variant.where for variant in found.variants["mix"]] == ["s = 0", "s = 0.5", "s = 1"]
    assert found.variants["mix"][0].node is found.steps["mix"]


def test_models_and_presets(tmp_path: Path) -> None:
    planned = plan(
        HEAD
        + "params:\n  x: { sweep: [b, c] }\n  k: { sweep: { grad: { preset: GRAD_V, BASE: 0 }, flat: 0.5 } }\n"
        + "outputs:\n  '{x}.safetensors': { from: a*0.5 + c*0.5, like: x }\n"
        + "  'k-{k}.safetensors': weighted_sum(a, b, k)\n",
        tmp_path,
    )
    assert forms(planned) == {
        "b.safetensors": "0.5·a + 0.5·c", "c.safetensors": "0.5·a + 0.5·c",
        "k-grad.safetensors": "1·a", "k-flat.safetensors": "0.5·a + 0.5·b",
    }  # fmt: skip
    by_b, by_c, grad, flat = planned.outputs
    assert [planned.facts[o.resolved.primary].name for o in (by_b, by_c)] == ["b", "c"]
    assert list(grad.snapshot.profiles) == ["k"]
    assert (flat.snapshot.params, flat.snapshot.profiles) == ({"k": "0.5"}, {})


def test_assertions_hold_for_every_value(tmp_path: Path) -> None:
    steps = "steps: { one: a + (b - c)*s, two: a*(1 - t) + b*t }\n"
    text = HEAD + "params: { s: { sweep: [0.5, 1] }, t: { sweep: [0, 2] } }\n" + steps
    out = "outputs: { '{s}.safetensors': one }\n"
    planned = plan(text + f"assert: [0 < s, s + t <= 3, one == a + b*s - s*c]\n{out}", tmp_path)
    assert len(planned.bound.claims) == 2
    error = refused(text + f"assert: [s + t <= 2]\n{out}")
    assert error.message == "the assertion does not hold: s + t <= 2 (where s = 0.5, t = 2)"
    with pytest.raises(MergeflowError) as caught:
        plan(text + f"assert: [one == a + b - c]\n{out}", tmp_path)
    assert "where s = 0.5" in caught.value.message
    many = "{ from: 0, to: 1, by: 0.005 }"
    text = f"{HEAD}params: {{ s: {{ sweep: {many} }}, t: {{ sweep: {many} }} }}\nassert: [s + t >= 0]\n"
    assert "more than 10,000 combinations" in refused(text).message


# -- names ---------------------------------------------------------------------------------------------------------

REFUSED = [  # what follows the sources; line:column, message, hint
    ("params: { s: { sweep: [0, 1] } }\noutputs: { mix.safetensors: a*(1-s) + b*s }", "4:12",
     "mix.safetensors depends on the sweep s, and its 2 files need a name each", "write mix-{s}.safetensors"),
    (("params: { s: { sweep: [0, 1] }, k: { default: s } }\nsteps: { x: 'weighted_sum(a, b, k)' }\n"
     "outputs: { mix.safetensors: { from: a, replace: { vae: x } } }"), "5:12",
     "depends on the sweep s", "write mix-{s}.safetensors"),
    ("params: { x: { sweep: [a, b] } }\noutputs: { mix.safetensors: { from: a, like: x } }", "4:12",
     "depends on the sweep x", "mix-{x}.safetensors"),
    ("params: { s: { sweep: [0, 1] }, t: { sweep: [0, 1] } }\noutputs: { '{s}.safetensors': a + (b - c)*s*t }", "4:12",
     "depends on the sweep t", "write {s}-{t}.safetensors"),
    ("params: { s: { sweep: [0, 1] } }\noutputs: { 'mix-{s}.safetensors': a }", "4:17",
     "has a place for the sweep s, but the output does not depend on it", "2 files would be one and the same"),
    ("params: { seed: { sweep: [0, 1] } }\noutputs: { 'mix-{sed}.safetensors': a*(1-seed) + b*seed }", "4:17",
     "no sweep is called sed", "did you mean seed?"),
    ("outputs: { 'mix-{s}.safetensors': a }", "3:17", "no sweep is called s", "{{ and }} are plain braces"),
    ("params: { m: 0.3 }\noutputs: { 'mix-{m}.safetensors': a + (b - c)*m }", "4:17",
     "m is not a sweep", "m: { sweep: [0, 0.5, 1] }"),
    ("params: { s: { sweep: [0.001, 0.002] } }\noutputs: { 'mix-{s:.2f}.safetensors': a*(1-s) + b*s }", "4:12",
     "mix-0.00.safetensors is the name for s = 0.001 and for s = 0.002", "{s:.4f}"),
    ("params: { s: { sweep: { x: 0, X: 1 } } }\noutputs: { 'mix-{s}.safetensors': a*(1-s) + b*s }", "4:12",
     "mix-X.safetensors is the name for s = x and for s = X", "labels"),
    ("params: { s: { sweep: [0, 1] } }\noutputs:\n  mix-1.safetensors: a\n  'MIX-{s}.safetensors': a + (b - c)*s",
     "6:3",
     "MIX-1.safetensors is the same file as an output of line 5", "rename one"),
    ("params: { s: { sweep: [1/3, 1] } }\noutputs: { 'mix-{s}.safetensors': a*(1-s) + b*s }", "4:17",
     "the sweep s has the value 1/3, which is no short decimal", "{s:.3f}"),
    ("params: { s: { sweep: { a/b: 0 } } }\noutputs: { 'mix-{s}.safetensors': a*(1-s) + b*s }", "3:25",
     "a/b holds /, which cannot be in the name of a file", "give it a label"),
    ("params: { s: { sweep: { '..': 0 } } }\noutputs: { '{s}/mix.safetensors': a*(1-s) + b*s }", "4:12",
     "../mix.safetensors: an output path has no ..", ""),
    (f"params: {{ s: {{ sweep: {{ {'n' * 250}: 0 }} }} }}\noutputs: {{ '{{s}}.safetensors': a*(1-s) + b*s }}", "4:12",
     "has at most 220 bytes", ""),
    ("params: { x: { sweep: [a, b] } }\noutputs: { '{x:.2f}.safetensors': x }", "4:13",
     "x stands for models here, which have no decimals", "write {x}"),
    ("params: { s: { sweep: [0, a] } }", "3:27", "the sweep s mixes numbers and models", "two sweeps"),
    ("params: { s: { sweep: [0.5, 1/2] } }", "3:29", "the sweep s has the value 0.5 twice", ""),
    ("params: { s: { sweep: [a + b - c] } }", "3:24", "this value of the sweep s needs a label", "{ soft: a + b - c }"),
    ("params: { s: { sweep: [true] } }", "3:24", "a sweep runs over numbers, profiles or models", ""),
    ("params: { s: { sweep: [GRAD_V] } }", "3:24", "no source, param or step is called GRAD_V", "{ preset: GRAD_V }"),
    ("params: { s: { sweep: [s, 1] } }", "3:11", "s depends on itself", ""),
    ("params: { s: { sweep: [1, 0] } }\nsteps: { x: a*(1 - 1/s) + b/s }\noutputs: { '{s}.safetensors': x }", "4:21",
     "division by zero (where s = 0)", ""),
    (("params: { s: { sweep: [0, 1] }, t: { sweep: [0, 1] } }\n"
     "outputs: { '{s}.safetensors': { from: a*(1-s) + b*s, metadata: { t: 'at {t}' } } }"), "4:12",
     "metadata: {t} is a sweep's value, and the output's name has no place for it", "in the name"),
    (("params: { s: { sweep: { from: 1, to: 999, by: 1 } }, t: { sweep: { from: 1, to: 11, by: 1 } } }\n"
     "outputs: { '{s}-{t}.safetensors': a*(1-s*t) + b*s*t }"), "4:12",
     "{s}-{t}.safetensors stands for 10,989 files; a recipe makes at most 10,000 in all", "shorten the sweeps"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "place", "message", "hint"), REFUSED, ids=[r[2][:50] for r in REFUSED])
def test_refused(text: str, place: str, message: str, hint: str) -> None:
    error = refused(f"{HEAD}{text}\n")
    assert message in error.message
    assert hint in error.hint
    assert str(error.place) == f"mix.yaml:{place}"
    assert error.exit_code == 2


def test_a_degree_error_names_the_value(tmp_path: Path) -> None:
    text = HEAD + "params: { s: { sweep: [1, 0.5] } }\nsteps: { x: a*s }\noutputs: { '{s}.safetensors': x }\n"
    with pytest.raises(MergeflowError) as caught:
        plan(text, tmp_path)
    assert "the shares of x (s = 0.5) add up to 0.5" in caught.value.message


def test_braces_in_names() -> None:
    found = bound(LINE.replace("mix-{s}", "{{mix}}-{s}").replace("outputs: {", "outputs: { '{{x}}.safetensors': a, "))
    assert list(found.outputs)[:2] == ["{x}.safetensors", "{mix}-0.safetensors"]


# -- setting and choosing ------------------------------------------------------------------------------------------


def test_set_leaves_one_output() -> None:
    assert list(bound(LINE, s="0.3").outputs) == ["mix-0.3.safetensors"]
    assert list(bound(LINE, s="[0.1, 0.2]").outputs) == ["mix-0.1.safetensors", "mix-0.2.safetensors"]
    alone = LINE.replace("mix-{s}", "mix")
    assert list(bound(alone, s="0.3").outputs) == ["mix.safetensors"]
    assert "2 files need a name each" in refused(alone, s="[0, 1]").message


def test_a_sweep_of_another_recipe_is_set(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text(
        HEAD + "params: { s: { sweep: [0.2, 0.4] }, n: { sweep: [7] } }\n"
        "steps: { mix: a*(1-s) + b*s, plain: a*0.5 + b*0.5, one: a*(8-n) + b*(n-7) }\n"
    )
    text = "mergeflow: 1\nsources: { x: %s, c: c.safetensors }\noutputs: { out.safetensors: x*0.5 + c*0.5 }\n"
    with pytest.raises(MergeflowError) as caught:
        bound(text % "other.yaml#mix", tmp_path)
    assert caught.value.message == "mix of other.yaml depends on the sweep s, and a source is one model"
    assert "set: { s: … }" in caught.value.hint
    for step in ("other.yaml#plain", "other.yaml#one", "{ recipe: other.yaml, step: mix, set: { s: 0.3 } }"):
        assert len(bound(text % step, tmp_path).outputs) == 1
    (output,) = plan(text % "{ recipe: other.yaml, step: mix, set: { s: 0.3 } }", tmp_path).outputs
    assert output.snapshot.form == "0.5·c + 0.35·x/a + 0.15·x/b"
    assert output.snapshot.params["x/s"] == "0.3"


def test_choosing_outputs() -> None:
    found = bound(LINE.replace("mix-{s}", "build/mix-{s}").replace("outputs: {", "outputs: { mix-0.safetensors: a, "))
    swept = [f"build/mix-{s}.safetensors" for s in ("0", "0.25", "0.5")]
    assert choose(found, []) == ["mix-0.safetensors", *swept]
    assert choose(found, ["build/mix-{s}.safetensors"]) == swept
    assert choose(found, ["mix-{s}.safetensors"]) == swept
    assert choose(found, ["mix-0.25.safetensors", "build/mix-{s}.safetensors"]) == [swept[1], swept[0], swept[2]]
    assert choose(found, ["mix-0.safetensors"]) == ["mix-0.safetensors"], "a whole path before the end of one"
    with pytest.raises(UnknownName) as caught:
        choose(found, ["mix-{t}.safetensors"])
    assert "the recipe makes mix-0.safetensors, build/mix-{s}.safetensors" in caught.value.hint


def test_another_label_is_no_change_and_another_number_is(tmp_path: Path) -> None:
    def reasons(sweep: str) -> list[str]:
        text = LINE.replace("[0, 0.25, 0.5]", sweep).replace("{s}", "{s:.1f}")
        with Project(loads(text, "mix.yaml", tmp_path), settings(tmp_path)) as project:
            write_sources(project.bound, SD1)
            found = [output.reason for output in project.plan().outputs]
            project.build()
            return found

    assert reasons("{ x: 0.1, y: 0.21 }") == ["it is not there"] * 2
    assert reasons("{ soft: 0.1, hard: 0.21 }") == ["it is up to date"] * 2
    assert reasons("[0.1, 0.22]") == ["it is up to date", "s changed: 0.21 → 0.22"]


def test_the_graph_has_one_node_for_a_sweep(tmp_path: Path) -> None:
    text = HEAD + (
        "params: { s: { sweep: { from: 0.1, to: 1, by: 0.1 } }, x: { sweep: [b, half] } }\n"
        "steps: { half: a*0.5 + b*0.5, mix: a + (x - c)*s, idle: c + (a - b)*s }\n"
        "outputs: { '{x}-{s}.safetensors': mix }\n"
    )
    graph = plan(text, tmp_path).graph
    assert dict(graph.nodes(data="kind")) == {
        "a": "source", "b": "source", "c": "source", "half": "step", "mix": "step", "{x}-{s}.safetensors": "output",
    }  # fmt: skip
    assert set(graph.predecessors("mix")) == {"a", "b", "c", "half"}
    assert graph.nodes["{x}-{s}.safetensors"]["files"] == 20
    with Project(loads(text, "mix.yaml", tmp_path), settings(tmp_path)) as project:
        one = project.plan(["b-0.3.safetensors"]).graph
    assert set(one) == {"a", "b", "c", "mix", "b-0.3.safetensors"}
