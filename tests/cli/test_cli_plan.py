"""plan, explain and graph: what they show is what was decided."""

from __future__ import annotations

from pathlib import Path

import pytest
from blake3 import blake3
from cli_models import folder_with_recipe
from support import tiny_models
from support.commands import lines, run, run_json

from mergeflow.plan.outlook import Accelerator
from mergeflow.plan.place import PLAIN
from mergeflow.tensors import human_bytes


def test_plan_shows_forms_counts_bytes_and_placement(folder: Path) -> None:
    shown = lines(run("plan").stdout)
    assert "lewd = 1·a + 0.3·b − 0.3·c" in shown
    assert "half = 1·a + 0.3·b − 0.3·c, rounded to float16" in shown
    assert "used by none of these outputs: same" in shown
    assert "build out/lewd.safetensors: it is not there" in shown
    assert "= 0.5·a + 0.5·half" in shown
    assert "4 tensors as in a: 3 computed, 1 copied" in shown
    assert any(line.startswith("on cpu, tile: 1 worker, tiles of 128 Ki elements, at most ") for line in shown)
    assert not Path("out").exists()


def test_params_that_nothing_uses_are_told_once(folder: Path) -> None:
    text = (folder / "recipe.yaml").read_text(encoding="utf-8")
    text = text.replace("params: { m: 0.3 }", "params: { m: 0.3, spare: { default: 1, IN00: 0.5 }, n: m }")
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    assert lines(run("plan").stdout).count("used by no output: spare, n") == 1
    assert run_json("plan")["unused_params"] == ["spare", "n"]
    assert "spare" not in run("build").stderr


def test_a_file_that_a_build_would_refuse_to_replace(folder: Path) -> None:
    run("build", "recipe.yaml", "lewd.safetensors")
    Path("out/lewd.safetensors").write_bytes(Path("a.safetensors").read_bytes())
    assert "only --force overwrites it" in run("plan", "recipe.yaml", "lewd.safetensors").stdout
    assert "--force overwrites it" in run("build", "recipe.yaml", "lewd.safetensors", exit_code=2).stderr


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


WHERE = {"device": str, "strategy": str, "tile": int, "peak": int, "vram": int, "seconds": float, "bound": str}


def test_every_kernel_says_where_it_runs_and_in_how_much_memory(folder: Path) -> None:
    """Programs of one pass: sums, a kernel that measures first, copies; and one over whole tensors, whose result is
    put into the store and read from there."""
    text = (folder / "recipe.yaml").read_text(encoding="utf-8").split("outputs:")[0]
    outputs = "{ sum.safetensors: a + (b - c) * 0.3, slerp.safetensors: 'slerp(a, b, 0.3)', "
    outputs += "order.safetensors: 'top_k_tensor_sum(a, b, 0.5)' }"
    (folder / "recipe.yaml").write_text(f"{text}outputs: {outputs}\n", encoding="utf-8")
    found = run_json("plan", "--memory", "2GB", "-j", "2")
    (made,), (stored,) = found["passes"], found["store"]["makes"]
    shown = lines(run("plan", "--memory", "2GB", "-j", "2").stdout)
    kernels = made["placement"]["kernels"]
    assert {k["kernel"]: k["strategy"] for k in kernels} == {
        "sum of 3 float16 to float16": "tile",
        "float32 to float16": "tile",
        "slerp": "two-phase",
        "copy": "tile",
    }
    (order,) = stored["placement"]["kernels"]
    assert (order["kernel"], order["strategy"]) == ("top_k_tensor_sum", "tensor")
    for where in (made["placement"], stored["placement"]):
        for one in (where, *where["kernels"]):
            assert {name: type(one[name]) for name in WHERE} == WHERE
            assert (one["device"], one["vram"]) == ("cpu", 0)
            assert one["seconds"] > 0
            assert one["bound"].split()[0] in ("reading", "writing", "computing")
            assert PLAIN < one["peak"] <= where["peak"] <= 2 * 10**9
        for k in where["kernels"] if where is made["placement"] else ():
            how = f"cpu, {k['strategy']}, tiles of {k['tile'] // 1024:,} Ki, {human_bytes(k['peak'])} of memory, "
            lines_of = [line for line in shown if line.startswith(f"- {k['kernel']} (") and how in line]
            assert [line for line in lines_of if line.endswith(f", bound by {k['bound']}")]
    assert any(line.startswith("on cpu, tensor: 2 workers, ") for line in shown)  # of one alone there is one line
    assert kernels[-1]["peak"] == min(k["peak"] for k in kernels)


def test_every_kernel_on_a_card(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = Accelerator("cuda", ("A", "A"), (8 * 10**9,) * 2, (8 * 10**9,) * 2, host=10**8, context=10**8)
    monkeypatch.setattr("mergeflow.build.speeds.look", lambda device: (card,))
    asked = ("plan", "lewd.safetensors", "--device", "cuda", "--memory", "2GB", "-j", "2")
    (made,) = run_json(*asked)["passes"]
    where, (kernel, copy) = made["placement"], made["placement"]["kernels"]
    assert (where["device"], where["strategy"], where["devices"]) == ("cuda", "streamed", 2)
    assert (kernel["device"], kernel["strategy"], kernel["tile"]) == ("cuda", "streamed", where["tile"])
    assert 10**8 < kernel["vram"] <= where["vram"] <= 8 * 10**9
    assert PLAIN + 10**8 < kernel["peak"] <= where["peak"] <= 2 * 10**9
    assert (copy["device"], copy["strategy"], copy["vram"]) == ("cpu", "tile", 0)
    shown = lines(run(*asked).stdout)
    assert any(line.startswith("on cuda (2 of them), streamed: 2 workers, tiles of ") for line in shown)
    assert any(f" and {human_bytes(kernel['vram'])} of each device's, " in line for line in shown)


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
