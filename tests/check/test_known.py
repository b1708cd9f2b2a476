"""Components that the user has given a name: known again elsewhere, whatever stands before their tensors' names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from check_models import IDS, changed
from safetensors.numpy import load_file, save_file
from support.commands import run, run_json

from mergeflow.build import known
from mergeflow.errors import RecipeError

VAE = "first_stage_model."


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MERGEFLOW_CONFIG", str(tmp_path / "config"))
    return tmp_path / "config"


def names(path: Path) -> dict[str, str]:
    (file,) = run_json("check", path)["files"]
    return {component: part["known"] for component, part in file["components"].items()}


def test_a_vae_is_known_again_in_a_model(sd15: dict[str, Path], tmp_path: Path, config: Path) -> None:
    tensors = {n.removeprefix(VAE): t for n, t in load_file(sd15["A"]).items() if n.startswith(VAE)}
    save_file(tensors, tmp_path / "anime.vae.safetensors")
    run("check", tmp_path / "anime.vae.safetensors", "--remember", 'kl-f8 "anime" 漫')
    assert names(sd15["B"]) == {"unet": "", "clip_l": "", "vae": 'kl-f8 "anime" 漫'}
    assert "漫" in run("check", sd15["B"]).stdout


def test_a_text_encoder_is_the_same_with_repaired_ids(sd15: dict[str, Path], tmp_path: Path, config: Path) -> None:
    run("check", sd15["A"], "--remember", "A's")
    path = changed(sd15["A"], tmp_path / "x.safetensors", lambda t: t.update({IDS: t[IDS].astype(np.float32)}))
    assert names(path)["clip_l"] == "A's"
    path = changed(sd15["A"], tmp_path / "y.safetensors", lambda t: t.pop(IDS))
    assert names(path)["clip_l"] == "A's"
    assert names(sd15["B"])["clip_l"] == ""


def test_what_cannot_be_remembered(sd15: dict[str, Path], tmp_path: Path, config: Path) -> None:
    assert "for one file" in run("check", sd15["A"], sd15["B"], "--remember", "x", exit_code=2).stderr
    path = changed(sd15["A"], tmp_path / "x.safetensors", lambda t: [t.pop(n) for n in [*t] if "diffusion" not in n])
    assert "neither a VAE nor a text encoder" in run("check", path, "--remember", "x", exit_code=2).stderr
    run("check", sd15["A"], "--remember", "one")
    run("check", sd15["A"], "--remember", "one")
    assert "is called one already" in run("check", sd15["B"], "--remember", "other", exit_code=2).stderr


def test_a_file_that_cannot_be_read_is_what_is_said(tmp_path: Path, config: Path) -> None:
    assert "there is no such file" in run("check", tmp_path / "no.safetensors", "--remember", "x", exit_code=4).stderr
    (tmp_path / "bad.safetensors").write_bytes(b"12345678" * 9)
    assert "bad.safetensors" in run("check", tmp_path / "bad.safetensors", "--remember", "x", exit_code=5).stderr
    assert not config.exists()


def test_lines_are_added_to_a_file_that_somebody_wrote(config: Path) -> None:
    config.mkdir()
    digests = [f"b3:{n:064x}" for n in range(3)]
    (config / "known.toml").write_text(f'"{digests[0]}" = "mine"', encoding="utf-8")  # without an end of the line
    known.add("theirs", [digests[1], digests[2], digests[1]])
    assert known.read() == {digests[0]: "mine", digests[1]: "theirs", digests[2]: "theirs"}
    known.add("theirs", digests[1:])
    assert len(known.read()) == 3
    for name in ("two\nlines", "\x7f", " "):
        with pytest.raises(RecipeError, match="is no name"):
            known.add(name, [f"b3:{9:064x}"])
    assert len(known.read()) == 3


@pytest.mark.parametrize("text", ["x", '"b3:00" = 3', 'vae = "x"'])
def test_a_file_that_is_not_what_it_should_be(sd15: dict[str, Path], config: Path, text: str) -> None:
    config.mkdir()
    (config / "known.toml").write_text(text, encoding="utf-8")
    assert "known.toml" in run("check", sd15["A"], exit_code=2).stderr
