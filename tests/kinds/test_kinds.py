"""Files that are no whole models: what `inspect` and `check` say of them, and what a recipe that takes them for one is
told."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from kind_models import Model, build, sd1, torch_of, write
from safetensors.torch import save_file

from mergeflow.cli.main import cli
from mergeflow.errors import MergeflowError, RecipeError

Tensors = dict[str, torch.Tensor]


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.float16)


def kohya(width: int, rank: int = 4, te: str = "lora_te") -> Tensors:
    attention = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    text = f"{te}_text_model_encoder_layers_0_mlp_fc1"
    return {
        f"{module}.{part}": tensor
        for module, (out, wide) in {attention: (8, width), text: (8, 768)}.items()
        for part, tensor in {
            "lora_down.weight": zeros(rank, wide), "lora_up.weight": zeros(out, rank), "alpha": zeros()
        }.items()
    }  # fmt: skip


def hypernetwork(*sizes: int) -> dict[int, list[Tensors]]:
    """As NovelAI's: for each size a pair, for the keys and for the values of attention."""

    def half(d: int) -> Tensors:
        return OrderedDict(
            {"linear1.weight": zeros(2 * d, d), "linear1.bias": zeros(2 * d), "linear2.weight": zeros(d, 2 * d),
             "linear2.bias": zeros(d)}
        )  # fmt: skip

    return {size: [half(size), half(size)] for size in sizes}


def clip_l(before: str = "") -> Tensors:
    names = {n: v for n, v in torch_of(sd1("A")).items() if n.startswith("cond_stage_model.transformer.")}
    return {before + n.removeprefix("cond_stage_model.transformer."): v for n, v in names.items()}


EMBEDDING = {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": {"*": zeros(3, 768)}, "name": "mywaifu",
             "step": 500, "sd_checkpoint": "925997e9"}  # fmt: skip
ESRGAN = {
    **{f"body.{i}.rdb1.conv1.weight": zeros(4, 8, 3, 3) for i in range(23)},
    "conv_first.weight": zeros(8, 3, 3, 3), "conv_up1.weight": zeros(8, 8, 3, 3), "conv_up2.weight": zeros(8, 8, 3, 3),
}  # fmt: skip
OLD_ESRGAN = {f"model.1.sub.{i}.RDB1.conv1.0.weight": zeros(4, 8, 3, 3) for i in range(24)}
COMPACT = {"body.0.weight": zeros(8, 3, 3, 3), "body.1.weight": zeros(8), "body.2.weight": zeros(8, 8, 3, 3)}
CONTROLNET = {
    "control_model.input_hint_block.0.weight": zeros(2, 3, 3, 3),
    "control_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": zeros(4, 768),
}
OF_DIFFUSERS = {
    "controlnet_cond_embedding.conv_in.weight": zeros(2, 3, 3, 3),
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": zeros(4, 1024),
}
LOHA = {f"lora_unet_mid_block_attentions_0_proj_in.hada_{p}": zeros(2, 2) for p in ("w1_a", "w1_b", "w2_a", "w2_b")}
PEFT = {
    "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": zeros(16, 8),
    "transformer.single_transformer_blocks.0.attn.to_q.lora_B.weight": zeros(8, 16),
}
PROCESSOR = {
    "unet.down_blocks.0.attn2.processor.to_k_lora.down.weight": zeros(4, 768),
    "unet.down_blocks.0.attn2.processor.to_k_lora.up.weight": zeros(8, 4),
}
LEFT_BEHIND = {"optimizer_states.0.state.0.exp_avg": zeros(2), "optimizer_states.0.state.0.exp_avg_sq": zeros(2)}

# file name, content, kind, facts
CASES: dict[str, tuple[str, Any, str, dict[str, str]]] = {
    "lora of sd1": ("x.safetensors", kohya(768), "lora",
        {"type": "LoRA", "rank": "4", "modules": "2, 1 of them of text encoders", "for": "for Stable Diffusion 1"}),
    "lora of sd2": ("x.safetensors", kohya(1024), "lora", {"for": "for Stable Diffusion 2"}),
    "lora of sdxl": ("x.pt", kohya(2048, 32, "lora_te2"), "lora", {"rank": "32", "for": "for Stable Diffusion XL"}),
    "ranks that differ": ("x.safetensors", {**kohya(768), "a.lora_down.weight": zeros(8, 4)}, "lora",
        {"rank": "4 to 8, mostly 4"}),
    "dora": ("x.safetensors", {**kohya(768), "a.dora_scale": zeros(1, 8)}, "lora", {"type": "LoRA + DoRA"}),
    "loha": ("x.safetensors", LOHA, "lora", {"type": "LoHa", "rank": "2", "modules": "1"}),
    "lokr": ("x.safetensors", {"lycoris_a.lokr_w1": zeros(2, 2), "lycoris_a.lokr_w2": zeros(2, 2)}, "lora",
        {"type": "LoKr", "modules": "1"}),
    "peft, flux": ("x.safetensors", PEFT, "lora", {"rank": "16", "for": "for FLUX.1"}),
    "old diffusers": ("x.bin", PROCESSOR, "lora", {"rank": "4", "for": "for Stable Diffusion 1"}),
    "nai hypernetwork": ("x.pt", hypernetwork(768, 320), "hypernetwork",
        {"sizes": "320, 768", "layers": "1→2→1", "for": "for Stable Diffusion 1"}),
    "a1111 hypernetwork": ("x.pt", {**hypernetwork(1024), "name": "anime", "activation_func": "linear"}, "hypernetwork",
        {"sizes": "1024", "activation": "linear", "name": "anime", "for": "for Stable Diffusion 2"}),
    "embedding": ("x.pt", EMBEDDING, "embedding",
        {"token": "mywaifu", "vectors": "3 × 768", "for": "for Stable Diffusion 1"}),
    "embedding of diffusers": ("x.bin", {"<cat-toy>": zeros(768)}, "embedding",
        {"token": "<cat-toy>", "vectors": "1 × 768"}),
    "embedding in safetensors": ("x.safetensors", {"emb_params": zeros(2, 1024)}, "embedding",
        {"vectors": "2 × 1024", "for": "for Stable Diffusion 2"}),
    "embedding of sdxl": ("x.safetensors", {"clip_l": zeros(4, 768), "clip_g": zeros(4, 1280)}, "embedding",
        {"vectors": "4 × 1280 and 4 × 768", "for": "for Stable Diffusion XL"}),
    "controlnet": ("x.pth", CONTROLNET, "controlnet", {"for": "for Stable Diffusion 1"}),
    "controlnet of diffusers": ("x.safetensors", OF_DIFFUSERS, "controlnet", {"for": "for Stable Diffusion 2"}),
    "adapter": ("x.pth", {"conv_in.weight": zeros(8, 192, 3, 3), "body.0.block1.weight": zeros(8, 8, 3, 3),
        "body.1.block1.weight": zeros(8, 8, 3, 3)}, "t2i-adapter", {"blocks": "2", "channels": "3"}),
    "esrgan": ("x.pth", {"params_ema": ESRGAN}, "upscaler", {"network": "ESRGAN", "scale": "×4", "blocks": "23"}),
    "old esrgan": ("x.pth", OLD_ESRGAN, "upscaler", {"network": "ESRGAN", "blocks": "23"}),
    "compact": ("x.pth", COMPACT, "upscaler", {"network": "Real-ESRGAN, compact"}),
    "clip": ("x.safetensors", clip_l(), "text encoder", {"width": "48", "layers": "12", "words": "3,088"}),
    "training": ("x.pt", LEFT_BEHIND, "training state", {"of": "state of an optimizer"}),
}  # fmt: skip
REFUSED = ("lora", "hypernetwork", "embedding", "training state")


def written(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


def told(command: str, path: Path) -> dict[str, Any]:
    result = CliRunner().invoke(cli, [command, str(path), "--json"])
    document = json.loads(result.stdout)
    return document if command == "inspect" else document["files"][0]


@pytest.mark.parametrize("case", CASES)
def test_what_it_is(tmp_path: Path, case: str) -> None:
    name, content, kind, facts = CASES[case]
    path = written(tmp_path, name, content)
    for command in ("inspect", "check"):
        document = told(command, path)
        assert document["kind"]["name"] == kind
        assert facts.items() <= document["kind"]["facts"].items()
    assert document["verdict"] == "ok"
    shown = CliRunner().invoke(cli, ["inspect", str(path)]).stdout
    assert "not a whole model" in shown
    assert document["kind"]["use"] in shown


@pytest.mark.parametrize("case", [case for case, (_, _, kind, _) in CASES.items() if kind in REFUSED])
def test_it_is_no_model(tmp_path: Path, case: str, whole: dict[str, Model]) -> None:
    name, content, kind, _ = CASES[case]
    path = written(tmp_path, name, content)
    write(tmp_path, a=whole["A"])
    with pytest.raises(RecipeError) as caught:
        build(tmp_path, f"a: a.safetensors, x: {path.name}", "a + x * 0.5")
    titles = {"lora": "a LoRA", "embedding": "a textual inversion", "training state": "the state of a training"}
    assert f"x is {titles.get(kind, f'a {kind}')}" in caught.value.message
    assert "not a model" in caught.value.message
    assert caught.value.hint
    assert caught.value.place is not None
    assert caught.value.place.line == 2


@pytest.mark.parametrize("case", ["controlnet", "esrgan", "clip", "adapter"])
def test_others_merge_with_their_like_alone(tmp_path: Path, case: str, whole: dict[str, Model]) -> None:
    name, content, _, _ = CASES[case]
    path = written(tmp_path, name, content)
    made = build(tmp_path, f"x: {path.name}, y: {path.name}", "x*0.5 + y*0.5")
    assert made
    write(tmp_path, a=whole["A"])
    with pytest.raises(RecipeError, match="they cannot be merged"):
        build(tmp_path, f"a: a.safetensors, x: {path.name}", "a*0.5 + x*0.5")


def test_a_text_encoder_is_a_component_of_other_architectures(tmp_path: Path) -> None:
    prefix = "conditioner.embedders.0.transformer."
    sdxl = {
        "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": zeros(4, 2048),
        **{n: v + 1 for n, v in clip_l(prefix).items() if v.is_floating_point()},
    }
    save_file(sdxl, tmp_path / "a.safetensors")
    save_file(clip_l(), tmp_path / "te.safetensors")
    made = build(tmp_path, "a: a.safetensors, te: te.safetensors", "{ from: a, replace: { clip_l: te } }")
    own = clip_l(prefix)
    assert all(made[n].tobytes() == own[n].numpy().tobytes() for n in made if n in own)


def test_what_is_said_to_be_a_model_is_taken_for_one(tmp_path: Path) -> None:
    save_file({"emb_params": zeros(2, 768)}, tmp_path / "x.safetensors")
    source = "{ path: x.safetensors, kind: model }"
    assert set(build(tmp_path, f"x: {source}, y: {source}", "x*0.5 + y*0.5")) == {"emb_params"}


def test_the_state_of_an_optimizer_alone_is_no_model(tmp_path: Path) -> None:
    torch.save({"state": {0: {"exp_avg": zeros(2)}}, "param_groups": [{"lr": 0.1}]}, tmp_path / "x.optim")
    with pytest.raises(MergeflowError, match="the state of an optimizer"):
        build(tmp_path, "x: x.optim", "x")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("lora", "kind: lora is not in this version"),
        ("LyCORIS", "kind: lycoris is not in this version"),
        ("embedding", "an embedding is a word for prompts"),
        ("hypernetwork", "acts between the layers"),
        ("text_encoder", "`replace: { text_encoder: a_source }`"),
        ("upscaler", "merge with their like"),
        ("checkpoint", "kind: model"),
    ],
)
def test_kinds_that_a_recipe_cannot_say(tmp_path: Path, kind: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        build(tmp_path, f"x: {{ path: x.safetensors, kind: {kind} }}", "x")
    assert said in str(caught.value)
