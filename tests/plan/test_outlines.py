"""Tensors that differ in nothing but their content share the work of planning, and no tensor gets another's key."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.builds import HEAD, plan, write_models
from support.checkpoints import Model, weights

from mergeflow.digest import action_key
from mergeflow.plan import lower
from mergeflow.plan.planner import tensor_preimage

COUNT = 40
RECIPE = (
    HEAD
    + "sources: { a: a.safetensors, b: b.safetensors, c: c.safetensors }\n"
    + "params: { m: { sweep: [0.25, 0.5, 0.75] } }\n"
    + 'outputs: { "o-{m}.safetensors": "a + (ties(a, [b, c], density=0.2) - a)*m" }\n'
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three models of 40 tensors: in every fourth b's are a's, in every fifth c's are b's."""
    rng = np.random.default_rng(4)
    models: dict[str, Model] = {name: {f"t{i:02}": weights(rng, "F16", (6,)) for i in range(COUNT)} for name in "abc"}
    for i in range(COUNT):
        if i % 4 == 0:
            models["b"][f"t{i:02}"] = models["a"][f"t{i:02}"]
        if i % 5 == 0:
            models["c"][f"t{i:02}"] = models["b"][f"t{i:02}"]
    write_models(tmp_path, models)
    return tmp_path


def test_outlines_are_made_for_kinds_of_tensors(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    real = lower.outline
    monkeypatch.setattr(lower, "outline", lambda *given: made.append(1) or real(*given))
    outputs = plan(folder, RECIPE).outputs
    assert len(outputs) == 3
    assert len(made) == 3 * 4  # all different, b is a, c is b, all alike


def test_every_key_is_the_hash_of_a_text_of_its_own(folder: Path) -> None:
    """The text names the digests of this tensor, where operands may change places in the order of their content."""
    made = plan(folder, RECIPE)
    seen: set[str] = set()
    for output in made.outputs:
        for work in output.works:
            text = tensor_preimage(made, output, work.name)
            assert work.key == action_key(text)
            digests = {made.facts[source].digests[work.name].hex() for source, _ in work.reads}
            if work.staged < 0:
                assert all(digest in text for digest in digests)
            seen.add(work.key)
    copied = COUNT // 20  # where all three are alike
    assert len(seen) == 3 * (COUNT - copied) + copied
