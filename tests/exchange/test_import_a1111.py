"""A1111's metadata, written by a writer that is not ours, imports to a recipe whose build has that merger's bytes."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from mergeflow.cli.main import cli
from mergeflow.errors import RecipeError
from mergeflow.exchange.read import read

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "a1111"))
import webui  # the merger of section 1 of the notes, in torch

State = dict[str, torch.Tensor]
NAMES = ("model.diffusion_model.a.weight", "first_stage_model.b.weight", "cond_stage_model.model.c", "betas")


def state(seed: int, dtype: torch.dtype = torch.float16) -> State:
    random = torch.Generator().manual_seed(seed)
    return {name: torch.randn(6, 9, generator=random).to(dtype) * 0.1 for name in NAMES}


class Webui:
    """A folder of models and the merger that writes its history into what it makes, as section 1.9 says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def model(self, name: str, tensors: State, metadata: dict[str, str] | None = None) -> str:
        save_file(tensors, self.folder / name, metadata)
        return name

    def sha256(self, name: str) -> str:
        return hashlib.sha256((self.folder / name).read_bytes()).hexdigest()

    def told(self, name: str) -> dict[str, str]:
        with (self.folder / name).open("rb") as file:
            return json.loads(file.read(int.from_bytes(file.read(8), "little"))).get("__metadata__", {})

    def merge(self, result: str, method: str, parts: list[str], m: float = 0.3, *, half: bool = False,
              hashed: bool = True, **more: Any) -> str:  # fmt: skip
        states = [load_file(self.folder / part) for part in parts]
        tensors = webui.merger(*states, m=m, half=half)
        hashes = [self.sha256(part) if hashed else None for part in parts] + [None, None]
        recipe = {
            "type": "webui",
            "primary_model_hash": hashes[0],
            "secondary_model_hash": hashes[1],
            "tertiary_model_hash": hashes[2],
            "interp_method": method,
            "multiplier": m,
            "save_as_half": half,
            "custom_name": result,
            "config_source": 0,
            "bake_in_vae": "None",
            "discard_weights": "",
            "is_inpainting": False,
            "is_instruct_pix2pix": False,
            **more,
        }
        models: dict[str, Any] = {}
        for part in parts:
            told = self.told(part)
            own = json.loads(told["sd_merge_recipe"]) if "sd_merge_recipe" in told else None
            models[self.sha256(part)] = {"name": part, "legacy_hash": "0" * 8, "sd_merge_recipe": own}
            models.update(json.loads(told.get("sd_merge_models", "{}")))
        metadata = {"format": "pt", "sd_merge_recipe": json.dumps(recipe), "sd_merge_models": json.dumps(models)}
        return self.model(result, tensors, metadata)


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Webui:
    monkeypatch.setenv("MERGEFLOW_MEMO", str(tmp_path / "memo"))
    monkeypatch.chdir(tmp_path)
    here = Webui(tmp_path)
    for i, name in enumerate("abcd"):
        here.model(f"{name}.safetensors", state(i, torch.float32 if name == "d" else torch.float16))
    return here


def rebuilt(name: str, output: str | None = None) -> State:
    """The file that the imported recipe makes, built in a folder of its own."""
    run("import", name, "-o", "imported.yaml")
    run("build", "imported.yaml", "--output-root", "again")
    return load_file(Path("again") / (output or name))


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == code, result.output
    return result.output


def assert_same(found: State, wanted: State) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        np.testing.assert_array_equal(
            found[name].view(torch.uint8).numpy(), tensor.contiguous().view(torch.uint8).numpy(), err_msg=name
        )


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    ("method", "parts", "m"),
    [
        ("Weighted sum", ["a", "b"], 0.3),
        ("Weighted sum", ["a", "d"], 0.05),
        ("Add difference", ["a", "b", "c"], 1.0),
        ("Add difference", ["d", "b", "c"], 0.35),
        ("No interpolation", ["d"], 0.3),
    ],
)
def test_one_run(models: Webui, method: str, parts: list[str], m: float, half: bool) -> None:
    models.merge("mix.safetensors", method, [f"{p}.safetensors" for p in parts], m, half=half)
    assert_same(rebuilt("mix.safetensors"), load_file("mix.safetensors"))


def test_nested_ancestry(models: Webui) -> None:
    models.merge(
        "night.safetensors", "Add difference", ["d.safetensors", "b.safetensors", "c.safetensors"], 0.3, half=True
    )
    models.merge("half.safetensors", "Weighted sum", ["night.safetensors", "a.safetensors"], 0.45)
    models.merge("full.safetensors", "Add difference", ["half.safetensors", "night.safetensors", "b.safetensors"], 1.0)
    wanted = load_file("full.safetensors")
    for gone in ("night", "half"):
        (models.folder / f"{gone}.safetensors").unlink()
    assert_same(rebuilt("full.safetensors"), wanted)
    text = Path("imported.yaml").read_text()
    assert "night:" in text
    assert "policy: a1111" in text


@pytest.mark.parametrize("half", [False, True])
def test_inpainting_conversion(models: Webui, half: bool) -> None:
    """A wide model, to which the difference of two others is added, and a run more on top of that."""
    first = "model.diffusion_model.input_blocks.0.0.weight"
    for i, (name, channels) in enumerate((("inpaint", 9), ("tuned", 4), ("plain", 4))):
        random = torch.Generator().manual_seed(40 + i)
        wide = {first: torch.randn(8, channels, 3, 3, generator=random).half() * 0.1}
        models.model(f"{name}.safetensors", {**state(30 + i), **wide})
    parts = ["inpaint.safetensors", "tuned.safetensors", "plain.safetensors"]
    models.merge("both.safetensors", "Add difference", parts, 1.0, half=half, is_inpainting=True)
    models.merge("more.safetensors", "Weighted sum", ["both.safetensors", "tuned.safetensors"], 0.3, is_inpainting=True)
    wanted = load_file("more.safetensors")
    assert wanted[first].shape[1] == 9
    (models.folder / "both.safetensors").unlink()
    assert_same(rebuilt("more.safetensors"), wanted)


def test_a_model_that_was_not_hashed_is_the_one_that_is_left(models: Webui) -> None:
    models.merge("mix.safetensors", "No interpolation", ["a.safetensors"], hashed=False)
    with pytest.raises(RecipeError, match="names no model"):
        read(Path("mix.safetensors"))
    models.merge("mix.safetensors", "Weighted sum", ["a.safetensors", "b.safetensors"], primary_model_hash=None)
    assert_same(rebuilt("mix.safetensors"), load_file("mix.safetensors"))


def test_what_is_lost_is_said(models: Webui) -> None:
    models.merge("mix.safetensors", "Weighted sum", ["a.safetensors", "b.safetensors"], bake_in_vae="anime.vae.pt")
    found = read(Path("mix.safetensors"))
    assert any("anime.vae.pt" in loss for loss in found.losses)
    assert "replace: { vae: vae_anime" in found.text
    assert "policy" not in found.text.split("mergeflow: 1")[1]


def test_discarded_weights_are_dropped(models: Webui) -> None:
    models.merge("mix.safetensors", "Weighted sum", ["a.safetensors", "b.safetensors"], discard_weights="first_stage")
    tensors = rebuilt("mix.safetensors")
    assert sorted(tensors) == sorted(name for name in NAMES if "first_stage" not in name)


def test_a_circle_is_an_error(tmp_path: Path) -> None:
    own = {"type": "webui", "primary_model_hash": "ab" * 32, "interp_method": "No interpolation"}
    models = {"ab" * 32: {"name": "x", "sd_merge_recipe": own}}
    path = tmp_path / "mix.json"
    path.write_text(json.dumps({"sd_merge_recipe": own, "sd_merge_models": models}))
    with pytest.raises(RecipeError, match="its own ancestor"):
        read(path)


@pytest.mark.parametrize("text", ["{}", "[", '"x"', "{" * 2000])
def test_damaged_metadata_is_an_error(tmp_path: Path, text: str) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "mix.safetensors", {"sd_merge_recipe": text})
    with pytest.raises(RecipeError, match=r"no JSON object|names no model|does not say"):
        read(tmp_path / "mix.safetensors")


def test_a_file_that_says_nothing(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "mix.safetensors")
    with pytest.raises(RecipeError, match="does not say what it was merged from"):
        read(tmp_path / "mix.safetensors")


def test_sources_under_other_names_are_found_by_hash(models: Webui) -> None:
    models.merge("mix.safetensors", "Add difference", ["a.safetensors", "b.safetensors", "c.safetensors"], 0.35)
    wanted = load_file("mix.safetensors")
    for name in "abc":
        (models.folder / f"{name}.safetensors").rename(models.folder / f"renamed {name}.safetensors")
    assert_same(rebuilt("mix.safetensors"), wanted)
