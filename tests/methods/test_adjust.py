"""supermerger's Adjust against its table of operations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from method_cases import close, doubles, results
from support.builds import plan, recipe, write_models
from support.checkpoints import Model, weights

from mergeflow.plan.program import COPY

UNET = "model.diffusion_model."
NAMES = {
    "input_blocks.0.0.weight": (8, 4, 3, 3), "input_blocks.0.0.bias": (8,), "out.0.weight": (8,), "out.0.bias": (8,),
    "out.2.weight": (4, 8, 3, 3), "out.2.bias": (4,), "out.1.bias": (4,), "middle_block.0.weight": (5, 5),
}  # fmt: skip
NUMBERS = {
    "first": 2.0, "out": -3.0, "out2": 0.5, "contrast": 1.5, "brightness": -1.0, "col1": 0.25, "col2": 4.0, "col3": -2.5
}  # fmt: skip
CALL = "adjust(a*0.5 + b*0.5, " + ", ".join(f"{k}={v}" for k, v in NUMBERS.items())
COLOURS = {
    "sd1": [[-1, 1 / 3, 2 / 3], [1, 1, 0], [0, -1, -1], [1, 0, 1]],
    "sdxl": [[0, 0, 1], [1, 0, 0], [-1, -1, 0], [-1, 1, 0]],
}


def models(code: str) -> dict[str, Model]:
    rng = np.random.default_rng(3)
    return {k: {UNET + name: weights(rng, code, shape) for name, shape in NAMES.items()} for k in "ab"}


@pytest.mark.parametrize("family", COLOURS)
@pytest.mark.parametrize("code", ["F16", "BF16", "F32", "F64"])
def test_the_table(tmp_path: Path, code: str, family: str) -> None:
    given = models(code)
    found = results(tmp_path, f"{CALL}, family={family})", given, "float32")
    n = NUMBERS
    colour = 0.02 * np.array([n["brightness"], n["col1"], n["col2"], n["col3"]]) @ np.array(COLOURS[family])
    table = {
        "input_blocks.0.0.weight": (1 - 0.01 * n["first"], 0), "input_blocks.0.0.bias": (1 + 0.02 * n["first"], 0),
        "out.0.weight": (1 - 0.01 * n["out"], 0), "out.0.bias": (1 + 0.02 * n["out"], 0),
        "out.2.weight": (1 - 0.01 * n["out2"], 0), "out.2.bias": (1, np.array([0.02 * n["contrast"], *colour])),
    }  # fmt: skip
    for name in NAMES:
        factor, shift = table.get(name, (1, 0))
        mean = (doubles(given["a"][UNET + name]) + doubles(given["b"][UNET + name])) / 2
        close(found[UNET + name], mean * factor + shift)


def test_other_tensors_are_copied(tmp_path: Path) -> None:
    write_models(tmp_path, models("F16"))
    (output,) = plan(tmp_path, recipe("adjust(a, contrast=2)", "a ")).outputs
    assert {w.name.removeprefix(UNET) for w in output.works if w.program == COPY} == {
        "out.1.bias", "middle_block.0.weight"
    }  # fmt: skip
    keys = [w.key for w in output.works if w.program != COPY]
    assert len(set(keys)) == len(keys) == 6


def test_a_tensor_of_equal_content_has_a_key_of_its_own(tmp_path: Path) -> None:
    """What is done depends on the name."""
    given = models("F16")
    given["a"][UNET + "out.0.weight"] = given["a"][UNET + "out.0.bias"]
    found = results(tmp_path, "adjust(a, out=5)", given)
    assert found[UNET + "out.0.weight"] != found[UNET + "out.0.bias"]
