"""Import → export → import gives the recipe that the first import gave; hypothesis writes the foreign recipes."""

from __future__ import annotations

import contextlib
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergeflow.errors import RecipeError
from mergeflow.exchange import mergekit, runs
from mergeflow.exchange.draft import spelled
from mergeflow.exchange.to_runs import decompose
from mergeflow.exchange.write import FORMS, write
from mergeflow.plan.bind import bind
from mergeflow.recipe import load, loads

FILES = ("a.safetensors", "b.safetensors", "some folder/c.ckpt", "柚子.safetensors")
NUMBERS = st.sampled_from(
    ["0.3", "1", "0.05", "0.123456789", "2"]
)  # B - C times -0.2 is C - B times 0.2, and so written


def body(text: str) -> str:
    """A recipe without the lines that say where it is from."""
    return text.partition("\nmergeflow: 1\n")[2]


def there_and_back(first: str, to: str) -> tuple[str, str]:
    """A recipe, and what importing its export gives."""
    exported = write(loads(first), to)
    again = {"mergekit": mergekit.read, "a1111-steps": runs.read}[to](exported.text, "mix.yml")
    return body(first), body(again.text)


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    method = draw(st.sampled_from(
        ["linear", "task_arithmetic", "ties", "dare_linear", "dare_ties", "breadcrumbs", "breadcrumbs_ties", "della",
         "della_linear", "slerp", "nuslerp", "multislerp", "karcher", "model_stock", "nearswap", "sce", "ram",
         "ramplus_tl", "arcee_fusion"],
    ))  # fmt: skip
    files = draw(st.permutations(FILES[1:]))
    count = (
        1 if method in ("slerp", "nearswap", "arcee_fusion") else 2 if method == "nuslerp" else draw(st.integers(2, 3))
    )
    weighted = method not in ("slerp", "nearswap", "karcher", "model_stock", "sce", "ram", "ramplus_tl", "arcee_fusion")
    models: list[dict[str, Any]] = [{"model": file} for file in files[:count]]
    for model in models if weighted else ():
        model["parameters"] = {"weight": draw(rule() if method in ("linear", "ties") else st.sampled_from([0.5, 1, 2]))}
    config: dict[str, Any] = {"merge_method": method, "models": models}
    if method not in ("linear", "karcher", "nuslerp", "multislerp"):
        config["base_model"] = FILES[0]
    common: dict[str, Any] = {}
    if method in ("ties", "dare_linear", "dare_ties", "breadcrumbs", "breadcrumbs_ties"):
        common["density"] = draw(st.sampled_from([0.2, 0.5, 1]))
    if method.startswith("della"):
        common |= {"density": 0.5, "epsilon": draw(st.sampled_from([0.1, 0.15]))}
    if method in ("slerp", "nearswap"):
        common["t"] = draw(st.sampled_from([0.3, 0.001]))
    if method in ("linear", "task_arithmetic", "ties", "dare_ties") and draw(st.booleans()):
        common["normalize"] = draw(st.booleans())
    if method in ("task_arithmetic", "ties", "dare_linear") and draw(st.booleans()):
        common["lambda"] = 0.7
    if method in ("dare_linear", "della", "breadcrumbs") and draw(st.booleans()):
        common["rescale"] = draw(st.booleans())
    if common:
        config["parameters"] = common
    if draw(st.booleans()):
        config["out_dtype"] = draw(st.sampled_from(["float16", "bfloat16", "float32"]))
    return config


def rule() -> st.SearchStrategy[Any]:
    return st.one_of(
        st.sampled_from([0.5, 1, 2]),
        st.just([{"filter": "attn", "value": 0.25}, {"filter": "mlp", "value": 2}, {"value": 1}]),
    )


@settings(max_examples=150, deadline=None)
@given(configurations())
def test_mergekit(config: dict[str, Any]) -> None:
    text = mergekit.read(json.dumps(config), "mix.yml").text
    first, again = there_and_back(text, "mergekit")
    assert again == first


@settings(max_examples=30, deadline=None)
@given(configurations(), configurations())
def test_mergekit_in_two_documents(one: dict[str, Any], two: dict[str, Any]) -> None:
    two["models"][-1]["model"] = "stage"
    text = mergekit.read(f"{json.dumps({'name': 'stage', **one})}\n---\n{json.dumps(two)}\n", "mix.yml").text
    first, again = there_and_back(text, "mergekit")
    assert again == first


@st.composite
def merger_runs(draw: st.DrawFn) -> str:
    """Runs in the form that export writes, each over files and earlier results; every result but the last is used."""
    count = draw(st.integers(1, 5))
    lines, before = [], ""
    for i in range(count):
        models = draw(st.permutations((*FILES[:2], "d.ckpt")))
        models = [before, *models] if before else models
        result = f"step {i}" if i < count - 1 else "mix.safetensors"
        m = draw(NUMBERS)
        half = ", save as float16" if draw(st.booleans()) else ""
        if draw(st.booleans()):
            lines.append(f"Weighted sum: A = {models[0]}, B = {models[1]}, M = {m}{half} -> {result}")
        else:
            lines.append(
                f"Add difference: A = {models[0]}, B = {models[1]}, C = {models[2]}, M = {m}{half} -> {result}"
            )
        before = result
    return "\n".join(f"{n}. {line}" for n, line in enumerate(lines, 1))


@settings(max_examples=150, deadline=None)
@given(merger_runs())
def test_runs_of_the_merger(text: str) -> None:
    first, again = there_and_back(runs.read(text, "mix.txt").text, "a1111-steps")
    assert again == first


@settings(max_examples=300, deadline=None)
@given(st.lists(st.fractions(-2, 2, max_denominator=20), min_size=1, max_size=5))
def test_any_sum_of_models_is_some_runs(shares: list[Fraction]) -> None:
    """Done in exact numbers, the runs give the sum."""
    shares = [*shares, 1 - sum(shares, Fraction(0))]
    parts = [(share, f"x{i}") for i, share in enumerate(shares) if share]
    parts = parts if len(parts) > 1 or parts[0][0] != 1 else [(Fraction(1, 2), "x0"), (Fraction(1, 2), "x1")]
    values = {name: {name: Fraction(1)} for _, name in parts}
    result: dict[str, Fraction] = {}
    for method, models, m in decompose(parts):
        a, b, *c = (result if not model else values[model] for model in models)
        names = a.keys() | b.keys() | (c[0].keys() if c else set())
        if method == runs.SUM:
            result = {n: a.get(n, 0) * (1 - m) + b.get(n, 0) * m for n in names}
        else:
            result = {n: a.get(n, 0) + (b.get(n, 0) - c[0].get(n, 0)) * m for n in names}
    assert {n: share for n, share in result.items() if share} == {name: share for share, name in parts}


@settings(max_examples=300, deadline=None)
@given(st.fractions())
def test_numbers_are_read_back_exactly(value: Fraction) -> None:
    from mergeflow.exchange.calls import number, tree
    from mergeflow.recipe import parse

    assert number(tree(parse(spelled(value))), {}) == value


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("ties(a, [b, c])", "the method"),
        ("b - c", "is a difference"),
        ("linear([a @ k, b @ 1])", "block weights"),
        ("{ from: a, replace: { vae: b } }", "replace:"),
    ],
)
def test_what_the_merger_cannot_do_is_refused(expression: str, why: str) -> None:
    recipe = loads(
        "mergeflow: 1\nsources: { a: a.safetensors, b: b.safetensors, c: c.safetensors }\n"
        f"params: {{ k: {{ default: 1, vae: 0.5 }} }}\noutputs:\n  mix.safetensors: {expression}\n"
    )
    with pytest.raises(RecipeError, match=why):
        write(recipe, "a1111-steps")


def test_a_recipe_with_several_outputs_takes_a_name() -> None:
    recipe = loads(
        "mergeflow: 1\nsources: { a: a.ckpt, b: b.ckpt }\noutputs: { x.safetensors: a, out/y.safetensors: b }"
    )
    with pytest.raises(RecipeError, match="several outputs"):
        write(recipe, "mergekit")
    assert "b.ckpt" in write(recipe, "mergekit", "y.safetensors").text
    assert "Save b as y.safetensors" in write(recipe, "text", "out/y.safetensors").text


def test_text_of_a_recipe() -> None:
    recipe = loads(
        """mergeflow: 1
name: Night
description: Two steps.
sources: { a: models/a.safetensors, b: { path: secret/b.ckpt, hash: 925997e9 }, c: c.safetensors, unused: x.ckpt }
params: { m: 0.3, k: { default: 0, IN00-IN05: 0.5 } }
steps:
  last: { expr: "weighted_sum(lewd, b, k)", round: float16 }
  lewd: a + (b - c)  *  m
outputs: { out/mix.safetensors: { from: last, dtype: float16, fix: [clip_position_ids] } }
"""
    )
    assert (
        write(recipe, "text").text
        == """Night
Two steps.

Models:
- a: a.safetensors
- b: b.ckpt, hash 925997e9
- c: c.safetensors

Numbers:
- m: 0.3
- k: 0 unless said below; IN00-IN05: 0.5

Steps:
1. lewd = a + (b - c) * m
2. last = weighted_sum(lewd, b, k), rounded to float16
3. Save last as mix.safetensors, in float16, fix clip_position_ids
"""
    )


def test_sources_without_paths() -> None:
    digest = f"b3:{'5' * 64}"
    recipe = loads(
        f"mergeflow: 1\nsources: {{ a: hash:{digest}, b: b.ckpt }}\noutputs: {{ mix.safetensors: a*0.5 + b*0.5 }}\n"
    )
    assert f"- a: hash {digest}\n- b: b.ckpt\n" in write(recipe, "text").text
    found = write(recipe, "mergekit")
    assert found.losses == ("a: the file's path, which is not known: write it in the place of the hash",)
    again = loads(mergekit.read(found.text, "mix.yml").text)
    assert [source.hash for source in again.sources.values()] == [digest, None]


def test_runs_of_a_recipe() -> None:
    """The chain of the wiki's recommended recipe, and what comes of a sum that no run is."""
    recipe = loads(
        """mergeflow: 1
sources: { any: any.ckpt, nai: nai.ckpt, sfw: sfw.ckpt, gape: gape.ckpt }
steps:
  lewd: any + (nai - sfw) * 0.3
  final: { expr: lewd + gape - nai, round: float16 }
outputs: { mix.safetensors: final*0.5 + any*0.3 + gape*0.2 }
"""
    )
    found = write(recipe, "a1111-steps")
    assert (
        found.text
        == """# Runs of A1111's checkpoint merger: mix.safetensors
1. Add difference: A = any.ckpt, B = nai.ckpt, C = sfw.ckpt, M = 0.3 -> lewd
2. Add difference: A = lewd, B = gape.ckpt, C = nai.ckpt, M = 1, save as float16 -> final
3. Weighted sum: A = final, B = any.ckpt, M = 0.375 -> mix.safetensors part 1
4. Weighted sum: A = mix.safetensors part 1, B = gape.ckpt, M = 0.2 -> mix.safetensors
"""
    )
    assert found.losses == ("that merger rounds after every operation; the recipe's sums are exact",)
    assert body(runs.read(found.text, "mix.txt").text)


@pytest.mark.parametrize(
    "recipe", sorted(Path(__file__).resolve().parents[2].glob("recipes/*.yaml")), ids=lambda p: p.stem
)
def test_the_examples_are_exported_or_refused(recipe: Path) -> None:
    loaded = load(recipe)
    for to in FORMS:
        for path in bind(loaded).outputs if to != "text" else loaded.outputs:
            with contextlib.suppress(RecipeError):
                assert write(loaded, to, path).text.endswith("\n")
