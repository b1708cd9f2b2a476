"""What configurations of mergekit become, method by method, with its defaults and its exceptions."""

from __future__ import annotations

from pathlib import Path

import pytest

from mergeflow.errors import RecipeError
from mergeflow.exchange import mergekit
from mergeflow.plan.bind import bind
from mergeflow.recipe import loads

PAIR = "base_model: o.ckpt\nmodels: [{ model: a.ckpt, parameters: { weight: 0.5 } }, { model: b.ckpt, parameters: { weight: 1 } }]\n"  # noqa: E501
APART = "base_model: o.ckpt\nmodels: [{ model: a.ckpt, parameters: { weight: 0.5, density: 0.3 } }, { model: b.ckpt, parameters: { weight: 1 } }]\n"  # noqa: E501
BELOW = "base_model: o.ckpt\nmodels: [{ model: a.ckpt, parameters: { weight: -0.5 } }, { model: b.ckpt, parameters: { weight: [{ filter: attn, value: -1 }, { value: 1 }] } }]\n"  # noqa: E501
PLAIN = "base_model: o.ckpt\nmodels: [{ model: a.ckpt }, { model: b.ckpt }]\n"
SIX = "models: [" + ", ".join(f"{{ model: {x}.ckpt, parameters: {{ weight: 1 }} }}" for x in "abcdef") + "]\n"
EQUALS, BALANCED, SIGNS = "as large as the smallest", "add up to nothing", "weights below 0 with their signs"

CASES = {
    "breadcrumbs lose nothing unless told": (
        f"merge_method: breadcrumbs\n{PAIR}", "task_arithmetic(o, [a @ 0.5, b], scale=1, normalize=false)", ()),
    "nor with an election": (
        f"merge_method: breadcrumbs_ties\n{PAIR}", "ties(o, [a @ 0.5, b], density=1, scale=1, normalize=false)",
        (BALANCED,)),
    "no more outliers than leave enough": (
        f"merge_method: breadcrumbs\n{PAIR}parameters: {{ density: 0.9, gamma: 0.3 }}",
        "breadcrumbs(o, [a @ 0.5, b], density=0.9, gamma=0.1, scale=1, rescale=false)", (EQUALS,)),
    "a density of one model": (
        f"merge_method: breadcrumbs\n{APART}",
        "o + (breadcrumbs_trim(a - o, 0.3, 0.01) * 0.5 + (b - o) * 1)", (EQUALS,)),
    "dare with densities": (
        f"merge_method: dare_ties\n{APART}",
        "o + sum_sign([dare_drop(a - o, density=0.3, rescale=l1, stream=0) @ 0.5, (b - o)], elect=sum, normalize=false)",  # noqa: E501
        (BALANCED, "random masks")),
    "della with densities": (
        f"merge_method: della\n{APART}",
        "o + sum_sign([della_drop(a - o, density=0.3, epsilon=0.3, rescale=l1, stream=0) @ 0.5, (b - o)], elect=sum, normalize=true)",  # noqa: E501
        (BALANCED, "random masks")),
    "dare of nothing": (
        f"merge_method: dare_linear\n{PAIR}parameters: {{ lambda: 0.5 }}",
        "task_arithmetic(o, [a @ 0.5, b], scale=0.5, normalize=false)", ()),
    "weights below 0": (
        f"merge_method: ties\n{BELOW}", "ties(o, [a @ -0.5, b @ weight_b], density=1, scale=1, normalize=true)",
        (BALANCED, SIGNS)),
    "weights below 0, not divided by": (
        f"merge_method: ties\n{BELOW}parameters: {{ normalize: false }}",
        "ties(o, [a @ -0.5, b @ weight_b], density=1, scale=1, normalize=false)", (BALANCED,)),
    "filters": (
        f"merge_method: model_stock\n{PLAIN}parameters: {{ filter_wise: true }}",
        "model_stock(o, [a, b], filter_wise=true)", ("rows along the last axis",)),
}  # fmt: skip
FAITHFUL = {
    "linear": (f"merge_method: linear\n{SIX}parameters: {{ normalize: false }}",
               "mergekit_linear([a, b, c, d, e, f], dtype=float16, normalize=false)", ("of more than 4 models",)),
    "dare of nothing": (f"merge_method: dare_linear\n{PAIR}",
                        "o + mergekit_sum([a_delta @ 0.5, b_delta], dtype=float16)", ()),
    "weights below 0": (f"merge_method: ties\n{BELOW}",
                        "o + mergekit_elect([a_delta @ -0.5, b_delta @ weight_b], dtype=float16, normalize=true)", ()),
    "one density": (f"merge_method: ties\n{APART}",
                    "o + mergekit_elect([mergekit_trim(a_delta, 0.3) @ 0.5, b_delta], dtype=float16, normalize=true)",
                    (EQUALS,)),
    "rescaled": (f"merge_method: ties\n{PAIR}parameters: {{ rescale: true, density: 0.5 }}", "match_l1",
                 (EQUALS, BALANCED, "ties: --faithful cannot be promised")),
    "nuslerp": (f"merge_method: nuslerp\n{PAIR}", "nuslerp(", ("nuslerp: --faithful cannot be promised",)),
}  # fmt: skip
ALWAYS = ("sums here are exact",)


def imported(text: str, *, faithful: bool) -> tuple[str, tuple[str, ...]]:
    found = mergekit.read(text, "mix.yml", faithful=faithful)
    recipe = loads(found.text)
    bind(recipe)  # the names, the numbers and the methods are right
    (output,) = recipe.outputs.values()
    step = recipe.steps.get(output.expr.text)
    return step.expr.text if step is not None and step.expr is not None else output.expr.text, found.losses


@pytest.mark.parametrize("case", CASES)
def test_a_method(case: str) -> None:
    text, expression, words = CASES[case]
    found, losses = imported(text, faithful=False)
    assert found == expression
    assert_said(losses, (*words, *ALWAYS))


@pytest.mark.parametrize("case", FAITHFUL)
def test_a_faithful_method(case: str) -> None:
    text, expression, words = FAITHFUL[case]
    models = [f"{x}_float16" for x in "oabcdef"]
    found, losses = imported(f"{text}\ndtype: float16\n", faithful=True)
    for name in models:
        found = found.replace(f"{name}_", f"{name[0]}_").replace(name, name[0])
    assert found.startswith(expression) or expression in found
    assert_said(losses, words)


def assert_said(losses: tuple[str, ...], words: tuple[str, ...]) -> None:
    """Each is in one line, and there is no line more."""
    assert [word for word in words if not any(word in loss for loss in losses)] == []
    assert [loss for loss in losses if not any(word in loss for word in words)] == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (f"merge_method: linear\n{SIX}dtype: float64\n", "these models are float64"),
        (f"merge_method: linear\n{SIX}", "has to know the dtype"),
        (f"merge_method: linear\ndtype: float16\n{SIX.replace('weight: 1', 'weight: 0')}", "the weights add up to 0"),
    ],
)
def test_what_faithful_cannot_do(text: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=why):
        mergekit.read(text, "mix.yml", faithful=True)
