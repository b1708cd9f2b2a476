"""Tensors of one model or another: by a number, or by who has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from method_cases import SHAPES, doubles, family, results
from support.builds import Heard, build, plan, recipe, write_models
from support.checkpoints import Model, numbers, read

from mergeflow.errors import RecipeError
from mergeflow.plan.program import COPY


@pytest.mark.parametrize("code", ["F16", "F32", "F8_E4M3"])
def test_pick_takes_tensors_as_they_are(tmp_path: Path, code: str) -> None:
    models = family(code)
    more = "params: { k: { default: 2, conv: 3, 'ro*': 1 } }\n"
    found = results(tmp_path, "pick(a, b, c, k)", models, more=more)
    for name in SHAPES:
        wanted = {"conv": "c", "row": "a"}.get(name, "b")
        assert found[name] == models[wanted][name], name
    assert found["ids"] == models["a"]["ids"]
    (output,) = plan(tmp_path, recipe("pick([a, b, c], k)", "a b c ", more=more)).outputs
    assert {work.program for work in output.works} == {COPY}


def test_the_first_model_gives_dtypes_and_what_others_lack(tmp_path: Path) -> None:
    models = {"a": family("F16", "a")["a"], "b": family("F32", "b", seed=6)["b"]}
    del models["b"]["row"]
    found = results(tmp_path, "pick(a, b, 2)", models)
    assert found["row"] == models["a"]["row"]
    assert {t.code for name, t in found.items() if name != "ids"} == {"F16"}
    assert np.array_equal(doubles(found["conv"]), doubles(models["b"]["conv"]).astype(np.float16))


def test_picked_differences_are_summed(tmp_path: Path) -> None:
    models = family("F32")
    more = "params: { k: { default: 1, conv: 2 } }\nassert: [x == y]\n"
    steps = "steps: { x: 'a + pick([b - o, c - o], k) * 0.5', y: 'pick([a + (b - o)*0.5, a + (c - o)*0.5], k)' }\n"
    found = results(tmp_path, "x", models, more=more + steps)
    for name in ("row", "conv"):
        o, a, x = (doubles(models[m][name]) for m in ("o", "a", {"row": "b", "conv": "c"}[name]))
        assert np.array_equal(doubles(found[name]), (a + (x - o) * 0.5).astype(np.float32))


@pytest.mark.parametrize(
    ("call", "message"),
    [("pick(a, b, 3)", "number is a whole number from 1 to 2, not 3"),
     ("pick(a, b, 0)", "number is a whole number of at least 1, not 0"),
     ("pick(a, b, 1.5)", "number is a whole number of at least 1, not 1.5"),
     ("pick(a, b, k)", "number is a whole number from 1 to 2, not 4"),
     ("pick([a @ 2, b], 1)", "pick takes no weights"),
     ("pick(a, b - o, 1)", "some of those to choose from are models, others differences"),
     ("fallback(a, b @ 2)", "fallback takes no weights")],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, call: str, message: str) -> None:
    more = "params: { k: { default: 1, conv: 4 } }\n"
    with pytest.raises(RecipeError, match=message) as caught:
        results(tmp_path, call, family("F32", "ab"), more=more)
    assert caught.value.place is not None


def parts() -> dict[str, Model]:
    """What nobody has alone: a lacks b, which lacks a and whose middle is of another shape and dtype."""
    return {
        "a": {"a": numbers("F32", [1, 2]), "middle": numbers("F32", [3]), "ids": numbers("I64", [1])},
        "b": {"b": numbers("BF16", [5, 6]), "middle": numbers("F16", [7, 8]), "more": numbers("I64", [2])},
        "c": {"a": numbers("F32", [9, 9]), "b": numbers("BF16", [4, 4]), "c": numbers("F64", [1])},
    }


def test_fallback_is_the_first_that_has_it(tmp_path: Path) -> None:
    models = parts()
    a, b, c = models.values()
    assert results(tmp_path, "fallback(a, b, c)", models) == {**c, **b, **a}
    assert results(tmp_path, "fallback([c, fallback(b, a)])", models) == {**a, **b, **c}
    write_models(tmp_path, models)
    heard = Heard()
    build(tmp_path, recipe("fallback([a, b])", "a b ", more="options: { missing: error }\n"), heard, force=True)
    assert read(tmp_path / "mix.safetensors") == {**b, **a}
    assert heard.warnings == []


def test_fallback_within_a_sum(tmp_path: Path) -> None:
    """What the operand lacks is its substitute's, and the sum's tensors are those of all."""
    models = parts()
    del models["b"]["middle"]
    found = results(tmp_path, "fallback(a, b)*0.5 + c*0.5", models, "float64")
    assert {name: doubles(t).tolist() for name, t in found.items() if name not in ("ids", "more")} == {
        "a": [5, 5.5], "b": [4.5, 5], "middle": [3]
    }  # fmt: skip
    assert (found["ids"], found["more"]) == (models["a"]["ids"], models["b"]["more"])
    twice = results(tmp_path, "c*0.5 + fallback(a, b)*0.5", models, "float64")
    assert {name: doubles(t).tolist() for name, t in twice.items()} == {"a": [5, 5.5], "b": [4.5, 5], "c": [1]}


def test_assertions_cover_what_is_filled_in(tmp_path: Path) -> None:
    models = parts()
    more = "steps: { x: 'fallback(a, b)', y: 'fallback(a, c)' }\nassert: [x == y]\n"
    with pytest.raises(RecipeError, match="the assertion does not hold"):
        results(tmp_path, "x", models, more=more)
    results(tmp_path, "x", models, more=more.replace("a, c", "a, fallback(b, a)"))


def test_fallback_of_differences(tmp_path: Path) -> None:
    models = parts()
    found = results(tmp_path, "fallback(a - c, b - c)", models, "float64")
    assert {name: doubles(found[name]).tolist() for name in "ab"} == {"a": [-8, -7], "b": [1, 2]}
    assert doubles(found["middle"]).tolist() == [0], "as of a - c, where c has none"
