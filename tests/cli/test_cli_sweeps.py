"""Recipes with sweeps on the command line: shown, chosen, built once, cleaned."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from cli_models import folder_with_recipe
from support.commands import lines, run, run_json

RECIPE = """\
mergeflow: 1
sources: { a: a.safetensors, b: b.safetensors, c: c.safetensors }
params:
  s: { sweep: { from: 0.25, to: 0.75, by: 0.25 } }
  x: { sweep: { full: b, part: half } }
  rest: 1 - s
steps:
  half: a*0.5 + b*0.5
  lewd: a + (x - c) * s
outputs:
  out/mix-{s:.2f}.safetensors: a*rest + b*s
  out/{x}-{s}.safetensors: lewd
"""


@pytest.fixture
def swept(folder: Path) -> Path:
    return folder_with_recipe(folder, RECIPE)


def test_the_plan_shows_values_and_a_few_forms(swept: Path) -> None:
    shown = lines(run("plan").stdout)
    assert "s = 0.25, 0.5, 0.75" in shown
    assert "x = full (b), part (half)" in shown
    assert "lewd = 1·a + 0.25·b − 0.25·c (where s = 0.25, x = full)" in shown
    assert "= … for 2 more" in shown
    at = shown.index("build out/part-0.5.safetensors: it is not there")
    assert shown[at + 1 : at + 3] == ["where s = 0.5, x = part", "= 1.25·a + 0.25·b − 0.5·c"]
    assert sum("as in a" in line for line in shown) == 2, "the rest is told of the first of each series"
    assert "9 of 9 to build" in shown[-1]
    (together,) = (line for line in shown if line.startswith("in one pass with "))
    assert together.startswith("in one pass with out/mix-0.50.safetensors, out/mix-0.75.safetensors, ")


def test_long_series_are_cut_unless_all_is_asked_for(swept: Path) -> None:
    (swept / "recipe.yaml").write_text(RECIPE.replace("from: 0.25, to: 0.75, by: 0.25", "from: 1, to: 30, by: 1"))
    assert "… and 10 more of out/mix-{s:.2f}.safetensors (--all shows them)" in lines(run("plan").stdout)
    assert "(--all shows them)" not in run("plan", "--all").stdout


def test_a_pass_reads_what_its_outputs_share_once(swept: Path) -> None:
    plan = run_json("plan")
    (made,) = plan["passes"]
    assert made["outputs"] == [output["path"] for output in plan["outputs"]]
    assert made["bytes_read"] == sum(source["bytes"] for source in plan["sources"]) - 2 * 8  # b's and c's integers
    done = run_json("build")
    assert sum(output["bytes_read"] for output in done["outputs"]) == made["bytes_read"]
    assert done["bytes_saved"] == sum(output["bytes_read"] for output in plan["outputs"]) - made["bytes_read"]


def test_json_names_the_values(swept: Path) -> None:
    plan = run_json("plan", "part-0.5.safetensors")
    assert plan["sweeps"] == {"s": {"0.5": "0.5"}, "x": {"part": "half"}}
    (output,) = plan["outputs"]
    assert (output["template"], output["sweep"]) == ("out/{x}-{s}.safetensors", {"s": "0.5", "x": "part"})
    assert output["params"] == {"s": "0.5"}
    (first, *_) = run_json("plan", "--set", "s=0.3")["outputs"]
    assert (first["path"], first["params"]) == ("out/mix-0.30.safetensors", {"rest": "0.7", "s": "0.3"})


def test_graph_and_explain(swept: Path) -> None:
    graph = run("graph").stdout
    assert [line.split()[1] for line in lines(graph) if line.startswith("output")] == [
        "out/mix-{s:.2f}.safetensors",
        "out/{x}-{s}.safetensors",
    ]
    assert "lewd ← a, b, c, half" in " ".join(graph.split())
    explained = lines(run("explain", "out/{x}-{s}.safetensors").stdout)
    assert len(explained) == 12
    assert all(line.endswith("it is not there") for line in explained[::2])
    assert set(explained[1::2]) == {"computes 3 of 4 tensors, copies 1"}


def test_series_are_built_one_by_one_and_together(swept: Path) -> None:
    assert "built out/mix-0.50.safetensors" in run("build", "recipe.yaml", "out/mix-0.50.safetensors").stdout
    assert "built 2 outputs, 1 up to date" in run("build", "recipe.yaml", "out/mix-{s:.2f}.safetensors").stdout
    assert "built 6 outputs, 3 up to date" in run("build").stdout
    assert run("build").stdout == "all 9 outputs are up to date\n"
    (swept / "recipe.yaml").write_text(RECIPE.replace("part: half", "'': half"))
    changed = run("explain", "out/mix-{s:.2f}.safetensors").stdout
    assert changed.count("it is up to date") == 3
    assert "3 files" in run("clean", "mix-{s:.2f}.safetensors").stdout
    assert sorted(path.name for path in Path("out").glob("*.safetensors")) == sorted(
        f"{x}-{s}.safetensors" for x in ("full", "part") for s in ("0.25", "0.5", "0.75")
    )


def test_a_lock_holds_every_file_of_a_series(swept: Path) -> None:
    run("build")
    run("lock")
    lock = yaml.safe_load((swept / "recipe.lock").read_text(encoding="utf-8"))
    assert len(lock["outputs"]) == 9
    assert all(output["digest"] for output in lock["outputs"].values())
    assert "up to date" in run("build", "--locked").stdout
