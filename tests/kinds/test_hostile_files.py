"""A checkpoint that would run something, given to the commands and to a recipe: refused by name, and nothing is made.

tests/formats_more has the corpus; here is what a user meets.
"""

from __future__ import annotations

import os
import pickle  # noqa: TID251  # to write the hostile files
import zipfile
from pathlib import Path

import pytest
import torch
from kind_models import Model, build, torch_of, write
from support.commands import run, run_json

from mergeflow.errors import IntegrityError


class Runs:
    """os.system("touch CANARY") once it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch '{self.canary}'",)


def hostile(folder: Path, protocol: int, container: str) -> Path:
    path = folder / "model.ckpt"
    state = {"state_dict": {"w": torch.ones(2), "x": [Runs(folder / "canary")]}}
    if container == "plain":
        path.write_bytes(pickle.dumps(state, protocol))
    else:
        torch.save(state, path, pickle_protocol=protocol, _use_new_zipfile_serialization=container == "zip")
    return path


@pytest.mark.parametrize(
    ("protocol", "container"),
    [(p, c) for p in range(6) for c in ("zip", "legacy", "plain") if p >= 2 or c == "plain"],  # torch writes 2 and up
)
def test_every_protocol_in_every_container(
    tmp_path: Path, whole: dict[str, Model], protocol: int, container: str
) -> None:
    path = hostile(tmp_path, protocol, container)
    write(tmp_path, a=whole["A"])
    (file,) = run_json("check", path, exit_code=5)["files"]
    assert file["verdict"] == "damaged"
    run("inspect", path, exit_code=5)
    with pytest.raises(IntegrityError) as caught:
        build(tmp_path, "a: a.safetensors, x: model.ckpt", "a*0.5 + x*0.5")
    assert str(path) in caught.value.message
    assert not (tmp_path / "made.safetensors").exists()
    assert not (tmp_path / "canary").exists()


def test_the_canary_is_alive(tmp_path: Path) -> None:
    pickle.loads(hostile(tmp_path, 2, "plain").read_bytes())
    assert (tmp_path / "canary").exists()


def rewritten(path: Path, change: dict[str, str], extra: dict[str, bytes]) -> Path:
    """The archive with entries renamed and others added."""
    with zipfile.ZipFile(path) as archive:
        entries = {change.get(n, n): archive.read(n) for n in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (entries | extra).items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("name", ["../../../{}/out", "/{}/out", "..\\..\\{}\\out", "m/../../{}/out", "C:\\{}\\out"])
def test_names_that_lead_out_of_the_archive_write_nothing(tmp_path: Path, whole: dict[str, Model], name: str) -> None:
    """Nothing is ever unpacked: entries are places in the file, and only those that tensors name are read."""
    model = torch_of(whole["A"])
    inside = tmp_path / "m"
    inside.mkdir()
    torch.save(model, inside / "m.ckpt")
    before = sorted(p for p in tmp_path.rglob("*"))
    added = rewritten(inside / "m.ckpt", {}, {name.format(tmp_path.name): b"x" * 64})
    (file,) = run_json("check", added)["files"]
    assert file["verdict"] == "ok"
    rewritten(added, {"m/data/0": name.format(tmp_path.name)}, {})
    run("check", added, exit_code=5)
    assert sorted(p for p in tmp_path.rglob("*")) == before


def test_a_zip_bomb_is_not_inflated(tmp_path: Path, whole: dict[str, Model]) -> None:
    """64 MB of zeros in 64 KB: refused because it is compressed, before a byte of it is read."""
    path = tmp_path / "m.ckpt"
    torch.save(torch_of(whole["A"]), path)
    with zipfile.ZipFile(path) as archive:
        entries = {n: archive.read(n) for n in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, bytes(64 << 20) if name == "m/data/0" else data)
    (file,) = run_json("check", path, exit_code=5)["files"]
    assert "compressed" in file["why"]
