"""The tensors that a complete model has, names and shapes, made by the rules that its network is built by.

Known for the diffusion models whose published sizes the rules have been checked against (tests/check); of the others
nothing is expected. What tools and versions leave out or add without harm is here too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache

from mergeflow.arch.contents import CHANNELS, FIRST

Shape = tuple[int, ...]
Rows = Iterator[tuple[str, Shape]]

UNET, VAE = "model.diffusion_model.", "first_stage_model."
_CLIP_L = "cond_stage_model.transformer.text_model."
_MAY_LACK = ("position_ids", "text_projection", "logit_scale", "attn_mask")  # endings
_MAY_HAVE = (*_MAY_LACK, "text_projection.weight", "logvar", "lvlb_weights", "denoiser.sigmas")
_LAST_LAYER = "cond_stage_model.model.transformer.resblocks.23."  # SD 2 reads the layer before it


@cache
def expected(architecture: str) -> Mapping[str, Shape]:
    """All tensors of a complete model of this architecture; empty where they are not known."""
    if architecture not in _MODELS:
        return {}
    return dict(_MODELS[architecture]())


@cache
def expected_vae(channels: int) -> Mapping[str, Shape]:
    """All tensors of an autoencoder alone, of 4 (SD 1 to XL) or 16 channels (SD 3, Flux); of others none."""
    return dict(_vae("", channels)) if channels in (4, 16) else {}


def may_lack(tensor: str) -> bool:
    """Whether complete models are published without this tensor."""
    return tensor.endswith(_MAY_LACK) or tensor.startswith(_LAST_LAYER)


def may_have(tensor: str) -> bool:
    """Whether complete models are published with this tensor, though nothing of them needs it."""
    return tensor.endswith(_MAY_HAVE)


def fits(tensor: str, shape: Shape, wanted: Shape) -> bool:
    """Whether the shape is right; variants of a network take more channels in."""
    if tensor in FIRST and len(shape) == 4:
        return shape[1] in (4, *CHANNELS) and shape[:1] + shape[2:] == wanted[:1] + wanted[2:]
    return shape == wanted


def _linear(name: str, out: int, width: int, *, bias: bool = True) -> Rows:
    yield name + ".weight", (out, width)
    if bias:
        yield name + ".bias", (out,)


def _conv(name: str, out: int, width: int, kernel: int = 3) -> Rows:
    yield name + ".weight", (out, width, kernel, kernel)
    yield name + ".bias", (out,)


def _norm(name: str, width: int) -> Rows:
    yield name + ".weight", (width,)
    yield name + ".bias", (width,)


def _unet(
    widths: tuple[int, ...], depths: tuple[int, ...], middle: int, context: int, *, linear: bool, label: int = 0
) -> Rows:
    """Two residual blocks a level on the way down, three on the way up, which also take what came down as skips."""
    first, last = widths[0], len(widths) - 1
    time = 4 * first

    def residual(name: str, out: int, width: int) -> Rows:
        yield from _norm(name + ".in_layers.0", width)
        yield from _conv(name + ".in_layers.2", out, width)
        yield from _linear(name + ".emb_layers.1", out, time)
        yield from _norm(name + ".out_layers.0", out)
        yield from _conv(name + ".out_layers.3", out, out)
        if width != out:
            yield from _conv(name + ".skip_connection", out, width, 1)

    def attention(name: str, width: int, depth: int) -> Rows:
        yield from _norm(name + ".norm", width)
        for end in ("proj_in", "proj_out"):
            yield from _linear(f"{name}.{end}", width, width) if linear else _conv(f"{name}.{end}", width, width, 1)
        for i in range(depth):
            at = f"{name}.transformer_blocks.{i}."
            for part, seen in (("attn1", width), ("attn2", context)):
                yield from _linear(f"{at}{part}.to_q", width, width, bias=False)
                yield from _linear(f"{at}{part}.to_k", width, seen, bias=False)
                yield from _linear(f"{at}{part}.to_v", width, seen, bias=False)
                yield from _linear(f"{at}{part}.to_out.0", width, width)
            yield from _linear(at + "ff.net.0.proj", 8 * width, width)
            yield from _linear(at + "ff.net.2", width, 4 * width)
            for number in (1, 2, 3):
                yield from _norm(f"{at}norm{number}", width)

    yield from _linear(UNET + "time_embed.0", time, first)
    yield from _linear(UNET + "time_embed.2", time, time)
    if label:
        yield from _linear(UNET + "label_emb.0.0", time, label)
        yield from _linear(UNET + "label_emb.0.2", time, time)
    yield from _conv(UNET + "input_blocks.0.0", first, 4)
    width, skips = first, [first]
    for level, wide in enumerate(widths):
        for _ in range(2):
            at = f"{UNET}input_blocks.{len(skips)}."
            yield from residual(at + "0", wide, width)
            if depths[level]:
                yield from attention(at + "1", wide, depths[level])
            width = wide
            skips.append(wide)
        if level < last:
            yield from _conv(f"{UNET}input_blocks.{len(skips)}.0.op", wide, wide)
            skips.append(wide)
    yield from residual(UNET + "middle_block.0", width, width)
    yield from attention(UNET + "middle_block.1", width, middle)
    yield from residual(UNET + "middle_block.2", width, width)
    block = 0
    for level, wide in reversed(list(enumerate(widths))):
        for turn in range(3):
            at = f"{UNET}output_blocks.{block}."
            yield from residual(at + "0", wide, width + skips.pop())
            if depths[level]:
                yield from attention(at + "1", wide, depths[level])
            if level and turn == 2:
                yield from _conv(f"{at}{2 if depths[level] else 1}.conv", wide, wide)
            width = wide
            block += 1
    yield from _norm(UNET + "out.0", first)
    yield from _conv(UNET + "out.2", 4, first)


def _vae(prefix: str = VAE, channels: int = 4) -> Rows:
    """An autoencoder: two halves; with 4 channels, two 1×1 convolutions between them, which later ones have not."""
    widths = (128, 256, 512, 512)
    for half, side, blocks in (("encoder", "down", 2), ("decoder", "up", 3)):
        at, inwards = f"{prefix}{half}.", half == "encoder"
        width = widths[0] if inwards else widths[-1]
        yield from _conv(at + "conv_in", width, 3 if inwards else channels)
        levels = list(enumerate(widths))
        for level, wide in levels if inwards else reversed(levels):
            for block in range(blocks):
                yield from _vae_block(f"{at}{side}.{level}.block.{block}", wide, width)
                width = wide
            if level != (3 if inwards else 0):
                yield from _conv(f"{at}{side}.{level}.{'downsample' if inwards else 'upsample'}.conv", wide, wide)
        yield from _vae_block(at + "mid.block_1", 512, 512)
        yield from _norm(at + "mid.attn_1.norm", 512)
        for part in ("q", "k", "v", "proj_out"):
            yield from _conv(f"{at}mid.attn_1.{part}", 512, 512, 1)
        yield from _vae_block(at + "mid.block_2", 512, 512)
        yield from _norm(at + "norm_out", width)
        yield from _conv(at + "conv_out", 2 * channels if inwards else 3, width)
    if channels == 4:
        yield from _conv(prefix + "quant_conv", 8, 8, 1)
        yield from _conv(prefix + "post_quant_conv", 4, 4, 1)


def _vae_block(name: str, out: int, width: int) -> Rows:
    yield from _norm(name + ".norm1", width)
    yield from _conv(name + ".conv1", out, width)
    yield from _norm(name + ".norm2", out)
    yield from _conv(name + ".conv2", out, out)
    if width != out:
        yield from _conv(name + ".nin_shortcut", out, width, 1)


def _clip_l(at: str) -> Rows:
    """CLIP ViT-L/14 under the names of transformers."""
    width = 768
    yield at + "embeddings.token_embedding.weight", (49408, width)
    yield at + "embeddings.position_embedding.weight", (77, width)
    yield at + "embeddings.position_ids", (1, 77)
    for i in range(12):
        layer = f"{at}encoder.layers.{i}."
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _linear(f"{layer}self_attn.{part}", width, width)
        yield from _linear(layer + "mlp.fc1", 4 * width, width)
        yield from _linear(layer + "mlp.fc2", width, 4 * width)
        yield from _norm(layer + "layer_norm1", width)
        yield from _norm(layer + "layer_norm2", width)
    yield from _norm(at + "final_layer_norm", width)


def _open_clip(at: str, width: int, layers: int) -> Rows:
    yield at + "positional_embedding", (77, width)
    yield at + "token_embedding.weight", (49408, width)
    yield at + "text_projection", (width, width)
    yield at + "logit_scale", ()
    for i in range(layers):
        block = f"{at}transformer.resblocks.{i}."
        yield from _norm(block + "ln_1", width)
        yield block + "attn.in_proj_weight", (3 * width, width)
        yield block + "attn.in_proj_bias", (3 * width,)
        yield from _linear(block + "attn.out_proj", width, width)
        yield from _norm(block + "ln_2", width)
        yield from _linear(block + "mlp.c_fc", 4 * width, width)
        yield from _linear(block + "mlp.c_proj", width, 4 * width)
    yield from _norm(at + "ln_final", width)


def _sd1() -> Rows:
    yield from _unet((320, 640, 1280, 1280), (1, 1, 1, 0), 1, 768, linear=False)
    yield from _vae()
    yield from _clip_l(_CLIP_L)


def _sd2() -> Rows:
    yield from _unet((320, 640, 1280, 1280), (1, 1, 1, 0), 1, 1024, linear=True)
    yield from _vae()
    yield from _open_clip("cond_stage_model.model.", 1024, 24)


def _sdxl() -> Rows:
    yield from _unet((320, 640, 1280), (0, 2, 10), 10, 2048, linear=True, label=2816)
    yield from _vae()
    yield from _clip_l("conditioner.embedders.0.transformer.text_model.")
    yield from _open_clip("conditioner.embedders.1.model.", 1280, 32)


def _sdxl_refiner() -> Rows:
    yield from _unet((384, 768, 1536, 1536), (0, 4, 4, 0), 4, 1280, linear=True, label=2560)
    yield from _vae()
    yield from _open_clip("conditioner.embedders.0.model.", 1280, 32)


_MODELS = {"sd1": _sd1, "sd2": _sd2, "sdxl": _sdxl, "sdxl-refiner": _sdxl_refiner}
