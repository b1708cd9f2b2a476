"""Files that are no whole models: what they are, told from names and shapes, and what can be done with them.

Some of them merge with their like, as models do (two VAEs, two upscalers of one structure). Others are not merged by
adding their tensors: the sum of two LoRAs' factors is not the sum of what they do, and a hypernetwork acts between
layers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from mergeflow.arch import adapters
from mergeflow.arch.aliases import Alias
from mergeflow.arch.base import UNKNOWN, Architecture
from mergeflow.arch.contents import junk
from mergeflow.arch.detect import VAE, recognise

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
Facts = dict[str, str]


@dataclass(frozen=True, slots=True)
class Kind:
    """`name` is the word for it, `title` says it with an article, `why` what gave it away, `facts` what else its header
    tells, `use` what can be done with it. `merges`: with others of its kind, tensor by tensor."""

    name: str
    title: str
    why: str
    facts: Mapping[str, str]
    use: str
    merges: bool

    @property
    def told(self) -> str:
        """In one line: a LoRA (rank 32, for Stable Diffusion 1)."""
        brief = [self.facts[key] if key == "for" else f"{key} {value}" for key, value in self.facts.items()]
        return f"{self.title} ({', '.join(brief)})" if brief else self.title


_BESIDE = "it works beside a model while images are made"
_WORDS = {  # title; whether such files merge with each other; what can be done with one
    "vae": ("a VAE", True, "`replace: { vae: … }` puts it into a model, and VAEs merge with each other"),
    "text encoder": ("a text encoder alone", True, "`replace:` puts it into a model, under the component's name"),
    "lora": (
        "a LoRA",
        False,
        "it is a change to a model, in factors: bake it into one with another tool, and merge the result",
    ),
    "hypernetwork": ("a hypernetwork", False, f"{_BESIDE}, between its layers: choose it there, with its strength"),
    "embedding": (
        "a textual inversion embedding",
        False,
        "it is a word for prompts and no part of a checkpoint: put it into the folder of embeddings",
    ),
    "controlnet": ("a ControlNet", True, f"{_BESIDE}; ControlNets merge with each other"),
    "t2i-adapter": ("a T2I-Adapter", True, f"{_BESIDE}; adapters merge with each other"),
    "upscaler": ("an upscaler", True, "it enlarges finished images; upscalers of one structure merge with each other"),
    "training state": ("the state of a training", False, "it has no weights of a model: those are in another file"),
}
_BY_WIDTH = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL"}
_CLIPS = {768: "CLIP-L", 1024: "OpenCLIP-H", 1280: "OpenCLIP-G", 4096: "T5-XXL"}
_ATTENDS = re.compile(r"attn2[._]to_k\.weight\Z")
_OF_IMAGES = re.compile(
    r"diffusion_model\.|first_stage_model\.|\b(?:unet|vae|transformer_blocks|double_blocks|joint_blocks|down_blocks)\."
)
_TEXT_LAYER = re.compile(
    r"(?:.*\.)?(?:text_model\.)?(?:encoder\.layers|transformer\.resblocks|encoder\.block|layers)\.([0-9]+)\."
)
_TEXT_SIGNS = (
    "encoder.layers.0.self_attn.q_proj.weight",
    "transformer.resblocks.0.attn.in_proj_weight",
    "encoder.block.0.layer.0.SelfAttention.q.weight",
)


@dataclass(frozen=True, slots=True)
class Header:
    """What a header tells. `aliases` are what its tensors are called in the architecture; `kind`: None of a model."""

    architecture: Architecture
    reason: str
    aliases: Mapping[str, Alias]
    kind: Kind | None


def understand(shapes: Shapes, told: Mapping[str, str], extras: Mapping[str, str]) -> Header:
    """What a file is. `told` is what the form of its pickle said (formats.stored.Contents.other), `extras` what lies
    beside the tensors."""
    architecture, reason, aliases = recognise(shapes)
    if architecture.name == VAE:
        kind = vae_kind(shapes, "it has both halves of an autoencoder and nothing else")
        return Header(architecture, reason, aliases, kind)
    found = kind_of(shapes, told, extras)
    if found is not None and found.name != "text encoder":  # a ControlNet has the names of the network it goes with
        return Header(UNKNOWN, f"it is {found.title}", {}, found)
    return Header(architecture, reason, aliases, found)


def vae_kind(shapes: Shapes, why: str) -> Kind:
    ends = [s for n, s in shapes.items() if n.endswith("decoder.conv_in.weight") and len(s) == 4]
    return _made("vae", why, {"channels": str(ends[0][1])} if ends else {})


def kind_of(shapes: Shapes, told: Mapping[str, str], extras: Mapping[str, str]) -> Kind | None:
    """What the file is, or None for a model (or what might be one). VAEs are not told here: see `understand`."""
    for name, look in _LOOKS.items():
        found = look(shapes, told, extras)
        if found is not None:
            return _made(name, *found)
    return None


def _made(name: str, why: str, facts: Facts) -> Kind:
    title, merges, use = _WORDS[name]
    return Kind(name, title, why, facts, use, merges)


Found = tuple[str, Facts] | None


def _lora(shapes: Shapes, told: Mapping[str, str], extras: Mapping[str, str]) -> Found:
    sign = adapters.sign(shapes)
    return None if sign is None else (f"it has {sign}", adapters.facts(shapes))


def _hypernetwork(shapes: Shapes, told: Mapping[str, str], extras: Mapping[str, str]) -> Found:
    """Tensors are called SIZE.0.… (for the keys of attention) and SIZE.1.… (for the values)."""
    if "hypernetwork" not in told:
        return None
    sizes = sorted({int(name.partition(".")[0]) for name in shapes})
    # In the order of the names: linear.0, linear.1, or linear1, linear2. NAI's were 1 wide, 2 wide, 1 wide.
    names = sorted(name for name in shapes if name.startswith(f"{sizes[0]}.0.") and len(shapes[name]) == 2)
    widths = [shapes[names[0]][1], *(shapes[name][0] for name in names)] if names else []
    facts = {"sizes": ", ".join(map(str, sizes))}
    if widths and sizes[0]:
        facts["layers"] = "→".join(f"{w / sizes[0]:g}" for w in widths)
    for key in ("activation_func", "name", "step"):
        if key in extras:
            facts[{"activation_func": "activation"}.get(key, key)] = extras[key]
    facts |= _for(_BY_WIDTH.get(next((size for size in sizes if size in _BY_WIDTH), 0)))
    return told["hypernetwork"], facts


def _embedding(shapes: Shapes, told: Mapping[str, str], extras: Mapping[str, str]) -> Found:
    why = told.get("textual inversion", "")
    vectors = {name: s for name, s in shapes.items() if len(s) in (1, 2)}
    if not why and not (len(shapes) == 1 and vectors and _is_vectors(*vectors.values())):
        return None
    facts: Facts = {}
    word = extras.get("name") or next((n for n in shapes if n.startswith("<")), "")
    word = word or next((n for n in shapes if n not in ("emb_params", "clip_l", "clip_g") and "." not in n), "")
    if word:
        facts["token"] = word
    facts["vectors"] = " and ".join(f"{s[0] if len(s) == 2 else 1} × {s[-1]}" for s in vectors.values())
    if "clip_g" in shapes:
        return why, facts | _for("Stable Diffusion XL")
    width = next((s[-1] for s in vectors.values()), 0)
    return why or f"its one tensor has vectors {width} wide", facts | _for(_BY_WIDTH.get(width))


def _is_vectors(shape: Shape) -> bool:
    return shape[-1] in (768, 1024) and (len(shape) == 1 or shape[0] <= 128)


def _controlnet(shapes: Shapes, told: Mapping[str, str], extras: Mapping[str, str]) -> Found:
    signs = ("control_model.", "input_hint_block.", "controlnet_cond_embedding.", "controlnet_down_blocks.")
    sign = next((n for n in shapes if n.startswith((*signs, "controlnet_blocks.")) or n == "lora_controlnet"), None)
    if sign is None or any(n.startswith("model.diffusion_model.") for n in shapes):
        return None
    return f"it has {sign}", _for(_attended(shapes))


def _adapter(shapes: Shapes, told: Mapping[str, str], extras: Mapping[str, str]) -> Found:
    """The first ones are bare, `body.0.block1.weight`; diffusers puts `adapter.` before."""
    first = shapes.get("conv_in.weight") or shapes.get("adapter.conv_in.weight") or ()
    if len(first) != 4:
        return None
    block = re.compile(r"(?:adapter\.)?body\.([0-9]+)\.(?:resnets\.[0-9]+\.)?block1\.weight")
    blocks = {int(m[1]) for n in shapes if (m := block.fullmatch(n))}
    if not blocks:
        return None
    facts = {"blocks": str(max(blocks) + 1), "channels": str(first[1] // 64) if first[1] % 64 == 0 else str(first[1])}
    return "it has body.0.block1.weight and the like", facts


def _upscaler(shapes: Shapes, told: Mapping[str, str], extras: Mapping[str, str]) -> Found:
    def blocks(pattern: str) -> str:
        return str(1 + max((int(m[1]) for n in shapes if (m := re.match(pattern, n))), default=-1))

    first = shapes.get("conv_first.weight", ())
    if "body.0.rdb1.conv1.weight" in shapes and len(first) == 4:
        doubled = sum(1 for n in shapes if re.fullmatch(r"conv_up[0-9]\.weight", n))
        scale = 2**doubled // {12: 2, 48: 4}.get(first[1], 1)  # the image is folded into 4 or 16 times the channels
        facts = {"network": "ESRGAN", "scale": f"×{scale}", "blocks": blocks(r"body\.([0-9]+)\.")}
        return "it has body.0.rdb1.conv1.weight", facts
    if "model.1.sub.0.RDB1.conv1.0.weight" in shapes:
        facts = {"network": "ESRGAN", "blocks": str(int(blocks(r"model\.1\.sub\.([0-9]+)\.")) - 1)}
        return "it has model.1.sub.0.RDB1.conv1.0.weight", facts
    if len(first) == 4 and any(n.startswith("layers.0.residual_group.") for n in shapes):
        return "it has layers.0.residual_group…", {"network": "SwinIR or one of its kind"}
    compact = shapes.get("body.0.weight", ()), shapes.get("body.1.weight", ())
    if [len(shape) for shape in compact] == [4, 1] and compact[0][1] == 3:
        return "it is a row of convolutions, body.0, body.1 …", {"network": "Real-ESRGAN, compact"}
    return None


def _text_encoder(shapes: Shapes, told: Mapping[str, str], extras: Mapping[str, str]) -> Found:
    signs = [n for n in shapes if n.endswith(_TEXT_SIGNS) and "vision_model." not in n and not n.startswith("visual.")]
    words = [n for n in shapes if n.endswith(("token_embedding.weight", "shared.weight"))]
    if len(signs) != 1 or len(words) != 1 or len(shapes[words[0]]) != 2 or any(map(_OF_IMAGES.search, shapes)):
        return None
    count, width = shapes[words[0]]
    layers = {int(m[1]) for n in shapes if "vision_model." not in n and (m := _TEXT_LAYER.match(n))}
    facts = {"width": str(width), "layers": str(len(layers)), "words": f"{count:,}"}
    if width in _CLIPS:
        facts = {"network": _CLIPS[width], **facts}
    if any("vision_model." in n or n.startswith("visual.") for n in shapes):
        facts["beside it"] = "an encoder of images"
    return f"it has {signs[0]}", facts


def _training(shapes: Shapes, told: Mapping[str, str], extras: Mapping[str, str]) -> Found:
    if not junk([*shapes][:1]):
        return None  # as of most files
    left = junk(shapes)
    if len(left) < len(shapes):
        return None
    return "every tensor is what a training leaves behind", {"of": ", ".join(dict.fromkeys(left.values()))}


_LOOKS: dict[str, Callable[[Shapes, Mapping[str, str], Mapping[str, str]], Found]] = {
    "hypernetwork": _hypernetwork,
    "controlnet": _controlnet,  # before LoRAs: there are ControlNets in factors
    "lora": _lora,
    "embedding": _embedding,
    "t2i-adapter": _adapter,
    "upscaler": _upscaler,
    "training state": _training,
    "text encoder": _text_encoder,
}


def _attended(shapes: Shapes) -> str | None:
    widths: Iterator[int] = (s[1] for n, s in shapes.items() if len(s) == 2 and _ATTENDS.search(n))
    return next((_BY_WIDTH[width] for width in widths if width in _BY_WIDTH), None)


def _for(title: str | None) -> Facts:
    return {"for": f"for {title}"} if title else {}
