"""One tensor, several names: what files of other tools call the tensors of an architecture.

All renamings here are one to one and keep every byte; that is what makes them safe to apply without being asked. They
are kept as beginnings of names (`down_blocks.0.resnets.0.norm1.` is `….input_blocks.1.0.in_layers.0.` here), the
longest beginning wins. Not renamed is what has no counterpart of its own: OpenCLIP keeps q, k and v in one tensor and
transformers in three, and so do Flux and SD 3 with their own names and diffusers'.

One renaming changes a shape: the attention of a VAE is a matrix to diffusers and a convolution of 1×1 to everybody
else. The bytes are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

Shape = tuple[int, ...]

# Inside a residual block: diffusers' names, and those of everybody else.
_RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE_RESIDUAL = {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {"conv_shortcut": "nin_shortcut"}
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    # until diffusers 0.17
    "query": "q",
    "key": "k",
    "value": "v",
    "proj_attn": "proj_out",
}
_CLIP = ("embeddings", "encoder.layers", "final_layer_norm")  # without text_model. since transformers 5
_MATRICES = tuple(f".mid.attn_1.{layer}.weight" for layer in ("q", "k", "v", "proj_out"))
_VAE_LEVELS = 4

Pairs = Iterator[tuple[str, str]]  # diffusers' beginning of a name, and ours, without what the whole file puts before


class Alias(NamedTuple):
    """What a tensor is called here, and its shape here; another shape has the same elements in the same order."""

    name: str
    shape: Shape


@dataclass(frozen=True)  # without slots: what is derived is kept in the instance
class Aliases:
    """How an architecture's tensors are called elsewhere.

    `prefixes`: beginnings of names, and what they are here. `unet` and `vae`: what comes before the UNet's and the
    VAE's own names here, None where diffusers' names have no counterpart. `attention`: which levels of the UNet have
    attention, first to last. `folders`: the other folders of a diffusers model, and what they are here.
    """

    prefixes: Mapping[str, str] = field(default_factory=dict)
    unet: str | None = None
    attention: tuple[bool, ...] = ()
    vae: str | None = None
    folders: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def here(self) -> Mapping[str, str]:
        """Every beginning that is another one here."""
        table = dict(self.prefixes)
        if self.unet is not None:
            for theirs, ours in _unet(self.attention):
                table[theirs] = table["unet." + theirs] = self.unet + ours
        if self.vae is not None:
            for theirs, ours in _vae():
                table[theirs] = table["vae." + theirs] = self.vae + ours
        for folder, ours in self.folders.items():
            table[f"{folder}."] = ours
            for part in _CLIP:
                table[f"{folder}.{part}."] = f"{ours}text_model.{part}."
        return table

    @cached_property
    def there(self) -> Mapping[str, str]:
        """Every beginning here that diffusers has a name for, with the name of the folder first."""
        table = {ours: f"{folder}." for folder, ours in self.folders.items()}
        if self.unet is not None:
            table |= {self.unet + ours: "unet." + theirs for theirs, ours in _unet(self.attention)}
        if self.vae is not None:  # turned around, so that of several names for the same the first one holds
            table |= {self.vae + ours: "vae." + theirs for theirs, ours in reversed([*_vae()])}
        return table

    @cached_property
    def heads(self) -> frozenset[str]:
        return frozenset(prefix.partition(".")[0] for prefix in self.here)

    @cached_property
    def known_heads(self) -> frozenset[str]:
        """What a name begins with, up to its first dot, when it can concern any of this."""
        return self.heads | {prefix.partition(".")[0] for prefix in (self.unet, self.vae) if prefix}

    def canonical_shape(self, name: str, shape: Shape) -> Shape:
        """The shape that the tensor of this name (one of ours) has here."""
        return (*shape, 1, 1) if len(shape) == 2 and self._is_matrix(name) else shape

    def their_shape(self, name: str, shape: Shape) -> Shape:
        """The shape that diffusers gives the tensor of this name (one of ours)."""
        return shape[:2] if shape[2:] == (1, 1) and self._is_matrix(name) else shape

    def _is_matrix(self, name: str) -> bool:
        """Whether diffusers has a matrix where we have a convolution of 1×1."""
        return self.vae is not None and name.endswith(_MATRICES) and name.startswith(self.vae)


def canonical(aliases: Aliases, shapes: Mapping[str, Shape]) -> Mapping[str, Alias]:
    """The tensors that have another name or another shape here, and which. Empty if all are as they should be.

    No two tensors get one name: where a file has a tensor under its name here already, the others stay as they are.
    """
    heads, here = aliases.heads, aliases.here
    found: dict[str, Alias] = {}
    taken: set[str] = set()
    for name, shape in shapes.items():
        ours = name
        if name.partition(".")[0] in heads:
            ours = _renamed(name, here) or name
        as_here = aliases.canonical_shape(ours, shape)
        if ours == name:
            if as_here == shape:
                continue
        elif ours in shapes or ours in taken:
            continue
        taken.add(ours)
        found[name] = Alias(ours, as_here)
    return found


def to_diffusers(aliases: Aliases, shapes: Mapping[str, Shape]) -> Mapping[str, Alias]:
    """What diffusers calls the tensors (named as here), with the folder first: `unet.conv_in.weight`.

    Tensors that have no counterpart of their own there are left out.
    """
    renamed = ((name, shape, _renamed(name, aliases.there)) for name, shape in shapes.items())
    return {name: Alias(theirs, aliases.their_shape(name, shape)) for name, shape, theirs in renamed if theirs}


def _renamed(name: str, prefixes: Mapping[str, str]) -> str | None:
    """The name, or its longest known beginning, replaced."""
    if (other := prefixes.get(name)) is not None:
        return other
    end = name.rfind(".")
    while end >= 0:
        if (other := prefixes.get(name[: end + 1])) is not None:
            return other + name[end + 1 :]
        end = name.rfind(".", 0, end)
    return None


def _unet(attention: tuple[bool, ...]) -> Pairs:
    """Two residual blocks a level on the way down, three on the way up; the last block of a level resizes."""
    last = len(attention) - 1
    for theirs, ours in _ENDS.items():
        yield f"{theirs}.", f"{ours}."
    for level, attends in enumerate(attention):
        for i in range(2):
            block = f"input_blocks.{3 * level + i + 1}"
            yield from _inside(f"down_blocks.{level}.resnets.{i}", f"{block}.0", _RESIDUAL)
            if attends:
                yield f"down_blocks.{level}.attentions.{i}.", f"{block}.1."
        if level < last:
            yield f"down_blocks.{level}.downsamplers.0.conv.", f"input_blocks.{3 * level + 3}.0.op."
    yield from _inside("mid_block.resnets.0", "middle_block.0", _RESIDUAL)
    yield "mid_block.attentions.0.", "middle_block.1."
    yield from _inside("mid_block.resnets.1", "middle_block.2", _RESIDUAL)
    for level, attends in enumerate(reversed(attention)):
        for i in range(3):
            block = f"output_blocks.{3 * level + i}"
            yield from _inside(f"up_blocks.{level}.resnets.{i}", f"{block}.0", _RESIDUAL)
            if attends:
                yield f"up_blocks.{level}.attentions.{i}.", f"{block}.1."
        if level < last:
            yield f"up_blocks.{level}.upsamplers.0.conv.", f"output_blocks.{3 * level + 2}.{1 + attends}.conv."


def _vae() -> Pairs:
    """Here the decoder's levels are counted from the image inwards, there from the inside out."""
    for name in ("quant_conv.", "post_quant_conv."):
        yield name, name
    for half, blocks, theirs, ours, resize in (
        ("encoder", 2, "down_blocks", "down", "downsample"),
        ("decoder", 3, "up_blocks", "up", "upsample"),
    ):
        for name, other in (("conv_in", "conv_in"), ("conv_out", "conv_out"), ("conv_norm_out", "norm_out")):
            yield f"{half}.{name}.", f"{half}.{other}."
        for i in range(2):
            yield from _inside(f"{half}.mid_block.resnets.{i}", f"{half}.mid.block_{i + 1}", _VAE_RESIDUAL)
        yield from _inside(f"{half}.mid_block.attentions.0", f"{half}.mid.attn_1", _VAE_ATTENTION)
        for level in range(_VAE_LEVELS):
            here = f"{half}.{ours}.{level if half == 'encoder' else _VAE_LEVELS - 1 - level}"
            for i in range(blocks):
                yield from _inside(f"{half}.{theirs}.{level}.resnets.{i}", f"{here}.block.{i}", _VAE_RESIDUAL)
            yield f"{half}.{theirs}.{level}.{resize}rs.0.conv.", f"{here}.{resize}.conv."


def _inside(theirs: str, ours: str, names: Mapping[str, str]) -> Pairs:
    for name, other in names.items():
        yield f"{theirs}.{name}.", f"{ours}.{other}."
