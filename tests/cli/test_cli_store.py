"""What `plan` says of the store: what a build would put there, what not, by which numbers, and what it begins from."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
from support.checkpoints import related, weights, write
from support.commands import run, run_json

from mergeflow.build.storing import SIZE_VARIABLE, Shelf
from mergeflow.plan.cost import Rates

RECIPE = """\
mergeflow: 1
sources: { a: a.safetensors, b: b.safetensors, c: c.safetensors }
params: { m: 0.5 }
steps:
  tied: "ties(a, [b, c], density=0.2)"
  soup: { expr: a*0.5 + b*0.3 + c*0.2, keep: true }
outputs:
  mix.safetensors: a + (tied - a) * m
  plain.safetensors: soup
"""
SIGN = "sum_sign(elect=sum, normalize=true)"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(Shelf, "_rates", lambda self: Rates(4e9, 2e9))
    monkeypatch.setenv("MERGEFLOW_MEMO", str(tmp_path / "memo"))
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(6)
    base = {f"t{i}": weights(rng, "F16", (100_000,)) for i in range(3)}
    for name in "abc":
        write(tmp_path / f"{name}.safetensors", {n: related(rng, t) for n, t in base.items()})
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    time.sleep(0.03)
    return tmp_path


def store_lines() -> list[str]:
    """Those of the store, without how each result would be computed."""
    shown = run("plan", "recipe.yaml").stdout
    lines = shown.partition("\nstore\n")[2].partition("\n\n")[0].splitlines()
    return [line.strip() for line in lines if not line.startswith("   ")]


def test_what_is_stored_and_what_it_costs(folder: Path) -> None:
    kept, sign, disk = store_lines()
    assert re.fullmatch(r"stores soup: 1\.2 MB, keep: true", kept)
    told = re.fullmatch(rf"stores {re.escape(SIGN)}: 1\.2 MB, computing it takes (\d+) ms, keeping it 1 ms", sign)
    assert told
    assert int(told[1]) >= 2
    assert disk == "its disk reads 4.0 GB/s and writes 2.0 GB/s"
    data = run_json("plan", "recipe.yaml")["store"]
    first, second = data["makes"]
    assert (first["title"], first["tensors"], first["reason"]) == ("soup", 3, "keep: true")
    assert first["placement"]["device"] == second["placement"]["device"] == "cpu"
    assert (second["title"], second["tensors"]) == (SIGN, 3)
    assert second["keep_seconds"] == pytest.approx(1.2e6 / 2e9 + 1.2e6 / 4e9)
    assert second["compute_seconds"] > 1.5 * second["keep_seconds"]
    assert data["declines"] == []
    assert data["rates"] == {"read": 4_000_000_000, "write": 2_000_000_000}


def test_what_is_not_worth_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shelf, "_rates", lambda self: Rates(4e9, 1e7))
    kept, sign, _ = store_lines()
    assert kept.startswith("stores soup")
    assert sign.startswith(f"does not store {SIGN}: 1.2 MB, not worth it: computing it takes ")
    assert sign.endswith(", keeping it 0.1 s")


def test_what_has_no_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SIZE_VARIABLE, "0")
    assert store_lines()[:2] == [
        "does not store soup: 1.2 MB, there is no room for it in the store",
        f"does not store {SIGN}: 1.2 MB, there is no room for it in the store",
    ]
    assert [entry["title"] for entry in run_json("plan", "recipe.yaml")["store"]["declines"]] == ["soup", SIGN]


def test_what_is_there_is_begun_from(folder: Path) -> None:
    run("build")
    (folder / "recipe.yaml").write_text(RECIPE.replace("m: 0.5", "m: 0.25"), encoding="utf-8")
    assert store_lines() == []
    shown = run("plan", "recipe.yaml").stdout
    assert "3 tensors begin from what the store has" in shown
    data = run_json("plan", "recipe.yaml")
    assert [output["begun"] for output in data["outputs"]] == [3, 0]
    assert data["store"] == {"makes": [], "declines": [], "rates": {"read": 4_000_000_000, "write": 2_000_000_000}}
    objects = json.loads(run("cache", "ls", "--json").stdout)["objects"]
    assert sorted(o["title"] for o in objects) == ["soup", SIGN]
