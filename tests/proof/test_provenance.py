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
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from proof_models import build, recipe, write_model
from support.commands import run, run_json

from mergeflow.recipe import loads
from mergeflow.recipe.shared import shared_text

TOLD = ", sidecars: [sha256, provenance, card]"
MIX = Path("out/mix.safetensors")
STATEMENT, CARD = Path("out/mix.safetensors.provenance.json"), Path("out/mix.card.md")


def sha256(path: Path | str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def statement() -> dict[str, Any]:
    found = json.loads(STATEMENT.read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    "more",
    [
        recipe(TOLD),
        recipe(f"{TOLD}, shard_size: 1MB"),
        recipe(f"{TOLD}, embed: none", "'ties(a, [b, c @ 0.5], density=0.5)'"),
        recipe(TOLD, name="out/mix.ckpt").replace(
            "a: a.safetensors", "a: { path: a.safetensors, url: 'hf:owner/model/a.safetensors', license: mit }"
        ),
    ],
    ids=["sum", "shards", "method", "ckpt"],
)
def test_the_statement_is_one_of_in_toto_and_slsa(folder: Path, more: str) -> None:
    """Read with the messages that their projects publish, which refuse fields that are not in the specifications."""
    pytest.importorskip("in_toto_attestation", reason="in-toto-attestation is not installed here")
    from google.protobuf.json_format import Parse, ParseDict
    from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
    from in_toto_attestation.v1 import statement_pb2
    from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
    from in_toto_attestation.v1.statement import Statement

    build(more)
    (file,) = Path("out").glob("*.provenance.json")
    read = Parse(file.read_text(encoding="utf-8"), statement_pb2.Statement())
    Statement.copy_from_pb(read).validate()
    assert read.predicate_type == "https://slsa.dev/provenance/v1"
    files = {path.name for path in Path("out").glob("mix*") if re.search(r"(safetensors|ckpt|index\.json)$", path.name)}
    assert files <= {subject.name for subject in read.subject}
    for subject in read.subject:
        ResourceDescriptor.copy_from_pb(subject).validate()
        assert subject.digest["sha256"] == sha256(Path("out", subject.name))
    predicate = ParseDict(json.loads(file.read_text())["predicate"], provenance_pb2.Provenance())
    assert predicate.build_definition.build_type
    assert predicate.run_details.builder.id
    dependencies = predicate.build_definition.resolved_dependencies
    assert sorted(dependency.name for dependency in dependencies) == ["a", "b", "c"]
    for dependency in dependencies:
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


@pytest.mark.parametrize("odd", [5, "text", [5, {"name": 1}, {"name": "x", "digest": 2}], {"name": "x"}, None])
def test_a_statement_that_says_something_odd(folder: Path, odd: object) -> None:
    """Whoever has a model may have written what lies beside it."""
    build(recipe(", sidecars: provenance"))
    said = statement()
    said["subject"] = odd
    said["predicate"]["buildDefinition"]["resolvedDependencies"] = odd
    STATEMENT.write_text(json.dumps(said))
    assert run_json("verify", MIX)["files"][0]["why"].endswith("…, as it claims")
    assert "a.safetensors" in run("graph", MIX).stdout


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


HERE = {str(Path.home()), socket.gethostname(), getpass.getuser()} - {"root"}  # which is a word of CSS
SOMEBODY = ("home of somebody", "somebody-by-name", "a-host-of-theirs")


@pytest.fixture
def private(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Models below the home of a user with a name, on a machine with one."""
    home, user, host = SOMEBODY
    private = tmp_path / home / "models"
    private.mkdir(parents=True)
    for name in "abcde":
        write_model(private / f"{name}.safetensors", ord(name))
    monkeypatch.setenv("HOME", str(tmp_path / home))
    for name in ("USER", "LOGNAME", "USERNAME"):
        monkeypatch.setenv(name, user)
    for name in ("HOSTNAME", "COMPUTERNAME"):
        monkeypatch.setenv(name, host)
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    monkeypatch.setattr(platform, "node", lambda: host)
    return private


def check_shared(written: Iterable[Path], tmp_path: Path) -> None:
    """No folder, user or machine is named in these files: neither the ones made up here nor the real ones."""
    words = {*SOMEBODY, *HERE, str(tmp_path)}
    for path in written:
        data = path.read_bytes()
        for word in words:
            assert len(word) < 4 or word.encode() not in data, (path, word)
        assert not re.search(rb"(?<![\w:/.>`])/(?:home|root|tmp|Users|mnt|media|var|work)/", data), path
        assert not re.search(rb"[A-Za-z]:\\{1,4}Users|\\\\server", data), path


def test_private_things_are_in_nothing_that_is_passed_on(folder: Path, private: Path, tmp_path: Path) -> None:
    """Absolute paths in the recipe, however it writes them, and on the command line; a source without a name of its
    own: their folders, the user and the machine are in nothing that is made to be passed on."""
    sources = {
        "a": f"'{private}/a.safetensors'",
        "b": f'{{ path: "{private}/b.safetensors" }}'.replace("home of", r"\x68ome\u0020of"),
        "c": "c.safetensors",
        "d": r'"C:\\Users\\somebody\\models\\d.safetensors"',
        "e": r"'\\server\somebody\e.safetensors'",
        "f": "~/models/a.safetensors",
    }
    outputs = {
        "out/one.safetensors": "from: a + b - c, embed: recipe, metadata_for: a1111",
        "out/two.ckpt": "from: half + d - e",
        "out/three.safetensors": "from: half * 0.5 + f * 0.5, shard_size: 1MB",
        "out/four.safetensors": "from: 'ties(a, [b, c], density=0.5)', embed: none",
    }
    text = "mergeflow: 1\nsources:\n" + "".join(f"  {name}: {path}\n" for name, path in sources.items())
    text += "steps: { half: { expr: a * 0.5 + b * 0.5, keep: true } }\noutputs:\n"
    text += "".join(f"  {path}: {{ {what}, {TOLD[2:]} }}\n" for path, what in outputs.items())
    given = [f"--source={name}={private}/{name}.safetensors" for name in "cde"] + [
        f"--source=f={private}/a.safetensors"
    ]
    build(text, *given)
    run("lock", *given)
    for form in ("html", "mermaid", "dot", "text"):
        Path(f"out/recipe.{form}").write_text(run("graph", "--format", form, *given).stdout)
        shown = run("graph", "out/one.safetensors", "--format", form, "--models", private).stdout
        Path(f"out/files.{form}").write_text(shown)
    run("graph", "out/one.safetensors", "-o", "out/changes.html", "--changes", "--models", private)
    for form in ("text", "a1111-steps"):
        Path(f"out/{form}").write_text(run("export", "recipe.yaml", "out/two.ckpt", "--to", form).stdout)
    merged = ("merge", "x * 0.5 + y * 0.5", f"x={private}/a.safetensors", f"y={private}/b.safetensors")
    run(*merged, "-o", "out/merged.safetensors")
    objects = list(Path("cache/objects").rglob("*.safetensors"))
    assert objects
    written = [path for path in Path("out").rglob("*") if path.is_file()]
    assert len(written) >= 33
    check_shared([*written, *objects, Path("recipe.lock")], tmp_path)


ESCAPED = """\
mergeflow: 1
sources:
  a:
    path: >-
      /home/me/my models/x.safetensors
  b: "/home/me/\\u6a21/y.safetensors"   # seen at /home/me/my models/x.safetensors
  c: { path: "/home/me/a\\
     b.ckpt" }
  d: >-
    /home/me/it's
    q.ckpt
outputs: { mix.safetensors: a*0.5 + b*0.5 }
"""


def test_paths_are_cut_down_however_yaml_has_them() -> None:
    text = shared_text(loads(ESCAPED, "recipe.yaml", Path()))
    assert "/home" not in text
    paths = {name: source.path for name, source in loads(text, "recipe.yaml", Path()).sources.items()}
    assert paths == {"a": "x.safetensors", "b": "y.safetensors", "c": "ab.ckpt", "d": "it's q.ckpt"}


def test_a_recipe_without_its_folders_is_still_that_recipe(folder: Path) -> None:
    here = Path.cwd()
    build(recipe(", embed: recipe").replace("b.safetensors", f"'{here}/b.safetensors'"))
    assert str(here) not in MIX.read_bytes().decode("latin-1")
    assert "byte for byte" in run("verify", "--rebuild", MIX).stdout
    build(recipe(", embed: recipe"), "--set", "m=0.25", "--source", f"c={here}/a.safetensors")
    assert str(here) not in MIX.read_bytes().decode("latin-1")
    assert "byte for byte" in run("verify", "--rebuild", MIX).stdout
