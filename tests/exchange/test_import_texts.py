"""The other foreign recipes: each says what is meant in few lines, and what it is as an expression is known by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file
from support.tiny_models import SD1_BLOCKS, write_model

import mergeflow
from mergeflow.build.settings import Settings
from mergeflow.cli.main import cli
from mergeflow.errors import MissingInput, RecipeError
from mergeflow.exchange.read import read
from mergeflow.recipe import Recipe, loads
from mergeflow.tensors import DType


def imported(tmp_path: Path, name: str, text: str, **options: object) -> tuple[Recipe, tuple[str, ...]]:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    found = read(path, **options)  # type: ignore[arg-type]
    return loads(found.text), found.losses


def expressions(recipe: Recipe) -> dict[str, str]:
    """Steps and outputs as they are written."""
    steps = {name: step.expr.text for name, step in recipe.steps.items() if step.expr is not None}
    return steps | {path: output.expr.text for path, output in recipe.outputs.items()}


BOARD = """\
# the wiki's two steps
__SD15__ = v1-5-pruned.ckpt, the base
O = Anything-V3.0.ckpt + nai.ckpt + sfw.ckpt, 0.3, fp16
O = __O1__ + gape60.ckpt + __SD15__, 1.0
final = __O2__ + 柚子.safetensors, 0.5, sigmoid, safetensors
"""


def test_merge_board(tmp_path: Path) -> None:
    recipe, losses = imported(tmp_path, "board.txt", BOARD)
    assert expressions(recipe) == {
        "O1": "Anything_V3_0 + (nai - sfw) * 0.3",
        "O2": "O1 + (gape60 - v1_5_pruned) * 1",
        "final.safetensors": "weighted_sum(O2, 柚子, 0.5)",
    }
    assert recipe.steps["O1"].round is DType.F16
    assert recipe.options.policy == "a1111"
    assert len(losses) == 1
    assert "Sigmoid" in losses[0]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("O = a.ckpt + b.ckpt, half\n", "a merge is O = A"),
        ("O = a.ckpt + b.ckpt + c.ckpt + d.ckpt, 0.5\n", "a merge is O = A"),
        ("O = a.ckpt + b.ckpt, 0.5\nthis is prose\n", "this is no merge"),
        ("O = a.ckpt + b.ckpt, 0.5\nO = __O1__ + __O3__, 0.5\n", "__O3__ is made by no earlier line"),
    ],
)
def test_a_line_that_is_no_merge(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(RecipeError, match=why):
        imported(tmp_path, "board.txt", text)


def test_a_board_without_spaces(tmp_path: Path) -> None:
    recipe, _ = imported(tmp_path, "board.txt", "O=a+b.ckpt+c.ckpt,0.3\nmix=__O1__+d.safetensors+c.ckpt,1\n")
    assert recipe.sources["a_b"].path == "a+b.ckpt"
    assert expressions(recipe) == {"O1": "weighted_sum(a_b, c, 0.3)", "mix.safetensors": "O1 + (d - c) * 1"}


MECHA = """\
version 0.1.0
model "models/a file.safetensors" model_config="sd1-ldm" merge_space="weight"
model "b.safetensors" model_config="sd1-ldm" merge_space="weight"
model "c.safetensors" model_config="sd1-ldm" merge_space="weight"
merge "subtract" &1 &2
dict key=0.5
literal &4 model_config="singleton-mecha" merge_space="param"
merge "convert_singleton" &5
merge "add_difference" &0 &3 alpha=&6
merge "fallback" &7 &0
"""


def test_mecha(tmp_path: Path) -> None:
    recipe, losses = imported(tmp_path, "mix.mecha", MECHA)
    (expression,) = expressions(recipe).values()
    assert expression == "(a_file + (b - c) * 0.5)"
    assert recipe.sources["a_file"].path == "models/a file.safetensors"
    assert any("first model" in loss for loss in losses)


def test_mecha_block_weights(tmp_path: Path) -> None:
    text = """version 0.1.0
model "a.safetensors" model_config="sd1-ldm" merge_space="weight"
model "b.safetensors" model_config="sd1-ldm" merge_space="weight"
dict BASE=0.1 IN00=0.2 OUT11=1.0
literal &2 model_config="sd1-supermerger_blocks" merge_space="param"
merge "convert_blocks" &3
dict key=0.5
literal &5 model_config="singleton-mecha" merge_space="param"
merge "fallback" &4 &6
merge "weighted_sum" &0 &1 alpha=&7
"""
    recipe, _ = imported(tmp_path, "mix.mecha", text)
    assert expressions(recipe) == {"mix.safetensors": "weighted_sum(a, b, blocks)"}
    (param,) = recipe.params.values()
    assert param.default is not None
    assert param.default.text == "0.5"
    assert {entry.selector: entry.numbers[0].text for entry in param.profile} == {
        "BASE": "0.1",
        "IN00": "0.2",
        "OUT11": "1",
    }


@pytest.mark.parametrize(
    "lines",
    [
        'merge "pick_component" &1 "vae"\nmerge "fallback" &2 &0',
        'merge "omit_component" &0 "vae"\nmerge "fallback" &2 &1',
        'merge "omit_component" &0 "vae"\nmerge "pick_component" &1 "vae"\nmerge "fallback" &2 &3',
        (
            'dict key="vae"\nliteral &2 model_config="singleton-mecha" merge_space="param"\n'
            'merge "convert_singleton" &3\nmerge "pick_component" &1 &4\nmerge "fallback" &5 &0'
        ),
    ],
)
def test_mecha_components(tmp_path: Path, lines: str) -> None:
    models = "".join(f'model "{x}" model_config="x" merge_space="weight"\n' for x in "ab")
    recipe, _ = imported(tmp_path, "mix.mecha", f"version 0.1.0\n{models}{lines}\n")
    assert expressions(recipe) == {"replaced": "a", "mix.safetensors": "replaced"}
    assert {part: donor.text for part, donor in recipe.steps["replaced"].replace.items()} == {"vae": "b"}


@pytest.mark.parametrize(("vote", "elect"), [("true", "sum"), ("1.0", "sum"), ("false", "count"), ("0.0", "count")])
def test_mecha_truth_is_a_literal(tmp_path: Path, vote: str, elect: str) -> None:
    """As sd-mecha 1.1.8 writes it."""
    text = f"""version 0.1.0
model "a" model_config="x" merge_space="weight"
model "b" model_config="x" merge_space="weight"
merge "subtract" &1 &0
dict key={vote}
literal &3 model_config="singleton-mecha" merge_space="param"
merge "convert_singleton" &4
merge "ties_sum" &2 vote_sgn=&5
merge "add_difference" &0 &6
"""
    recipe, _ = imported(tmp_path, "mix.mecha", text)
    assert expressions(recipe) == {"mix.safetensors": f"(a + sum_sign([(b - a)], elect={elect}) * 1)"}


def test_mecha_shared_nodes_are_steps_and_ties_elect_by_count(tmp_path: Path) -> None:
    text = """version 0.1.0
model "a" model_config="x" merge_space="weight"
model "b" model_config="x" merge_space="weight"
merge "subtract" &1 &0
merge "ties_sum" &2 &2 k=0.2
merge "add_difference" &0 &3
"""
    recipe, _ = imported(tmp_path, "mix.mecha", text)
    assert expressions(recipe) == {
        "n2": "b - a",
        "mix.safetensors": "(a + sum_sign([ties_trim(n2, 0.2), ties_trim(n2, 0.2)], elect=count) * 1)",
    }


@pytest.mark.parametrize(
    ("lines", "expression"),
    [
        ('merge "fallback" &0 &1', "fallback(a, b)"),
        ('merge "fallback" &0 &1\nmerge "fallback" &2 &1', "fallback(a, b, b)"),
        ('merge "fallback" &0 &1\nmerge "fallback" &1 &2', "fallback(b, a, b)"),
        ('merge "weighted_sum" &0 &1 alpha=0.3\nmerge "fallback" &2 &1', "fallback(weighted_sum(a, b, 0.3), b)"),
        ('merge "weighted_sum" &0 &1 alpha=0.3\nmerge "fallback" &2 &0', "weighted_sum(a, b, 0.3)"),
        ('merge "subtract" &0 &1\nmerge "fallback" &2 &2\nmerge "add_difference" &1 &3', "b + n2 * 1"),
    ],
)
def test_mecha_fallback(tmp_path: Path, lines: str, expression: str) -> None:
    """A model that the result has its tensors of already fills in nothing."""
    models = "".join(f'model "{x}" model_config="x" merge_space="weight"\n' for x in "ab")
    recipe, losses = imported(tmp_path, "mix.mecha", f"version 0.1.0\n{models}{lines}\n")
    assert expressions(recipe)["mix.safetensors"] == expression
    assert any("where a model of a sum lacks" in loss for loss in losses) == ("weighted_sum" in lines)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("version 0.2.0\n", "version 0.1.0 is known"),
        ("version 0.1.0\n", "makes no model"),
        ('version 0.1.0\nmodel "a"\nmerge "rebasin" &0 &0\n', "rebasin has no counterpart"),
        ('version 0.1.0\nmodel "a"\nmerge "weighted_sum" &0\n', "lacks an argument"),
        ('version 0.1.0\nmodel "a"\nmerge "weighted_sum" &0 &9\n', "is no earlier line"),
        ('version 0.1.0\nmodel "a\n', "damaged"),
        ("version 0.1.0\nlaunch x\n", "no command"),
        ('version 0.1.0\nmerge "cast"\n', "cast lacks an argument"),
        ('version 0.1.0\nmodel "a"\nmerge "pick_component" &0 "vae"\n', "makes no model"),
        ('version 0.1.0\nmodel "a"\nmerge "pick_component" &0 "vae"\nmerge "slerp" &0 &1\n', "slerp of a part"),
        (
            (
                'version 0.1.0\nmodel "a"\nmerge "pick_component" &0 "vae"\nmerge "omit_component" &0 "unet"\n'
                'merge "fallback" &1 &2\n'
            ),
            "all but unet",
        ),
        ('version 0.1.0\nmodel "a"\nmerge "fallback" &0\n', "fallback takes two values"),
        ('version 0.1.0\nmodel "a"\nmerge "fallback" &0 0.5\n', "not a model and a number"),
    ],
)
def test_damaged_mecha(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(RecipeError, match=why):
        imported(tmp_path, "mix.mecha", text)


LIST = "1,0.9,0.7,0.5,0.3,0.1,0,0,0,0,0,0,0,0,0,0,0,0,0,0.1,0.3,0.5,0.7,0.9,1"


def supermerger(**more: object) -> str:
    own = {"type": "sd-webui-supermerger", "model_a": "aa" * 32, "model_b": "bb" * 32, "model_c": "cc" * 32,
           "mode": "Weight sum", "mbw": False, "base_alpha": 0.35, "base_beta": 0.25, "weights_alpha": LIST,
           "weights_beta": LIST, "calcmode": "normal", "elemental_merge": ""}  # fmt: skip
    names = {"aa" * 32: "one", "bb" * 32: "two", "cc" * 32: "three.ckpt"}
    models = {sha: {"name": name, "legacy_hash": "0"} for sha, name in names.items()}
    return json.dumps({"sd_merge_recipe": json.dumps({**own, **more}), "sd_merge_models": json.dumps(models)})


@pytest.mark.parametrize(
    ("given", "expression"),
    [
        ({}, "weighted_sum(one, two, 0.35)"),
        ({"mbw": True}, "weighted_sum(one, two, alpha)"),
        ({"mode": "Add difference"}, "one + (two - three) * 0.35"),
        ({"mode": "Triple sum"}, "triple_sum(one, two, three, 0.35, 0.25)"),
        ({"mode": "sum Twice", "mbw": True}, "sum_twice(one, two, three, alpha, beta)"),
        ({"mode": "Add difference", "calcmode": "trainDifference"}, "train_difference(one, two, three, 0.35)"),
        ({"calcmode": "tensor"}, "tensor_sum(one, two, 0.35, 0.25)"),
        ({"calcmode": "cosineA"}, "add_cosine_a(one, two, 0.35)"),
        ({"mode": "Add difference", "calcmode": "smoothAdd"}, "smooth_add(one, two, three, 0.35)"),
        ({"mode": "Add difference", "calcmode": "extract"}, "extract(one, two, three, 0.35, 0.25)"),
    ],
)
def test_supermerger(tmp_path: Path, given: dict[str, object], expression: str) -> None:
    recipe, losses = imported(tmp_path, "mix.json", supermerger(**given))
    assert list(expressions(recipe).values()) == [expression]
    assert recipe.sources["one"].sha256 == "aa" * 32
    assert recipe.sources["three"].path == "three.ckpt"
    assert any("float32" in loss for loss in losses)
    if given.get("mbw"):
        listed = recipe.params["alpha"].listed
        assert listed is not None
        assert listed.mbw == LIST


def test_supermerger_says_what_it_leaves_out(tmp_path: Path) -> None:
    _, losses = imported(tmp_path, "mix.json", supermerger(elemental_merge="OUT05::0.5", Exclude=["VAE"]))
    assert any("OUT05::0.5" in loss for loss in losses)
    assert any("VAE" in loss and "Exclude" in loss for loss in losses)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"mode": "Mystery"}, "mode Mystery"),
        ({"calcmode": "self"}, "calculation mode self"),
        ({"base_alpha": None}, "alpha"),
    ],
)
def test_supermerger_refused(tmp_path: Path, given: dict[str, object], why: str) -> None:
    with pytest.raises(RecipeError, match=why):
        imported(tmp_path, "mix.json", supermerger(**given))


HISTORY = f'''ID,Time,Name,Weights alpha,Weights beta,Model A,Model B,Model C,alpha,beta,Mode,use MBW,plus lora,custom name,save settings,use ID
1,now,first,"0.5","",any.ckpt [0123456789],nai [925997e9],sfw,0.3,0,Add difference,False,,night,"fp16, safetensors",
2,now,second,"{LIST}","",night,gape,,0.1,0,Weight sum,True,,,,
3,now,bad,,,a,b,,0.5,0,Mystery,False,,,,
'''  # noqa: E501


def test_history(tmp_path: Path) -> None:
    recipe, losses = imported(tmp_path, "mergehistory.csv", HISTORY)
    assert expressions(recipe) == {
        "night": "any + (nai - sfw) * 0.3",
        "second": "weighted_sum(night, gape, alpha)",
        "night.safetensors": "night",
        "second.safetensors": "second",
    }
    assert recipe.sources["nai"].hash == "925997e9"
    assert recipe.outputs["night.safetensors"].dtype is not None
    assert any("row 3" in loss for loss in losses)
    one, _ = imported(tmp_path, "mergehistory.csv", HISTORY, row=2)
    assert list(one.outputs) == ["second.safetensors"]
    with pytest.raises(RecipeError, match="no merge with the ID 9"):
        imported(tmp_path, "mergehistory.csv", HISTORY, row=9)


HEAD = HISTORY.partition("\n")[0] + ",adjust\n"
ROW = '1,now,mix,"{weights}","{weights}",a,b,c,0.1,0.2,{mode},{mbw},{lora},,,,{adjust}\n'
PLAIN = {"weights": "", "mode": "Weight sum", "mbw": "False", "lora": "", "adjust": ""}


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"mode": "Mystery"}, "mode Mystery"),
        ({"mbw": "True", "weights": "R,R,0.5"}, "are not numbers"),
        ({"mbw": "True", "weights": "0.1,0.2"}, "2 block weights"),
        ({"mbw": "True"}, "does not say their alpha"),
    ],
)
def test_a_history_without_a_merge_says_why(tmp_path: Path, given: dict[str, str], why: str) -> None:
    with pytest.raises(RecipeError, match=why) as caught:
        imported(tmp_path, "mergehistory.csv", HEAD + ROW.format_map(PLAIN | given))
    assert "mergehistory.csv:2" in str(caught.value)


def test_what_a_row_of_a_history_has_besides(tmp_path: Path) -> None:
    row = ROW.format_map(PLAIN | {"lora": "flat:0.5", "adjust": "0 0 1"})
    _, losses = imported(tmp_path, "mergehistory.csv", HEAD + row)
    assert any("a LoRA is not imported: flat:0.5" in loss for loss in losses)
    assert any("an adjustment is not imported: 0 0 1" in loss for loss in losses)


def test_block_weights_of_three_models_plan(tmp_path: Path) -> None:
    """Where A's share is 0 in a block, A is still the model that the rest is taken from."""
    weights = ",".join(["0.5"] * 25)
    text = HEAD + ROW.format_map(PLAIN | {"mode": "Triple sum", "mbw": "True", "weights": weights})
    (tmp_path / "mergehistory.csv").write_text(text)
    for name in "abc":
        write_model(tmp_path / f"{name}.safetensors", SD1_BLOCKS, name)
    found = loads(read(tmp_path / "mergehistory.csv").text, folder=tmp_path)
    with mergeflow.Project(found, Settings(output_root=tmp_path, memo=tmp_path / "memo")) as project:
        (output,) = project.plan().outputs
    assert {work.name for work in output.works} == set(SD1_BLOCKS)


MERGEKIT = """\
merge_method: ties
base_model: org/base
models:
  - model: org/one@main
    parameters: { weight: 0.5, density: [0.2, 0.8] }
  - model: { model: { path: org/two, revision: abc } }
    parameters: { weight: [ { filter: self_attn, value: 0.3 }, { value: 1 } ], density: 0.4 }
parameters: { normalize: false, int8_mask: true, wieght: 3 }
tokenizer_source: base
dtype: bfloat16
colour: red
"""


def test_mergekit(tmp_path: Path) -> None:
    recipe, losses = imported(tmp_path, "mix.yml", MERGEKIT)
    (expression,) = expressions(recipe).values()
    assert expression == (
        "base + sum_sign([ties_trim(one - base, density_one) @ 0.5, ties_trim(two - base, 0.4) @ weight_two], "
        "elect=sum, normalize=false)"
    )
    density = recipe.params["density_one"]
    assert [(entry.selector, [n.text for n in entry.numbers]) for entry in density.profile] == [
        ("layers", ["0.2", "0.8"])
    ]
    text = "\n".join(losses)
    for words in ("colour: had no effect", "wieght: had no effect", "revision main", "revision abc", "config.json",
                  "org/one is taken as a folder", "tokenizer"):  # fmt: skip
        assert words in text


def test_mergekit_slices_of_the_same_layers(tmp_path: Path) -> None:
    text = (
        "slices:\n- sources:\n  - { model: a, layer_range: [0, 32] }\n  - { model: b, layer_range: [0, 32] }\n"
        "merge_method: slerp\nbase_model: a\nparameters:\n  t:\n  - { filter: self_attn, value: [0, 0.5, 1] }\n"
        "  - value: 0.5\n"
    )
    recipe, losses = imported(tmp_path, "mix.yml", text)
    assert expressions(recipe) == {"mix.safetensors": "slerp(a, b, t, lerp_above=0.9995)"}
    assert recipe.params["t"].default is not None
    assert any("layer_range [0, 32]" in loss for loss in losses)


LINEAR = "merge_method: linear\nmodels: [{ model: a.ckpt, parameters: { weight: 1 } }"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("merge_method: linaer\nmodels: [{ model: a }]", "linaer"),
        (f"{LINEAR}]\ntokenizer_source: union", "union of tokenizers"),
        (f"{LINEAR}]\ntokenizer: {{ source: base, tokens: {{ x: 1 }} }}", "rows of embeddings"),
        (f"{LINEAR}, {{ model: a.ckpt, parameters: {{ weight: 1 }} }}]", "listed twice"),
        (f"{LINEAR}]\nmodules: {{ x: 1 }}", "several modules"),
        (f"{LINEAR}]\ndtype: fp16", "fp16"),
        ("merge_method: linear\nmodels: [{ model: a.ckpt }]", "needs weight"),
        ("merge_method: ties\nmodels: [{ model: a, parameters: { weight: 1 } }]", "needs base_model"),
        ("merge_method: linear\nmodels: [{ model: a+lora, parameters: { weight: 1 } }]", "LoRA"),
        ("merge_method: passthrough\nslices:\n- sources: [{ model: a, layer_range: [0, 24] }]\n- sources: [{ model: b, layer_range: [8, 32] }]", "stack layers"),  # noqa: E501
        ("genome: { models: [a] }", "mergekit-evolve"),
        ("base_model: a\nexperts: [{ source_model: b }]", "mixture of experts"),
        (f"name: x\n{LINEAR}]\n---\nname: x\n{LINEAR}]", "one name"),
        ("name: x\nmerge_method: linear\nmodels: [{ model: y }]\n---\nname: y\nmerge_method: linear\nmodels: [{ model: x }]", "circle"),  # noqa: E501
        (f"{LINEAR}", "mix.yml"),
    ],
)  # fmt: skip
def test_mergekit_refused(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(RecipeError) as caught:
        imported(tmp_path, "mix.yml", text)
    assert why in str(caught.value)
    assert "mix.yml" in str(caught.value.place)


def test_other_files_are_told_what_is_known(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="nothing here is a recipe"):
        imported(tmp_path, "notes.txt", "Dear diary\n")
    with pytest.raises(RecipeError, match="is a recipe of mergeflow already"):
        imported(tmp_path, "mix.yaml", "mergeflow: 1\noutputs: {}\n")
    with pytest.raises(MissingInput, match="there is no file"):
        read(tmp_path / "nowhere")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses on stderr, the recipe on stdout or in a file, whose sources are found from its folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MERGEFLOW_MEMO", str(tmp_path / "memo"))
    for seed, name in enumerate("ab"):
        (tmp_path / "models").mkdir(exist_ok=True)
        save_file({"x": np.full(4, seed, np.float32)}, tmp_path / "models" / f"{name}.safetensors")
    Path("linear.yml").write_text(
        "merge_method: linear\nmodels:\n- { model: models/a.safetensors, parameters: { weight: 1 } }\n"
        "- { model: models/b.safetensors, parameters: { weight: 3 } }\n"
    )
    shown = CliRunner().invoke(cli, ["import", "linear.yml"])
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.startswith("# From mergekit's configuration linear.")
    assert shown.stderr.startswith("not as there: ")
    Path("recipes").mkdir()
    assert CliRunner().invoke(cli, ["import", "linear.yml", "-o", "recipes/linear.yaml"]).exit_code == 0
    assert CliRunner().invoke(cli, ["import", "linear.yml", "-o", "recipes/linear.yaml"]).exit_code == 2
    assert "../models/a.safetensors" in Path("recipes/linear.yaml").read_text()
    built = CliRunner().invoke(cli, ["build", "recipes/linear.yaml"])
    assert built.exit_code == 0, built.output
    exported = CliRunner().invoke(cli, ["export", "recipes/linear.yaml", "--to", "mergekit", "-o", "again.yml"])
    assert exported.exit_code == 0, exported.output
    assert "weight: 3" in Path("again.yml").read_text()
    both = json.loads(CliRunner().invoke(cli, ["import", "linear.yml", "--json"]).stdout)
    assert both["schema"] == "mergeflow/import/1"
    assert both["recipe"] == shown.stdout


def test_options_are_for_the_files_that_they_mean_something_for(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--faithful is for configurations of mergekit"):
        imported(tmp_path, "board.txt", BOARD, faithful=True)
    with pytest.raises(RecipeError, match="--id is for the rows"):
        imported(tmp_path, "mix.yml", f"{LINEAR}]", row=3)
    with pytest.raises(RecipeError, match="has to know the dtype"):
        imported(tmp_path, "mix.yml", f"{LINEAR}]", faithful=True)


def test_a_configuration_in_json(tmp_path: Path) -> None:
    config = {"merge_method": "passthrough", "models": [{"model": "a.ckpt", "parameters": {"scale": 0.5}}]}
    recipe, _ = imported(tmp_path, "mix.json", json.dumps(config))
    assert expressions(recipe) == {"mix.safetensors": "scale(a, 0.5)"}


def test_what_mergeflow_told_the_webui(tmp_path: Path) -> None:
    """A sum of any number of models, as `metadata_for: a1111` writes it, among the ancestors of a webui's merge."""
    ours = {"type": "mergeflow", "primary_model_hash": "bb" * 32, "interp_method": None, "multiplier": None,
            "terms": [["1", "bb" * 32], ["1/3", "cc" * 32], ["-1/3", "b3:" + "dd" * 32]]}  # fmt: skip
    own = {"type": "webui", "primary_model_hash": "aa" * 32, "secondary_model_hash": "ee" * 32,
           "interp_method": "Weighted sum", "multiplier": 0.5}  # fmt: skip
    models = {"aa" * 32: {"name": "mid", "sd_merge_recipe": ours}, "ee" * 32: {"name": "x.safetensors"}}
    recipe, losses = imported(tmp_path, "mix.json", json.dumps({"sd_merge_recipe": own, "sd_merge_models": models}))
    assert expressions(recipe) == {
        "mid": "1*model_bbbbbbbbbb + (1/3)*model_cccccccccc + (-1/3)*model_dddddddddd",
        "mix.safetensors": "weighted_sum(mid, x, 0.5)",
    }
    assert recipe.options.policy == "exact"
    assert any("exact" in loss for loss in losses)
