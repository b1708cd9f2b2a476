"""Slips that a newcomer makes: each is answered with what was meant."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.commands import run
from support.tiny_models import SD1_BLOCKS, write_model

RECIPE = """\
mergeflow: 1
sources: { a: a.safetensors, b: b.safetensors }
params: { k: { PROFILE } }
steps: { s: { STEP } }
outputs: { o.safetensors: "EXPRESSION" }
"""
PARTS = {"PROFILE": "default: 0, IN00: 1", "STEP": "method: weighted_sum, a: a, b: b, m: k", "EXPRESSION": "s"}


@pytest.mark.parametrize(
    ("part", "text", "hint"),
    [
        ("PROFILE", "default: 0, IN0: 1", "did you mean IN00?"),
        ("PROFILE", "default: 0, IN0-IN05: 1", "did you mean IN00?"),
        ("PROFILE", "defautl: 0, IN00: 1", "did you mean default?"),
        ("PROFILE", "swep: [0, 1]", "did you mean sweep?"),
        ("STEP", "mehtod: weighted_sum, a: a, b: b, m: k", "did you mean method?"),
        ("STEP", "method: weighted-sum, a: a, b: b, m: k", "letters, digits and _: weighted_sum"),
        ("EXPRESSION", "0.5a + 0.5b", "a product is written out: 0.5 * a;"),
        ("EXPRESSION", "weighted_sum(a.safetensors, b, 0.3)", "a file gets a name first, as a source;"),
    ],
)
def test_what_was_meant(part: str, text: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        write_model(Path(f"{name}.safetensors"), SD1_BLOCKS, name)
    recipe = RECIPE
    for place, usual in PARTS.items():
        recipe = recipe.replace(place, text if place == part else usual)
    Path("recipe.yaml").write_text(recipe)
    assert hint in run("plan", exit_code=2).stderr


def test_a_device_by_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text("mergeflow: 1\nsources: { a: a.safetensors }\noutputs: { o.safetensors: a }\n")
    assert "did you mean cuda?" in run("plan", "--device", "gpu", exit_code=2).stderr
