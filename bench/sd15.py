"""The names and shapes of a Stable Diffusion 1.5 checkpoint, made by the rules that its network is built by.

One generator per component; each yields (name, shape) pairs. `tensors()` is all 1,131 of them.
"""

from collections.abc import Iterator

Row = tuple[str, tuple[int, ...]]

CLIP = "cond_stage_model.transformer.text_model."
VAE = "first_stage_model."
UNET = "model.diffusion_model."
POSITION_IDS = CLIP + "embeddings.position_ids"  # the one integer tensor


def tensors() -> Iterator[Row]:
    """All tensors of the checkpoint."""
    yield from clip()
    yield from vae()
    yield from unet()


def linear(name: str, width_out: int, width_in: int, *, bias: bool = True) -> Iterator[Row]:
    yield name + ".weight", (width_out, width_in)
    if bias:
        yield name + ".bias", (width_out,)


def conv(name: str, width_out: int, width_in: int, kernel: int = 3) -> Iterator[Row]:
    yield name + ".weight", (width_out, width_in, kernel, kernel)
    yield name + ".bias", (width_out,)


def norm(name: str, width: int) -> Iterator[Row]:
    yield name + ".weight", (width,)
    yield name + ".bias", (width,)


def clip(width: int = 768, layers: int = 12, model: str = CLIP) -> Iterator[Row]:
    """The text encoder, CLIP ViT-L/14."""
    yield model + "embeddings.token_embedding.weight", (49408, width)
    yield model + "embeddings.position_embedding.weight", (77, width)
    yield model + "embeddings.position_ids", (1, 77)
    for layer in range(layers):
        at = f"{model}encoder.layers.{layer}."
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from linear(f"{at}self_attn.{part}", width, width)
        yield from linear(at + "mlp.fc1", 4 * width, width)
        yield from linear(at + "mlp.fc2", width, 4 * width)
        yield from norm(at + "layer_norm1", width)
        yield from norm(at + "layer_norm2", width)
    yield from norm(model + "final_layer_norm", width)


def vae(widths: tuple[int, ...] = (128, 256, 512, 512)) -> Iterator[Row]:
    """The autoencoder: encoder, decoder and the two 1x1 convolutions between them."""
    encoder, decoder, last = VAE + "encoder.", VAE + "decoder.", len(widths) - 1
    yield from conv(encoder + "conv_in", widths[0], 3)
    width = widths[0]
    for level, wide in enumerate(widths):
        for block in range(2):
            yield from vae_block(f"{encoder}down.{level}.block.{block}", wide, width)
            width = wide
        if level < last:
            yield from conv(f"{encoder}down.{level}.downsample.conv", wide, wide)
    yield from vae_middle(encoder, width)
    yield from conv(encoder + "conv_out", 8, width)

    yield from conv(decoder + "conv_in", width, 4)
    yield from vae_middle(decoder, width)
    for level, wide in reversed(list(enumerate(widths))):
        for block in range(3):
            yield from vae_block(f"{decoder}up.{level}.block.{block}", wide, width)
            width = wide
        if level > 0:
            yield from conv(f"{decoder}up.{level}.upsample.conv", wide, wide)
    yield from norm(decoder + "norm_out", width)
    yield from conv(decoder + "conv_out", 3, width)

    yield from conv(VAE + "quant_conv", 8, 8, 1)
    yield from conv(VAE + "post_quant_conv", 4, 4, 1)


def vae_block(name: str, width_out: int, width_in: int) -> Iterator[Row]:
    yield from norm(name + ".norm1", width_in)
    yield from conv(name + ".conv1", width_out, width_in)
    yield from norm(name + ".norm2", width_out)
    yield from conv(name + ".conv2", width_out, width_out)
    if width_in != width_out:
        yield from conv(name + ".nin_shortcut", width_out, width_in, 1)


def vae_middle(half: str, width: int) -> Iterator[Row]:
    """The middle of the encoder or decoder, with the encoder's last norm (the decoder's has another width)."""
    yield from vae_block(half + "mid.block_1", width, width)
    yield from norm(half + "mid.attn_1.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        yield from conv(f"{half}mid.attn_1.{part}", width, width, 1)
    yield from vae_block(half + "mid.block_2", width, width)
    if half.endswith("encoder."):
        yield from norm(half + "norm_out", width)


def unet(
    widths: tuple[int, ...] = (320, 640, 1280, 1280), depths: tuple[int, ...] = (1, 1, 1, 0), context: int = 768,
    label: int = 0,
) -> Iterator[Row]:  # fmt: skip
    """The diffusion network: blocks in, a middle, and blocks out that also take the blocks in as skips. `depths`:
    transformer blocks of each level, the deepest of which the middle has too; `label`: width of what is embedded
    besides the time."""
    first, last = widths[0], len(widths) - 1
    yield from linear(UNET + "time_embed.0", 4 * first, first)
    yield from linear(UNET + "time_embed.2", 4 * first, 4 * first)
    if label:
        yield from linear(UNET + "label_emb.0.0", 4 * first, label)
        yield from linear(UNET + "label_emb.0.2", 4 * first, 4 * first)
    yield from conv(UNET + "input_blocks.0.0", first, 4)
    width, skips = first, [first]
    for level, wide in enumerate(widths):
        for _ in range(2):
            at = f"{UNET}input_blocks.{len(skips)}."
            yield from residual(at + "0", wide, width)
            if depths[level]:
                yield from transformer(at + "1", wide, context, depths[level])
            width = wide
            skips.append(wide)
        if level < last:
            yield from conv(f"{UNET}input_blocks.{len(skips)}.0.op", wide, wide)
            skips.append(wide)

    yield from residual(UNET + "middle_block.0", width, width)
    yield from transformer(UNET + "middle_block.1", width, context, max(depths))
    yield from residual(UNET + "middle_block.2", width, width)

    block = 0
    for level, wide in reversed(list(enumerate(widths))):
        for turn in range(3):
            at = f"{UNET}output_blocks.{block}."
            yield from residual(at + "0", wide, width + skips.pop())
            if depths[level]:
                yield from transformer(at + "1", wide, context, depths[level])
            if level > 0 and turn == 2:
                yield from conv(f"{at}{2 if depths[level] else 1}.conv", wide, wide)
            width = wide
            block += 1
    yield from norm(UNET + "out.0", first)
    yield from conv(UNET + "out.2", 4, first)


def residual(name: str, width_out: int, width_in: int, embedding: int = 1280) -> Iterator[Row]:
    yield from norm(name + ".in_layers.0", width_in)
    yield from conv(name + ".in_layers.2", width_out, width_in)
    yield from linear(name + ".emb_layers.1", width_out, embedding)
    yield from norm(name + ".out_layers.0", width_out)
    yield from conv(name + ".out_layers.3", width_out, width_out)
    if width_in != width_out:
        yield from conv(name + ".skip_connection", width_out, width_in, 1)


def transformer(name: str, width: int, context: int, depth: int) -> Iterator[Row]:
    """Around the blocks there are matrices where the text is that of two encoders, else convolutions of 1 by 1."""
    yield from norm(name + ".norm", width)
    around = linear if context > 1024 else _pointwise
    yield from around(name + ".proj_in", width, width)
    for block in range(depth):
        at = f"{name}.transformer_blocks.{block}."
        for attention, seen in (("attn1", width), ("attn2", context)):
            yield from linear(f"{at}{attention}.to_q", width, width, bias=False)
            yield from linear(f"{at}{attention}.to_k", width, seen, bias=False)
            yield from linear(f"{at}{attention}.to_v", width, seen, bias=False)
            yield from linear(f"{at}{attention}.to_out.0", width, width)
        yield from linear(at + "ff.net.0.proj", 8 * width, width)
        yield from linear(at + "ff.net.2", width, 4 * width)
        for number in (1, 2, 3):
            yield from norm(f"{at}norm{number}", width)
    yield from around(name + ".proj_out", width, width)


def _pointwise(name: str, width_out: int, width_in: int) -> Iterator[Row]:
    yield from conv(name, width_out, width_in, 1)
