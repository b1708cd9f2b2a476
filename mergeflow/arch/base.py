"""An architecture: which part of a model a tensor belongs to, and whether it is a buffer, told from its name.

Parts are of two kinds: components (unet, vae) and, along the network, blocks (blocks.py).

These questions are asked once per tensor and model, so the patterns are compiled when the architecture is made. There
are two kinds of pattern here, chosen for what each can be answered with quickly:

    components   globs in which `*` stands for any text, dots included    model.diffusion_model.*
    buffers      a whole name, or `*` and an ending                       betas, *.position_ids
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mergeflow.arch.aliases import Aliases
from mergeflow.arch.blocks import Layout
from mergeflow.errors import UnknownName

# Buffers of any model, known or not: numbers that code computed and stored beside the weights. An average of two
# tables of indices or of two noise schedules is neither. Weights that merely look odd (logit_scale) are not here.
BUFFERS = (
    # indices, masks and counters; some tools have turned the integers into floats, so the dtype does not tell
    "position_ids", "*.position_ids", "*.attn_mask", "*.num_batches_tracked",
    # rotary embeddings, as older versions of transformers stored them
    "*.rotary_emb.inv_freq", "*.rotary_emb.cos_cached", "*.rotary_emb.sin_cached",
    # the noise schedule of a diffusion model (whole names: a network may well have learned a tensor `….betas`)
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2",
    # how the running average of a training was kept
    "model_ema.decay", "model_ema.num_updates",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Architecture:
    """What the names of one kind of model mean. Where two components claim a tensor, the one written first has it."""

    name: str
    title: str
    components: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    buffers: tuple[str, ...] = BUFFERS
    layout: Layout = field(default=Layout(), repr=False)
    aliases: Aliases = field(default=Aliases(), repr=False)
    _component: re.Pattern[str] = field(init=False, repr=False, compare=False)
    _by_index: tuple[str, ...] = field(init=False, repr=False, compare=False)
    _members: Mapping[str, frozenset[str]] = field(init=False, repr=False, compare=False)
    _whole: frozenset[str] = field(init=False, repr=False, compare=False)
    _endings: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        put = object.__setattr__  # how a frozen dataclass fills in what it derives
        put(self, "_component", _compile(self.components.values()))
        put(self, "_by_index", ("", *self.components))
        alone = {component: frozenset({component}) for component in self.components}
        put(self, "_members", alone | {group: frozenset(members) for group, members in self.groups.items()})
        put(self, "_whole", frozenset(p for p in self.buffers if not p.startswith("*")))
        put(self, "_endings", tuple(p[1:] for p in self.buffers if p.startswith("*")))

    def __hash__(self) -> int:  # the generated one would hash the mappings
        return hash(self.name)

    @property
    def component_names(self) -> tuple[str, ...]:
        """Everything a recipe may name: the components, then the groups of them."""
        return tuple(self._members)

    def component(self, tensor: str) -> str | None:
        """The component that the tensor belongs to, or None (a schedule, or a name from elsewhere)."""
        found = self._component.match(tensor)
        return self._by_index[found.lastindex] if found and found.lastindex else None

    @property
    def blocks(self) -> tuple[str, ...]:
        """The blocks, front to back, as far as all models of the architecture have them. A language model's layers are
        not here, as their number differs: selectors.blocks_of tells the blocks of given tensors."""
        return self.layout.names

    def block(self, tensor: str) -> str | None:
        """The block that the tensor belongs to, BASE where no other claims it, or None where no blocks are known."""
        return self.layout.block(tensor)

    def matches(self, component_or_group: str, tensor: str) -> bool:
        """Whether the tensor belongs to that component, or to any of that group."""
        try:
            members = self._members[component_or_group]
        except KeyError:
            raise UnknownName(f"component of {self.title}", component_or_group, self._members) from None
        return self.component(tensor) in members

    def is_buffer(self, tensor: str) -> bool:
        """Whether the tensor must be taken from one model as it is, and never averaged."""
        return tensor in self._whole or tensor.endswith(self._endings)


def _compile(components: Iterable[tuple[str, ...]]) -> re.Pattern[str]:
    """One expression for all components, a capturing group each, so that `lastindex` tells which one matched."""
    alternatives = ("|".join(_glob(glob) for glob in globs) for globs in components)
    return re.compile("|".join(f"({a})" for a in alternatives) or r"(?!)", re.DOTALL)


def _glob(glob: str) -> str:
    """The glob as an expression for `match`; a final `*` is left out, as nothing depends on what it would match."""
    body = ".*".join(re.escape(part) for part in glob.removesuffix("*").split("*"))
    return body if glob.endswith("*") else body + r"\Z"


UNKNOWN = Architecture("unknown", "a model of unknown architecture")
