"""plan, explain and graph: what they show is what was decided."""

from __future__ import annotations

from pathlib import Path

from blake3 import blake3
from cli_models import folder_with_recipe, run, run_json
from support import tiny_models


def lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_plan_shows_forms_counts_bytes_and_placement(folder: Path) -> None:
    shown = lines(run("plan").stdout)
    assert "lewd = 1·a + 0.3·b − 0.3·c" in shown
    assert "half = 1·a + 0.3·b − 0.3·c, rounded to float16" in shown
    assert "used by none of these outputs: same" in shown
    assert "build out/lewd.safetensors: it is not there" in shown
    assert "= 0.5·a + 0.5·half" in shown
    assert "4 tensors as in a: 3 computed, 1 copied" in shown
    assert any(line.startswith("on cpu: 1 worker, tiles of 128 Ki elements, at most ") for line in shown)
    assert not Path("out").exists()


def test_equal_steps_are_recognised(folder: Path) -> None:
    text = (folder / "recipe.yaml").read_text(encoding="utf-8").replace("a * 0.5\n", "same * 0.5\n")
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    assert "same is lewd" in lines(run("plan").stdout)


def test_profiles_are_shown_as_resolved_and_steps_for_each_value(folder: Path) -> None:
    text = "params: { m: { default: 0, 'layer.1.*': 0.5 } }"
    folder_with_recipe(folder, (folder / "recipe.yaml").read_text(encoding="utf-8").replace("params: { m: 0.3 }", text))
    shown = lines(run("plan").stdout)
    assert "m = 0.5 layer.1.* (1 tensor)" in shown
    assert "= 0 default (3 tensors)" in shown
    assert "lewd = 1·a (where m is 0)" in shown
    assert "= 1·a + 0.5·b − 0.5·c (where m is 0.5)" in shown


def test_replaced_components_are_shown_where_they_differ(folder: Path) -> None:
    text = "mergeflow: 1\narch: sd1\nsources: { a: a.safetensors, b: b.safetensors }\n"
    text += "steps: { fixed: { expr: a, replace: { vae: b } } }\noutputs: { o.safetensors: fixed }\n"
    from safetensors.numpy import load_file, save_file

    for name in "ab":
        tensors = load_file(f"{name}.safetensors")
        tensors["first_stage_model.x"] = tensors.pop("layer.0.weight")
        save_file(tensors, f"{name}.safetensors")
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    shown = lines(run("plan").stdout)
    assert "fixed = 1·a" in shown
    assert "= 1·b (in vae)" in shown


def test_long_plans_are_cut_unless_all_is_asked_for(folder: Path) -> None:
    steps = "\n".join(f"  s{i}: {f's{i - 1}' if i else 'a'} + (b - c) * {i + 1}" for i in range(60))
    text = f"mergeflow: 1\nsources: {{ a: a.safetensors, b: b.safetensors, c: c.safetensors }}\nsteps:\n{steps}\n"
    (folder / "recipe.yaml").write_text(text + "outputs: { o.safetensors: s59 }\n", encoding="utf-8")
    short, whole = run("plan").stdout, run("plan", "--all").stdout
    assert "… and 20 more (--all shows them)" in short
    assert "s59  = " in whole
    assert len(run_json("plan")["steps"]) == 40


def test_plan_json(folder: Path) -> None:
    plan = run_json("plan")
    assert plan["schema"] == "mergeflow/plan/1"
    assert plan["params"] == {"m": "0.3"}
    assert [s["name"] for s in plan["sources"]] == ["a", "b", "c"]
    output = plan["outputs"][0]
    assert output["tensors"] == {"computed": 3, "copied": 1}
    assert output["placement"]["device"] == "cpu"
    run("build")
    assert [o["build"] for o in run_json("plan")["outputs"]] == [False, False]


def test_explain_says_what_changed(folder: Path) -> None:
    assert "it is not there" in run("explain").stdout
    run("build")
    assert run("explain", "lewd.safetensors").stdout == "keep  out/lewd.safetensors  it is up to date\n"
    changed = run("explain", "recipe.yaml", "lewd.safetensors", "--set", "m=0.25").stdout
    assert changed.splitlines() == [
        "build  out/lewd.safetensors  m changed: 0.3 → 0.25",
        "       computes 3 of 4 tensors, copies 1",
    ]
    assert run_json("explain")["outputs"][0]["build"] is False


def test_keys_are_the_hashes_of_what_is_printed(folder: Path) -> None:
    for more in ((), ("--tensor", "layer.0.weight"), ("--tensor", "step")):
        result = run("explain", "half.safetensors", "--key", *more)
        key = blake3(result.stdout.encode()).hexdigest()
        assert result.stderr.strip().splitlines()[-1] == f"its key is k3:{key}"
    entry = run_json("explain", "half.safetensors", "--key")["outputs"][0]
    assert f"k3:{blake3(entry['preimage'].encode()).hexdigest()}" == entry["key"]


def test_explain_refuses_what_it_cannot_show(folder: Path) -> None:
    assert "name one of" in run("explain", "--key", exit_code=2).stderr
    assert "goes with --key" in run("explain", "--tensor", "x", exit_code=2).stderr
    wrong = run("explain", "half.safetensors", "--key", "--tensor", "layer.0.weigh", exit_code=2)
    assert "did you mean layer.0.weight" in wrong.stderr


def test_graph_in_all_formats(folder: Path) -> None:
    assert "step lewd ← a, b, c" in lines(run("graph").stdout)
    graph = run_json("graph")
    assert {"from": "half", "to": "out/half.safetensors"} in graph["edges"]
    assert run("graph", "--format", "json").stdout == run("graph", "--json").stdout
    assert '"half" -> "out/half.safetensors";' in run("graph", "--format", "dot").stdout
    assert run("graph", "--format", "mermaid").stdout.startswith("graph LR\n")


def test_graph_escapes_what_a_name_may_hold(folder: Path) -> None:
    text = (folder / "recipe.yaml").read_text(encoding="utf-8")
    name = 'l"e\\w;d#'
    text = text.replace("  lewd: a", f"  {name!r}: a".replace("\\\\", "\\")).replace("expr: lewd", "expr: a")
    text = text.replace(": lewd\n", f": \"'{name}'\"\n".replace('l"e\\', 'l\\"e\\\\'))
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    assert '"l\\"e\\\\w;d#" -> "out/lewd.safetensors";' in run("graph", "--format", "dot").stdout
    assert '("l#34;e\\w#59;d#35;")' in run("graph", "--format", "mermaid").stdout


def test_block_weights_are_a_table(folder: Path) -> None:
    for name in "ab":
        tiny_models.write_model(folder / f"{name}1.safetensors", tiny_models.SD1_BLOCKS, seed=name)
    (folder / "recipe.yaml").write_text(
        "mergeflow: 1\nsources: { a: a1.safetensors, b: b1.safetensors }\nparams:\n"
        "  k: { mbw: '1 1 1 1 1 1 0 0 0 0 0 0 0 0 0 0 0 0 0 1 1 1 1 1 1', BASE: 0, OUT11: 1/3, vae: 0.5 }\n"
        "outputs: { mix.safetensors: 'weighted_sum(a, b, k)' }\n"
    )
    shown = lines(run("plan").stdout)
    first = next(i for i, line in enumerate(shown) if line.startswith("k = 25 numbers mbw ("))
    assert shown[first].endswith(" = WRAP12")
    assert shown[first + 4 : first + 8] == [
        "BASE 0…0.5",
        "IN00-IN05 1 IN06-IN11 0",
        "M00 0",
        "OUT00-OUT05 0 OUT06-OUT10 1 OUT11 0.3333",
    ]
    profile = run_json("plan")["profiles"]["k"]
    assert profile["preset"] == "WRAP12"
    assert profile["blocks"]["OUT11"] == "1/3"
    assert [row["selector"] for row in profile["selectors"]] == ["mbw", "BASE", "OUT11", "vae"]
    assert "1/3" in run("plan", "--set", "k.M00=1/3").stdout
