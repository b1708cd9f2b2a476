"""Sources that are named by a hash alone, and the folders in which they are looked for."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from machines import Machine, flipped, model, sha256

from mergeflow.events import silent
from mergeflow.sources.memo import Memo
from mergeflow.sources.search import Search, Wanted

LONG = model(1, 1 << 20)  # longer than where A1111's old hash is taken from


def old(data: bytes) -> str:
    return hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8]


def autov3(data: bytes) -> str:
    return hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()[:12]


SPELLINGS = {
    "sha256": f"{{ sha256: {sha256(LONG)} }}",
    "upper": f"{{ sha256: {sha256(LONG).upper()} }}",
    "short text": f"sha256:{sha256(LONG)}",
    "hash of 64": f"{{ hash: {sha256(LONG)} }}",
    "A1111": f'"hash:{sha256(LONG)[:10]}"',
    "A1111, old": f"{{ hash: '{old(LONG)}' }}",
    "AutoV3": f"{{ hash: '{autov3(LONG)}' }}",
    "with its size": f"{{ sha256: {sha256(LONG)}, size: {len(LONG)} }}",
}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "M")


def recipe(source: str) -> str:
    return f"mergeflow: 1\nsources: {{ a: {source} }}\noutputs: {{ mix.safetensors: a * 1 }}\n"


@pytest.mark.parametrize("source", SPELLINGS.values(), ids=SPELLINGS)
def test_by_a_hash_alone(machine: Machine, source: str) -> None:
    machine.put("other.safetensors", model(2, 1 << 20))
    machine.put("broken.ckpt", b"")
    machine.put("folder/wanted.safetensors", LONG)
    machine.recipe(recipe(source))
    plan = machine.json("plan")
    assert Path(plan["sources"][0]["path"]).name == "wanted.safetensors"
    machine.run("build")
    assert "up to date" in machine.run("build").stdout


def test_a_short_hash_of_files_that_differ_lists_them(machine: Machine) -> None:
    other = flipped(LONG)
    machine.put("one.safetensors", LONG)
    machine.put("two.safetensors", other)
    machine.put("copy of one.safetensors", LONG)
    machine.recipe(recipe(f"{{ hash: '{old(LONG)}' }}"))
    error = machine.run("build", exit_code=2).stderr
    assert f"3 files that differ have the hash {old(LONG)}" in error
    assert "one.safetensors" in error
    assert "two.safetensors" in error
    machine.recipe(recipe(f"{{ hash: '{old(LONG)}', sha256: {sha256(other)} }}"))
    assert Path(machine.json("plan")["sources"][0]["path"]).name == "two.safetensors"


def test_copies_are_one_file(machine: Machine) -> None:
    machine.put("b/two.safetensors", LONG)
    machine.put("a/one.safetensors", LONG)
    machine.recipe(recipe(f"{{ hash: '{old(LONG)}' }}"))
    assert Path(machine.json("plan")["sources"][0]["path"]).name == "one.safetensors"


def test_what_is_nowhere_is_an_error_that_says_where_it_stands(machine: Machine) -> None:
    machine.put("other.safetensors", model(2))
    machine.recipe(recipe(f"{{ sha256: {'0' * 64} }}"))
    error = machine.run("build", exit_code=4).stderr
    assert "recipe.yaml:2:" in error
    assert "a is not here, and no file in the model folders has the sha256 000000000000…" in error
    assert "MERGEFLOW_MODELS" in error


def test_an_output_may_be_called_as_the_file_at_an_address(machine: Machine) -> None:
    machine.put("x.safetensors", LONG)
    source = f"{{ url: https://localhost/mix.safetensors, sha256: {sha256(LONG)} }}"
    machine.recipe(recipe(source).replace("}\noutputs", ", b: https://localhost/more.safetensors }\noutputs"))
    machine.run("build")
    assert (machine.work / "mix.safetensors").exists()


def test_beside_the_recipe(machine: Machine) -> None:
    (machine.work / "renamed.safetensors").write_bytes(LONG)
    machine.recipe(recipe(f"{{ path: models/a.safetensors, sha256: {sha256(LONG)} }}"))
    assert Path(machine.json("plan")["sources"][0]["path"]).name == "renamed.safetensors"


@pytest.mark.parametrize(
    ("setting", "place"),
    [
        ('folders = ["{}/one", "{}/none"]', "one/x.safetensors"),
        ('webui = "{}/webui"', "webui/models/Stable-diffusion/x.safetensors"),
        ('comfyui = "{}/comfy"', "comfy/models/checkpoints/x.safetensors"),
        ('downloads = "{}/got"', "got/site/x.safetensors"),
    ],
)
def test_folders_of_the_configuration(machine: Machine, setting: str, place: str) -> None:
    path = machine.folder / place
    path.parent.mkdir(parents=True)
    path.write_bytes(LONG)
    config = machine.folder / "config" / "config.toml"
    config.parent.mkdir()
    config.write_text(f"[models]\n{setting.replace('{}', machine.folder.as_posix())}\n")
    machine.env["MERGEFLOW_DOWNLOADS"] = ""
    machine.recipe(recipe(f"sha256:{sha256(LONG)}"))
    assert Path(machine.json("plan")["sources"][0]["path"]) == path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[models]\nfolder = []\n", "[models] has no key folder"),
        ("[models]\nfolders = 'x'\n", "folders in [models] is a list of folders"),
        ("[modles]\n", "the configuration has no key modles"),
        ("models = 1\n", "[models] is a table"),
        ("[models\n", "the configuration cannot be read"),
    ],
)
def test_a_configuration_that_means_nothing(machine: Machine, text: str, message: str) -> None:
    config = machine.folder / "config" / "config.toml"
    config.parent.mkdir()
    config.write_text(text)
    machine.recipe(recipe(f"sha256:{sha256(LONG)}"))
    error = machine.run("plan", exit_code=2).stderr
    assert message in error
    assert "config.toml" in error


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_the_cache_of_hugging_face_is_read_by_the_names_of_its_blobs(machine: Machine, tmp_path: Path) -> None:
    hub = tmp_path / "hub" / "models--o--r"
    files = {"wanted.safetensors": LONG, "other.safetensors": model(3), "lies.safetensors": model(4)}
    names = {name: sha256(data) for name, data in files.items()}
    names["lies.safetensors"] = sha256(LONG)[:-1] + "0"
    (hub / "snapshots" / "c0ffee").mkdir(parents=True)
    (hub / "blobs").mkdir()
    for name, data in files.items():
        (hub / "blobs" / names[name]).write_bytes(data)
        (hub / "snapshots" / "c0ffee" / name).symlink_to(Path("../../blobs") / names[name])
    machine.recipe(recipe(f"sha256:{sha256(LONG)}"))
    hashed = machine.run("plan", env={"HF_HUB_CACHE": str(hub.parent)}).stderr
    assert "wanted.safetensors" in hashed
    assert "other.safetensors" not in hashed


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_links_in_circles_end(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "back").symlink_to(tmp_path)
    (tmp_path / "a" / "gone.safetensors").symlink_to("nowhere")
    (tmp_path / "a" / "x.safetensors").write_bytes(LONG)
    memo = Memo(tmp_path / "memo", lambda message: None)
    found = Search([tmp_path], memo, silent).find(Wanted(sha256(LONG)))
    assert found is not None
    assert found.name == "x.safetensors"
    memo.close()


def test_other_sizes_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.safetensors").write_bytes(LONG)
    (tmp_path / "y.safetensors").write_bytes(LONG + b"0")
    memo = Memo(tmp_path / "memo", lambda message: None)
    read: list[str] = []

    def hashed(path: Path, *_: object) -> str:
        read.append(path.name)
        return sha256(path.read_bytes())

    monkeypatch.setattr("mergeflow.sources.search.sha256", hashed)
    assert Search([tmp_path], memo, silent).find(Wanted("0" * 64, None, len(LONG))) is None
    assert read == ["x.safetensors"]
    memo.close()


def test_too_much_to_hash_is_not_hashed_unasked(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mergeflow.sources.search.MOST_UNASKED", len(LONG))
    machine.put("x.safetensors", LONG)
    other = machine.put("y.safetensors", flipped(LONG))
    machine.recipe(recipe(f"sha256:{sha256(LONG)}"))
    error = machine.run("plan", exit_code=4).stderr
    assert "2 files in the model folders" in error
    assert "have not been hashed yet" in error
    machine.run("hash", "--only", "sha256", other)
    machine.run("plan")
