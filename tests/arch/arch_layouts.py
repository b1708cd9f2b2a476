"""The tensor names of real checkpoints, written as rules: name -> (component, shape).

Shapes are the real ones where a width tells models apart (attention, embeddings, first and last convolutions) and a
stand-in elsewhere. The counts in test_arch.py are those of the published files.
"""

from collections.abc import Iterable, Iterator

Layout = dict[str, tuple[str | None, tuple[int, ...]]]

DDPM = (
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2",
)  # fmt: skip

Tensors = Iterator[tuple[str, tuple[int, ...]]]


def pairs(names: str, prefix: str = "") -> Tensors:
    """A weight and a bias for each of the words."""
    for name in names.split():
        yield f"{prefix}{name}.weight", (1,)
        yield f"{prefix}{name}.bias", (1,)


def under(prefix: str, tensors: Iterable[tuple[str, tuple[int, ...]]], component: str | None) -> Layout:
    return {prefix + name: (component, shape) for name, shape in tensors}


def residual(prefix: str, skip: bool) -> Tensors:
    yield from pairs("in_layers.0 in_layers.2 emb_layers.1 out_layers.0 out_layers.3", prefix)
    yield from pairs("skip_connection" if skip else "", prefix)


def attention(prefix: str, width: int, context: int, depth: int, linear: bool) -> Tensors:
    yield from pairs("norm proj_in proj_out", prefix)
    yield f"{prefix}proj_in.weight", (width, width) if linear else (width, width, 1, 1)
    for i in range(depth):
        block = f"{prefix}transformer_blocks.{i}."
        yield from pairs("norm1 norm2 norm3 ff.net.0.proj ff.net.2 attn1.to_out.0 attn2.to_out.0", block)
        for layer, source in (("attn1", width), ("attn2", context)):
            yield f"{block}{layer}.to_q.weight", (width, width)
            yield f"{block}{layer}.to_k.weight", (width, source)
            yield f"{block}{layer}.to_v.weight", (width, source)


def unet(
    widths: tuple[int, ...], depths: tuple[int, ...], middle: int, context: int, *, linear: bool, label: bool
) -> Tensors:
    """The UNet of latent diffusion: two residual blocks a level on the way down, three on the way up."""
    levels, last = list(zip(widths, depths, strict=True)), len(widths) - 1
    yield from pairs("time_embed.0 time_embed.2 out.0 out.2")
    yield from pairs("label_emb.0.0 label_emb.0.2" if label else "")
    yield "input_blocks.0.0.weight", (widths[0], 4, 3, 3)
    yield "input_blocks.0.0.bias", (widths[0],)
    block, before = 1, widths[0]
    for level, (width, depth) in enumerate(levels):
        for _ in range(2):
            yield from residual(f"input_blocks.{block}.0.", before != width)
            if depth:
                yield from attention(f"input_blocks.{block}.1.", width, context, depth, linear)
            block, before = block + 1, width
        if level < last:
            yield from pairs(f"input_blocks.{block}.0.op")
            block += 1
    yield from residual("middle_block.0.", False)
    yield from attention("middle_block.1.", widths[-1], context, middle, linear)
    yield from residual("middle_block.2.", False)
    block = 0
    for level, (width, depth) in reversed(list(enumerate(levels))):
        for i in range(3):
            yield from residual(f"output_blocks.{block}.0.", True)
            if depth:
                yield from attention(f"output_blocks.{block}.1.", width, context, depth, linear)
            if level and i == 2:
                yield from pairs(f"output_blocks.{block}.{2 if depth else 1}.conv")
            block += 1


def autoencoder(channels: int, quantiser: bool) -> Tensors:
    for side, blocks, resample, shortcuts in (
        ("encoder.down", 2, "downsample", {(1, 0), (2, 0)}),
        ("decoder.up", 3, "upsample", {(0, 0), (1, 0)}),
    ):
        half = side.split(".")[0]
        yield from pairs("conv_in conv_out norm_out", f"{half}.")
        yield from pairs("norm q k v proj_out", f"{half}.mid.attn_1.")
        for block in ("mid.block_1", "mid.block_2"):
            yield from pairs("norm1 conv1 norm2 conv2", f"{half}.{block}.")
        for level in range(4):
            for i in range(blocks):
                yield from pairs("norm1 conv1 norm2 conv2", f"{side}.{level}.block.{i}.")
                yield from pairs("nin_shortcut" if (level, i) in shortcuts else "", f"{side}.{level}.block.{i}.")
            if level != (3 if half == "encoder" else 0):
                yield from pairs(f"{side}.{level}.{resample}.conv")
    yield "decoder.conv_in.weight", (512, channels, 3, 3)
    yield "encoder.conv_out.weight", (2 * channels, 512, 3, 3)
    yield from pairs("quant_conv post_quant_conv" if quantiser else "")


def clip(width: int, layers: int, ids: bool, model: str = "text_model.") -> Tensors:
    """CLIP under the names of transformers."""
    yield f"{model}embeddings.token_embedding.weight", (49408, width)
    yield f"{model}embeddings.position_embedding.weight", (77, width)
    if ids:
        yield f"{model}embeddings.position_ids", (1, 77)
    for i in range(layers):
        names = "layer_norm1 layer_norm2 mlp.fc1 mlp.fc2 self_attn.q_proj self_attn.k_proj self_attn.v_proj"
        yield from pairs(names + " self_attn.out_proj", f"{model}encoder.layers.{i}.")
    yield from pairs("final_layer_norm", model)


def open_clip(width: int, layers: int) -> Tensors:
    yield "token_embedding.weight", (49408, width)
    yield "positional_embedding", (77, width)
    yield "text_projection", (width, width)
    yield "logit_scale", ()
    for i in range(layers):
        block = f"transformer.resblocks.{i}."
        yield from pairs("ln_1 ln_2 mlp.c_fc mlp.c_proj attn.out_proj", block)
        yield block + "attn.in_proj_weight", (3 * width, width)
        yield block + "attn.in_proj_bias", (3 * width,)
    yield from pairs("ln_final")


def t5(layers: int) -> Tensors:
    yield "shared.weight", (32128, 4096)
    yield "encoder.final_layer_norm.weight", (4096,)
    yield "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", (32, 64)
    attention = ("layer_norm", "SelfAttention.q", "SelfAttention.k", "SelfAttention.v", "SelfAttention.o")
    dense = ("layer_norm", "DenseReluDense.wi_0", "DenseReluDense.wi_1", "DenseReluDense.wo")
    for i in range(layers):
        for j, names in enumerate((attention, dense)):
            for name in names:
                yield f"encoder.block.{i}.layer.{j}.{name}.weight", (1,)


def joint_blocks(blocks: int) -> Tensors:
    yield "pos_embed", (1, 36864, 1536)
    yield from pairs("context_embedder x_embedder.proj t_embedder.mlp.0 t_embedder.mlp.2 y_embedder.mlp.0")
    yield from pairs("y_embedder.mlp.2 final_layer.linear final_layer.adaLN_modulation.1")
    for i in range(blocks):
        yield from pairs("attn.qkv attn.proj mlp.fc1 mlp.fc2 adaLN_modulation.1", f"joint_blocks.{i}.x_block.")
        rest = " attn.proj mlp.fc1 mlp.fc2" if i < blocks - 1 else ""
        yield from pairs("attn.qkv adaLN_modulation.1" + rest, f"joint_blocks.{i}.context_block.")


def double_blocks(double: int, single: int) -> Tensors:
    yield from pairs("img_in txt_in final_layer.linear final_layer.adaLN_modulation.1")
    for name in ("time_in", "vector_in", "guidance_in"):
        yield from pairs("in_layer out_layer", f"{name}.")
    for i in range(double):
        for side in ("img", "txt"):
            block = f"double_blocks.{i}.{side}_"
            yield from pairs("attn.qkv attn.proj mlp.0 mlp.2 mod.lin", block)
            yield block + "attn.norm.query_norm.scale", (128,)
            yield block + "attn.norm.key_norm.scale", (128,)
    for i in range(single):
        yield from pairs("linear1 linear2 modulation.lin", f"single_blocks.{i}.")
        yield f"single_blocks.{i}.norm.query_norm.scale", (128,)
        yield f"single_blocks.{i}.norm.key_norm.scale", (128,)


def ema(layout: Layout, prefix: str = "model.") -> Layout:
    """The running averages that full training files keep: the network's names without their dots."""
    names = [n for n, (component, _) in layout.items() if component == "unet"]
    averages: Layout = {"model_ema." + n.removeprefix(prefix).replace(".", ""): ("ema", layout[n][1]) for n in names}
    return averages | {"model_ema.decay": ("ema", ()), "model_ema.num_updates": ("ema", ())}


NETWORK = "model.diffusion_model."
VAE = under("first_stage_model.", autoencoder(4, quantiser=True), "vae")
VAE16 = under("first_stage_model.", autoencoder(16, quantiser=False), "vae")
SCHEDULE: Layout = dict.fromkeys(DDPM, (None, (1000,)))
CLIP_L = list(clip(768, 12, ids=True))

SD1_UNET = under(NETWORK, unet((320, 640, 1280, 1280), (1, 1, 1, 0), 1, 768, linear=False, label=False), "unet")
SD1 = SD1_UNET | under("cond_stage_model.transformer.", CLIP_L, "clip_l") | VAE
SD2_UNET = under(NETWORK, unet((320, 640, 1280, 1280), (1, 1, 1, 0), 1, 1024, linear=True, label=False), "unet")
SD2 = SD2_UNET | under("cond_stage_model.model.", open_clip(1024, 24), "clip_h") | VAE
SDXL_UNET = under(NETWORK, unet((320, 640, 1280), (0, 2, 10), 10, 2048, linear=True, label=True), "unet")
SDXL = (
    SDXL_UNET
    | under("conditioner.embedders.0.transformer.", CLIP_L, "clip_l")
    | under("conditioner.embedders.1.model.", open_clip(1280, 32), "clip_g")
    | VAE
)
REFINER_UNET = under(NETWORK, unet((384, 768, 1536, 1536), (0, 4, 4, 0), 4, 1280, linear=True, label=True), "unet")
REFINER = REFINER_UNET | under("conditioner.embedders.0.model.", open_clip(1280, 32), "clip_g") | VAE
SD3 = (
    under(NETWORK, joint_blocks(24), "diffuser")
    | {"model.model_sampling.sigmas": ("diffuser", (1000,))}
    | under("text_encoders.clip_l.transformer.", clip(768, 12, ids=False), "clip_l")
    | under("text_encoders.clip_g.transformer.", clip(1280, 32, ids=False), "clip_g")
    | under("text_encoders.t5xxl.transformer.", t5(24), "t5")
    | {f"text_encoders.{c}.logit_scale": (c, ()) for c in ("clip_l", "clip_g")}
    | {f"text_encoders.{c}.transformer.text_projection.weight": (c, (1,)) for c in ("clip_l", "clip_g")}
    | VAE16
)
FLUX_NETWORK = under("", double_blocks(19, 38), "diffuser")
FLUX = (
    under(NETWORK, double_blocks(19, 38), "diffuser")
    | under("text_encoders.clip_l.transformer.", clip(768, 12, ids=False), "clip_l")
    | under("text_encoders.t5xxl.transformer.", t5(24), "t5")
    | under("vae.", autoencoder(16, quantiser=False), "vae")
)


def decoder(layers: int) -> Layout:
    """A language model as transformers names it."""
    layout: Layout = {
        "model.embed_tokens.weight": ("embeddings", (32000, 4096)),
        "model.norm.weight": ("norm", (4096,)),
        "lm_head.weight": ("head", (32000, 4096)),
    }
    parts = (
        "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj mlp.gate_proj mlp.up_proj mlp.down_proj"
    )
    for i in range(layers):
        for part in (*parts.split(), "input_layernorm", "post_attention_layernorm"):
            layout[f"model.layers.{i}.{part}.weight"] = ("layers", (1,))
    return layout


LLAMA = decoder(32)


def shapes(layout: Layout) -> dict[str, tuple[int, ...]]:
    """What detection is given."""
    return {name: shape for name, (_, shape) in layout.items()}
