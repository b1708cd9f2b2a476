"""The edit matrix: after each edit of a small SD1.5 merge exactly what it touches is computed, the bytes are
those of a build from nothing, and `explain` names what was edited."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from support import tiny_models
from support.checkpoints import numbers, read, related, weights, write
from support.commands import lines, run, run_json

from mergeflow.methods import combined, kernels, sparse

RECIPE = """\
mergeflow: 1
sources: { a: a.safetensors, b: b.safetensors, c: c.safetensors }
params: { m: 0.35, k: { default: 0.5, IN05: 0.4, vae: 0 }, d: 0.2 }
steps: { tied: "ties(c, [a, b], density=d)" }
outputs:
  mix.safetensors: a + (b - c) * k
  plain.safetensors: a + (b - c) * m
  tied.safetensors: tied
  trimmed.safetensors: c + ties_trim(a - c, density=0.2)
"""
NAMES = sorted(tiny_models.SD1_BLOCKS)
NETWORK = "model.diffusion_model."
BUFFERS = [name for name in NAMES if name.endswith(("position_ids", "alphas_cumprod"))]
IN05 = [name for name in NAMES if name.startswith(f"{NETWORK}input_blocks.5.")]
VAE = [name for name in NAMES if name.startswith("first_stage_model.")]
SUMMED = [name for name in NAMES if name not in BUFFERS]
ONE = next(name for name in NAMES if name.startswith(f"{NETWORK}middle_block."))


class Edit(NamedTuple):
    """What is replaced by what, the output that is looked at, the tensors that are computed for it (none: nothing is to
    be done) and the reason that `explain` gives."""

    old: str
    new: str
    output: str
    computed: list[str] | None
    reason: str


EDITS = {
    "comment": Edit("mergeflow: 1", "mergeflow: 1 # said", "mix", None, "it is up to date"),
    "key order": Edit(
        "a: a.safetensors, b: b.safetensors", "b: b.safetensors, a: a.safetensors", "mix", None, "it is up to date"
    ),
    "order of sections": Edit("params: {", "name: mine\nparams: {", "mix", None, "it is up to date"),
    "same sum": Edit("a + (b - c) * k", "(a - c * k) + b * k", "mix", None, "it is up to date"),
    "another output's number": Edit("m: 0.35", "m: 0.45", "mix", None, "it is up to date"),
    "coefficient": Edit("m: 0.35", "m: 0.45", "plain", SUMMED, "m changed: 0.35 → 0.45"),
    "number in an expression": Edit(
        "(b - c) * m", "(b - c) * m * 2", "plain", SUMMED,
        "the expression changed: 1·a + 0.35·b − 0.35·c → 1·a + 0.7·b − 0.7·c",
    ),
    "line of a profile": Edit("IN05: 0.4", "IN05: 0.7", "mix", IN05, "k.IN05 changed: 0.4 → 0.7"),
    "new line of a profile": Edit("IN05: 0.4", "IN05: 0.4, M00: 0.9", "mix", [ONE], "k.M00 changed: 0.5 → 0.9"),
    "line that stops a copy": Edit("vae: 0", "vae: 0.1", "mix", VAE, "k.vae changed: 0 → 0.1"),
    "dtype": Edit(
        "plain.safetensors: a + (b - c) * m", "plain.safetensors: { from: a + (b - c) * m, dtype: bfloat16 }",
        "plain", SUMMED, "the dtype changed: as the first model → bfloat16",
    ),
    "metadata": Edit(
        "plain.safetensors: a + (b - c) * m", "plain.safetensors: { from: a + (b - c) * m, metadata: { by: me } }",
        "plain", [], "its metadata changed",
    ),
    "argument by a param": Edit("d: 0.2", "d: 0.3", "tied", SUMMED, "d changed: 0.2 → 0.3"),
    "argument": Edit(
        "density=0.2", "density=0.4", "trimmed", SUMMED, "ties_trim.density changed: 0.2 → 0.4"
    ),
}  # fmt: skip


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where an output of RECIPE has been built; the current one."""
    monkeypatch.setenv("MERGEFLOW_MEMO", str(tmp_path / "memo"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    write_models(work)
    (work / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    time.sleep(0.03)  # what was written a moment ago is not remembered
    run("build", "recipe.yaml", "mix.safetensors")
    return work


def write_models(folder: Path) -> None:
    """Three models of which every tensor but the buffers differs."""
    rng = np.random.default_rng(11)
    base = {name: weights(rng, "F16", shape) for name, shape in tiny_models.SD1_BLOCKS.items()}
    ids = next(name for name in BUFFERS if name.endswith("position_ids"))
    for model in "abc":
        tensors = {name: tensor if name in BUFFERS else related(rng, tensor) for name, tensor in base.items()}
        write(folder / f"{model}.safetensors", {**tensors, ids: numbers("I64", range(77))})


def told(output: str, more: tuple[str, ...] = ("--tensors",)) -> dict[str, object]:
    """What `explain` says of an output, after checking that build does just that and makes the bytes that it should."""
    path = f"{output}.safetensors"
    (entry,) = run_json("explain", "recipe.yaml", path, *more)["outputs"]
    (made,) = run_json("build", "recipe.yaml", path)["outputs"]
    assert made["built"] == entry["build"]
    if made["built"]:
        assert made["reason"] == entry["reason"]
        work = entry["work"]
        counts = {"computed": work["computed"]["count"], "copied": work["copied"]}
        assert made["tensors"] == {**counts, "kept": sum(file["tensors"] for file in work["kept"])}
    here = sha256(Path(path))
    run("build", "recipe.yaml", path, "--force")
    assert sha256(Path(path)) == here
    return entry


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check(entry: dict[str, object], computed: list[str] | None, reason: str) -> None:
    assert entry["reason"] == reason
    assert entry["build"] == (computed is not None)
    if computed is not None:
        work = entry["work"]
        assert isinstance(work, dict)
        assert sorted(work["computed"]["names"]) == computed


@pytest.mark.parametrize("name", EDITS)
def test_edits_of_the_recipe(built: Path, name: str) -> None:
    edit = EDITS[name]
    text = RECIPE.replace(edit.old, edit.new)
    assert text != RECIPE
    run("build", "recipe.yaml", f"{edit.output}.safetensors")
    (built / "recipe.yaml").write_text(text, encoding="utf-8")
    check(told(edit.output), edit.computed, edit.reason)


def test_a_renamed_alias(built: Path) -> None:
    run("build")
    text = RECIPE.replace("sources: { a: a.saf", "sources: { 'x': a.saf").replace(": a + (", ": x + (")
    (built / "recipe.yaml").write_text(text.replace("[a, b]", "[x, b]").replace("m(a -", "m(x -"), encoding="utf-8")
    for output in ("mix", "plain", "tied"):
        check(told(output), None, "it is up to date")


def test_a_touched_file(built: Path) -> None:
    os.utime(built / "b.safetensors")
    check(told("mix"), None, "it is up to date")


def test_a_file_moved_and_moved_back(built: Path) -> None:
    data = (built / "b.safetensors").read_bytes()
    (built / "b.safetensors").unlink()
    (built / "b.safetensors").write_bytes(data)
    check(told("mix"), None, "it is up to date")


def with_tensors(path: Path, names: list[str]) -> None:
    """Another last element in these tensors."""
    model = read(path)
    for name in names:
        tensor = model[name]
        model[name] = tensor._replace(data=tensor.data[:-2] + b"\0\0")
    write(path, model)


@pytest.mark.parametrize(
    ("changed", "computed", "said"),
    [
        ([ONE], [ONE], ONE),
        ([ONE, *IN05], sorted([ONE, *IN05]), f"{1 + len(IN05)} tensors, such as "),
        (VAE[:1], [], "nothing that is used here"),  # k is 0 there
    ],
    ids=["one", "two blocks", "unused"],
)
def test_changed_tensors_of_a_source(built: Path, changed: list[str], computed: list[str], said: str) -> None:
    with_tensors(built / "b.safetensors", changed)
    entry = told("mix")
    reason = str(entry["reason"])
    assert reason.startswith("b is another file: b3:")
    assert f"…, which differs in {said}" in reason
    check(entry, computed, reason)


def test_two_causes_are_told_without_a_guess(built: Path) -> None:
    """A source and a number: which tensors are the source's doing is not known, and not said."""
    with_tensors(built / "b.safetensors", [ONE])
    (built / "recipe.yaml").write_text(RECIPE.replace("IN05: 0.4", "IN05: 0.7"), encoding="utf-8")
    entry = told("mix")
    reason = str(entry["reason"])
    assert reason.startswith("k.IN05 changed: 0.4 → 0.7; b is another file: b3:")
    assert "differs" not in reason
    check(entry, sorted([ONE, *IN05]), reason)


def test_the_version_of_a_method(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("build")  # not in the words of the build below: a stamp holds for one version of mergeflow and its methods
    edit_version("ties_trim", monkeypatch)
    check(told("tied"), SUMMED, "the method ties_trim changed: version 1 → version 2")
    check(told("mix"), None, "it is up to date")


def edit_version(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if mergeflow had come with another version of a kernel."""
    found = kernels.formula(name)
    newer = replace(found, kernel=replace(found.kernel, version=found.kernel.version + 1))
    monkeypatch.setitem(kernels._formulas, name, newer)
    for module in (sparse, combined):
        for attribute in [key for key, value in vars(module).items() if value is found]:
            monkeypatch.setattr(module, attribute, newer)


def edited(folder: Path, old: str, new: str) -> Callable[..., list[str]]:
    (folder / "recipe.yaml").write_text(RECIPE.replace(old, new), encoding="utf-8")
    return lambda *arguments: lines(run(*arguments).stdout)


def test_explain_lists_tensors_by_block_and_what_is_kept(built: Path) -> None:
    shown = edited(built, "IN05: 0.4", "IN05: 0.7, IN04: 0.1, IN06: 0.2, OUT01: 0")
    first, *rest = shown("explain", "recipe.yaml", "mix.safetensors")
    assert first.startswith(
        "build mix.safetensors k.IN05 changed: 0.4 → 0.7; k changed in 4 blocks, such as IN04: 0.5 → 0.1"
    )
    copied = len(BUFFERS) + len(VAE) + 1  # OUT01 is a copy now
    counted = f"computes 4 of {len(NAMES)} tensors, copies {copied}"
    assert rest[0] == f"{counted}; computed are IN04 2, IN05 1, IN06 1"
    assert rest[4] == "… and 1 more (--tensors lists them)"
    kept = len(SUMMED) - len(VAE) - 4 - 1
    assert rest[5].startswith(f"keeps {kept} (")
    assert rest[5].endswith(" of mix.safetensors")
    listed = shown("explain", "recipe.yaml", "mix.safetensors", "--tensors")
    assert [line for line in listed if line.startswith(NETWORK)] == [
        name for name in NAMES if any(f"input_blocks.{i}." in name for i in (4, 5, 6))
    ]


def test_explain_is_short_where_everything_is_made(built: Path) -> None:
    run("build", "recipe.yaml", "plain.safetensors")
    shown = edited(built, "m: 0.35", "m: 0.45")("explain", "recipe.yaml", "plain.safetensors")
    assert shown[1:] == [f"computes {len(SUMMED)} of {len(NAMES)} tensors, copies {len(BUFFERS)}"]


def test_plan_and_build_say_what_is_kept(built: Path) -> None:
    shown = edited(built, "IN05: 0.4", "IN05: 0.7")
    kept, copied = len(SUMMED) - len(VAE) - 1, len(BUFFERS) + len(VAE)
    planned = shown("plan", "recipe.yaml", "mix.safetensors")
    assert f"{len(NAMES)} tensors as in a: 1 computed, {copied} copied, {kept} kept" in planned
    assert any(line.startswith(f"keeps {kept} tensors (") for line in planned)
    (data,) = run_json("plan", "recipe.yaml", "mix.safetensors")["outputs"]
    assert data["tensors"] == {"computed": 1, "copied": copied, "kept": kept}
    (file,) = data["kept"]
    assert (file["file"], file["tensors"]) == (str(built / "mix.safetensors"), kept)
    nbytes = {name: len(tensor.data) for name, tensor in read(built / "a.safetensors").items()}
    summed = [name for name in SUMMED if name not in VAE + IN05]
    assert data["bytes_kept"] == sum(nbytes[name] for name in summed)
    assert data["bytes_read"] == 3 * nbytes[IN05[0]] + sum(nbytes[name] for name in BUFFERS + VAE)
    (line,) = shown("build", "recipe.yaml", "mix.safetensors")
    assert line.startswith(f"built mix.safetensors: computed 1 tensor, copied {copied}, kept {kept} (")
    assert " saved), " in line


def test_json_of_a_build_counts_what_was_saved(built: Path) -> None:
    shown = edited(built, "IN05: 0.4", "IN05: 0.7")
    done = run_json("build", "recipe.yaml", "mix.safetensors")
    nbytes = {name: len(tensor.data) for name, tensor in read(built / "a.safetensors").items()}
    summed = [name for name in SUMMED if name not in VAE + IN05]
    assert done["bytes_saved"] == 3 * sum(nbytes[name] for name in summed)
    assert done["outputs"][0]["bytes_kept"] == sum(nbytes[name] for name in summed)
    assert shown("build", "recipe.yaml", "mix.safetensors") == ["mix.safetensors is up to date"]
    assert run_json("build", "recipe.yaml", "mix.safetensors")["bytes_saved"] == 0
