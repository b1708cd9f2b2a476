"""The names and shapes of a Stable Diffusion XL checkpoint, made by the rules that its networks are built by: all 2,515
tensors of the base model, which are 6.94 GB in float16."""

from collections.abc import Iterator

from bench import sd15
from bench.sd15 import Row, linear, norm

CLIP_L = "conditioner.embedders.0.transformer.text_model."
CLIP_G = "conditioner.embedders.1.model."
POSITION_IDS = CLIP_L + "embeddings.position_ids"  # the one integer tensor
WIDTHS, DEPTHS, CONTEXT, LABEL = (320, 640, 1280), (0, 2, 10), 2048, 2816


def tensors() -> Iterator[Row]:
    """All tensors of the checkpoint."""
    yield from sd15.clip(model=CLIP_L)
    yield from open_clip()
    yield from sd15.vae()
    yield from sd15.unet(WIDTHS, DEPTHS, CONTEXT, LABEL)


def open_clip(width: int = 1280, layers: int = 32) -> Iterator[Row]:
    """The second text encoder, OpenCLIP ViT-bigG/14."""
    yield CLIP_G + "token_embedding.weight", (49408, width)
    yield CLIP_G + "positional_embedding", (77, width)
    yield CLIP_G + "text_projection", (width, width)
    yield CLIP_G + "logit_scale", ()
    for layer in range(layers):
        at = f"{CLIP_G}transformer.resblocks.{layer}."
        yield at + "attn.in_proj_weight", (3 * width, width)
        yield at + "attn.in_proj_bias", (3 * width,)
        yield from linear(at + "attn.out_proj", width, width)
        yield from linear(at + "mlp.c_fc", 4 * width, width)
        yield from linear(at + "mlp.c_proj", width, 4 * width)
        yield from norm(at + "ln_1", width)
        yield from norm(at + "ln_2", width)
    yield from norm(CLIP_G + "ln_final", width)
