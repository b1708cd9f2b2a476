"""Outputs that share sources are made in one pass: every byte is read once, and each output is what it is alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.builds import HEAD, Heard, build, parts, plan, sha256, write_models
from support.checkpoints import Model, numbers, related, weights

from mergeflow.errors import MergeflowError
from mergeflow.plan.plans import Plan

SOURCES = HEAD + "sources: { a: a.safetensors, b: b.safetensors, c: c.safetensors, d: d.safetensors }\n"
SWEEP = {f"mix-{i}": f"a + (b - c) * {i / 4}" for i in range(5)}
OTHERS = {
    "half": "{ from: a + (b - c) * 0.3, dtype: bfloat16 }",
    "wide": "{ from: (a + b) * 0.5, dtype: float32 }",
    "small": '{ from: a + (b - c) * 0.3, drop: ["n.*"] }',
    "copy": "b",
    "diff": "b - c",
}


def models() -> dict[str, Model]:
    rng = np.random.default_rng(3)
    large, same = weights(rng, "F16", (1_500_001,)), weights(rng, "F16", (7_001,))
    return {
        name: {
            "large": related(rng, large),
            "n.ids": numbers("I64", range(77)),
            "n.same": same if name in "bc" else related(rng, same),
            **{f"s.{i}": weights(rng, "F16", (i,)) for i in range(40)},
        }
        for name in "abcd"
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_models(tmp_path, models())
    return tmp_path


def recipe(outputs: dict[str, str], **options: str) -> str:
    lines = [f"  {name}.safetensors: {text}\n" for name, text in outputs.items()]
    more = f"options: {{ {', '.join(f'{k}: {v}' for k, v in options.items())} }}\n" if options else ""
    return SOURCES + more + "outputs:\n" + "".join(lines)


def facts(planned: Plan, name: str):  # type: ignore[no-untyped-def]
    return next(f.tensors for f in planned.facts.values() if f.name == name)


@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize("outputs", [SWEEP, SWEEP | OTHERS], ids=["sweep", "of all kinds"])
def test_each_output_is_what_it_is_alone(folder: Path, outputs: dict[str, str], jobs: int) -> None:
    for name, text in outputs.items():
        build(folder, recipe({name: text}), jobs=jobs)
    alone = {name: sha256(folder / f"{name}.safetensors") for name in outputs}
    build(folder, recipe(outputs), jobs=jobs, force=True)
    assert {name: sha256(folder / f"{name}.safetensors") for name in outputs} == alone


def test_every_byte_is_read_once(folder: Path) -> None:
    planned = plan(folder, recipe(SWEEP))
    assert len(planned.passes()) == 1
    result = build(folder, recipe(SWEEP))
    read = sum(output.bytes_read for output in result.outputs)
    # with the multiplier 0, and where b and c are equal, only a is read; but some output reads each of the others
    assert read == sum(t.nbytes for t in facts(planned, "a").values()) + 2 * sum(
        t.nbytes for name, t in facts(planned, "b").items() if not name.startswith("n.")
    )


def test_outputs_of_other_sources_have_a_pass_of_their_own(folder: Path) -> None:
    planned = plan(folder, recipe({"x": "a*0.5 + b*0.5", "y": "c*0.5 + d*0.5", "z": "a*0.1 + b*0.9"}))
    assert [[o.path[0] for o in members] for members in planned.passes()] == [["x", "z"], ["y"]]


def test_only_what_is_out_of_date_is_in_the_pass(folder: Path) -> None:
    build(folder, recipe(SWEEP))
    (folder / "mix-2.safetensors").unlink()
    planned = plan(folder, recipe(SWEEP))
    assert [[o.path for o in members] for members in planned.passes()] == [["mix-2.safetensors"]]


def test_one_output_that_fails_leaves_the_others_whole(folder: Path) -> None:
    """Too large for float16 in one of them: the other two are built, and the error is that of the one."""
    outputs = {"x": "a*0.5 + b*0.5", "y": "a + (b - c) * 10000000", "z": "a*0.1 + b*0.9"}
    heard = Heard()
    with pytest.raises(MergeflowError, match=r"y\.safetensors: .* NaN or infinite"):
        build(folder, recipe(outputs, nonfinite="error"), heard)
    assert (folder / "x.safetensors").exists()
    assert not (folder / "y.safetensors").exists()
    assert (folder / "z.safetensors").exists()
    assert not parts(folder)
    result = build(folder, recipe(outputs, nonfinite="error"), keep_going=True)
    assert [(o.built, o.error is not None) for o in result.outputs] == [(False, False), (False, True), (False, False)]


def test_little_memory_means_more_passes_not_slower_ones(folder: Path) -> None:
    """With room for the inputs of one output only, each has a pass of its own, and the same bytes."""
    outputs = {"x": "a*0.5 + b*0.5", "y": "a*0.5 + c*0.5", "z": "a*0.5 + d*0.5"}
    build(folder, recipe(outputs), jobs=1)
    together = {name: sha256(folder / f"{name}.safetensors") for name in outputs}
    alone = plan(folder, recipe({"x": outputs["x"]}), jobs=1, force=True).outputs[0].placement
    assert alone is not None
    planned = plan(folder, recipe(outputs), jobs=1, force=True, memory=alone.peak)
    assert len(planned.passes()) == 3
    build(folder, recipe(outputs), jobs=1, force=True, memory=alone.peak)
    assert {name: sha256(folder / f"{name}.safetensors") for name in outputs} == together
