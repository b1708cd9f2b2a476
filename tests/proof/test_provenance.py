"""The statement and the card beside an output, read by those they are written for; and that nothing private is in
them."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import platform
import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from proof_models import build, recipe, run, run_json, write_model

TOLD = ", sidecars: [sha256, provenance, card]"
MIX = Path("out/mix.safetensors")
STATEMENT, CARD = Path("out/mix.safetensors.provenance.json"), Path("out/mix.card.md")


def sha256(path: Path | str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def statement() -> dict[str, Any]:
    found = json.loads(STATEMENT.read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def test_the_statement_is_one_of_in_toto_and_slsa(folder: Path) -> None:
    """Read with the messages that their projects publish, which refuse fields that are not in the specifications."""
    pytest.importorskip("in_toto_attestation", reason="in-toto-attestation is not installed here")
    from google.protobuf.json_format import Parse, ParseDict
    from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
    from in_toto_attestation.v1 import statement_pb2
    from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
    from in_toto_attestation.v1.statement import Statement

    build(recipe(TOLD))
    read = Parse(STATEMENT.read_text(encoding="utf-8"), statement_pb2.Statement())
    Statement.copy_from_pb(read).validate()
    assert read.predicate_type == "https://slsa.dev/provenance/v1"
    predicate = ParseDict(statement()["predicate"], provenance_pb2.Provenance())
    assert predicate.build_definition.build_type
    assert predicate.run_details.builder.id
    for dependency in predicate.build_definition.resolved_dependencies:
        ResourceDescriptor.copy_from_pb(dependency).validate()


def test_what_the_statement_says(folder: Path) -> None:
    build(recipe(TOLD), "--set", "m=0.25")
    said = statement()
    assert said["subject"] == [{"name": "mix.safetensors", "digest": {"sha256": sha256(MIX)}}]
    how = said["predicate"]["buildDefinition"]
    assert how["externalParameters"]["overrides"] == ["m=0.25"]
    assert how["externalParameters"]["recipe"] == Path("recipe.yaml").read_text()
    sources = {d["name"]: d["digest"] for d in how["resolvedDependencies"]}
    assert {name: digest["sha256"] for name, digest in sources.items()} == {
        n: sha256(f"{n}.safetensors") for n in "abc"
    }
    hashes = run_json("hash", "a.safetensors")["files"][0]
    assert sources["a"]["mergeflow"] == hashes["model"].removeprefix("b3:")
    assert how["internalParameters"]["model"] == run_json("inspect", MIX)["digest"]


def test_statements_are_the_same_everywhere(folder: Path, tmp_path: Path) -> None:
    build(recipe(TOLD))
    before = [path.read_bytes() for path in (STATEMENT, CARD)]
    other = tmp_path / "elsewhere"
    other.mkdir()
    for name in "abc":
        shutil.copy(f"{name}.safetensors", other)
    os.chdir(other)
    build(recipe(TOLD))
    assert [path.read_bytes() for path in (STATEMENT, CARD)] == before


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="there is no sha256sum here")
def test_sums_are_those_that_sha256sum_checks(folder: Path) -> None:
    build(recipe(TOLD))
    done = subprocess.run(["sha256sum", "-c", "mix.safetensors.sha256"], cwd="out", capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "mix.safetensors: OK\n")


FROM_HUB = """\
mergeflow: 1
name: 'a mix | of "three"'
description: Made of three.
license: {license}
sources:
  a: {{ path: a.safetensors, url: 'hf:owner/model-a/a.safetensors@1234abc', license: mit }}
  b: {{ path: b.safetensors, url: 'hf:owner/model-b/b.safetensors' }}
  'c "x" `y`': c.safetensors
outputs:
  out/mix.safetensors: {{ from: a + (b - 'c "x" `y`') * 0.3, sidecars: card }}
"""


@pytest.mark.parametrize(("given", "known", "named"), [("MIT", "mit", None), ("my own", "other", "my own")])
def test_the_card_is_one_that_the_hub_reads(folder: Path, given: str, known: str, named: str | None) -> None:
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed here")
    from huggingface_hub import ModelCard

    build(FROM_HUB.format(license=given))
    card = ModelCard.load(CARD)
    data = card.data.to_dict()
    assert data["base_model"] == ["owner/model-a", "owner/model-b"]
    assert data["base_model_relation"] == "merge"
    assert data["tags"] == ["merge", "mergeflow"]
    assert (data["license"], data.get("license_name")) == (known, named)
    assert "[owner/model-a](https://huggingface.co/owner/model-a)" in card.text
    assert sha256(MIX) in card.text
    assert FROM_HUB.format(license=given).rstrip() in card.text
    inside = card.text.split("```mermaid\n")[1].split("```")[0]
    assert inside.count("-->") == 3
    assert "`" not in inside


def test_a_card_of_local_files_names_no_repositories(folder: Path) -> None:
    build(recipe(TOLD))
    facts = yaml.safe_load(CARD.read_text(encoding="utf-8").split("---\n")[1])
    assert facts == {"tags": ["merge", "mergeflow"]}


def test_they_are_renewed_and_kept_and_cleaned(folder: Path) -> None:
    build(recipe(TOLD))
    at = CARD.stat().st_mtime_ns, STATEMENT.stat().st_mtime_ns
    run("build")
    assert (CARD.stat().st_mtime_ns, STATEMENT.stat().st_mtime_ns) == at
    CARD.unlink()
    run("build")
    assert CARD.exists()
    assert STATEMENT.stat().st_mtime_ns == at[1]
    build("description: Other words.\n" + recipe(TOLD))
    assert "Other words." in CARD.read_text(encoding="utf-8")
    build(recipe(TOLD), "--set", "m=0.5")
    assert "m=0.5" in CARD.read_text(encoding="utf-8")
    shutil.rmtree("cache")
    run("build")
    run("clean")
    assert list(Path("out").iterdir()) == []


@pytest.mark.parametrize("path", [CARD, STATEMENT])
def test_what_somebody_else_wrote_is_left_alone(folder: Path, path: Path) -> None:
    path.parent.mkdir()
    path.write_text("{}")
    Path("recipe.yaml").write_text(recipe(TOLD))
    said = run("build", exit_code=2).stderr
    assert f"{path.name}, which is part of out/mix.safetensors, exists" in said
    build(recipe(TOLD), "--force")
    if path == CARD:
        path.write_text(path.read_text() + "and my own words\n")
        Path("recipe.yaml").write_text(recipe(TOLD).replace("0.3", "0.4"))
        assert "exists" in run("build", exit_code=2).stderr


def test_private_things_are_in_nothing_that_is_passed_on(folder: Path, tmp_path: Path) -> None:
    """Absolute paths in the recipe and on the command line, a source without a name of its own: their folders, the
    user and the machine are in no file that a build leaves beside or in its outputs."""
    private = tmp_path / "home of somebody" / "models"
    private.mkdir(parents=True)
    for name in "abc":
        write_model(private / f"{name}.safetensors", ord(name))
    text = (
        f"mergeflow: 1\nsources:\n  a: '{private}/a.safetensors'\n  b: {{ path: \"{private}/b.safetensors\" }}\n"
        f"  c: c.safetensors\noutputs:\n"
    )
    outputs = [
        f"  out/one.safetensors: {{ from: a + b - c, embed: recipe, {TOLD[2:]}, metadata_for: a1111 }}\n",
        "  out/two.ckpt: { from: a * 0.5 + b * 0.5, sidecars: [sha256, provenance, card] }\n",
        "  out/three.safetensors: { from: a * 0.5 + c * 0.5, shard_size: 1MB, sidecars: [sha256, provenance, card] }\n",
    ]
    build(text + "".join(outputs), "--source", f"c={private}/c.safetensors")
    run("lock")
    run("graph", "-o", "out/recipe.html", "--source", f"c={private}/c.safetensors")
    run("graph", "out/one.safetensors", "-o", "out/files.html", "--changes", "--models", private)
    written = [*Path("out").rglob("*"), Path("recipe.lock")]
    assert len(written) >= 18
    words = [str(tmp_path), "home of somebody", str(Path.home()), socket.gethostname(), platform.node()]
    words += [user for user in (getpass.getuser(), os.environ.get("USER", "")) if user != "root"]  # a word of CSS
    secret = [word.encode() for word in words if len(word) > 3]
    for path in written:
        data = path.read_bytes()
        for word in secret:
            assert word not in data, (path, word)
        assert not re.search(rb"(?<![\w:/.>`])/(?:home|root|tmp|Users|mnt|media|var|work)/", data), path
        assert not re.search(rb"[A-Za-z]:\\\\?Users", data), path


def test_a_recipe_without_its_folders_is_still_that_recipe(folder: Path) -> None:
    here = Path.cwd()
    build(recipe(", embed: recipe").replace("b.safetensors", f"'{here}/b.safetensors'"))
    assert str(here) not in MIX.read_bytes().decode("latin-1")
    assert "byte for byte" in run("verify", "--rebuild", MIX).stdout
    build(recipe(", embed: recipe"), "--set", "m=0.25", "--source", f"c={here}/a.safetensors")
    assert str(here) not in MIX.read_bytes().decode("latin-1")
    assert "byte for byte" in run("verify", "--rebuild", MIX).stdout
