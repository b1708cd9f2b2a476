"""LoRAs and their relatives: told from the last part of their names, under whatever names for the modules.

lora        up · down                    lora_up and lora_down (kohya), lora_B and lora_A (PEFT), …_lora.up (diffusers)
loha        (a · b) ⊙ (a · b)            hada_w1_a …
lokr        a ⊗ b                        lokr_w1 …
oft, ia3, glora, full differences, norms: LyCORIS' names
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

Shape = tuple[int, ...]

_MARKS = {
    "LoRA": (
        r"[._]lora[._]?(?:up|down|A|B|mid|linear_layer\.up|linear_layer\.down)(?:\.default)?(?:\.weight)?"
        r"|_lora\.(?:up|down)\.weight"
    ),
    "LoHa": r"\.hada_[wt][12](?:_[ab])?",
    "LoKr": r"\.lokr_[wt][12](?:_[ab])?",
    "OFT": r"\.oft_(?:blocks|diag)",
    "(IA)³": r"\.on_input",
    "GLoRA": r"\.[ab][12]\.weight",
}  # fmt: skip
_MARK = re.compile("(.+?)(?:" + "|".join(f"({pattern})" for pattern in _MARKS.values()) + r")\Z", re.DOTALL)
_TYPES = tuple(_MARKS)
_QUICK = ("lora", "hada_", "lokr_", "oft_", "on_input")  # one of them is in every sign: other files cost no time
# The tensor that has the rank as a size, and the axis: (down: rank × in), (b of a · b: rank × in)
_RANKED = re.compile(
    r".*(?:lora[._]?(?:down|A)|linear_layer\.down|hada_w1_b|lokr_w[12]_b)(?:\.default)?(?:\.weight)?\Z"
)
_DORA = (".dora_scale", ".lora_magnitude_vector", ".lora_magnitude_vector.weight")
_TEXT = re.compile(
    r"(?:lora_te|lycoris_te|oft_te|text_encoder|te[0-9]?[._]|(?:.*\.)?clip_[lg]\.|conditioner\.|cond_stage)"
)
_CONTEXT = re.compile(r".*attn2[._](?:processor\.)?to_k")
_WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL"}
_FAMILIES = (
    (re.compile(r".*(?:double_blocks|single_blocks|single_transformer_blocks)[._]"), "FLUX.1"),
    (re.compile(r".*(?:joint_blocks[._]|transformer\.transformer_blocks\.)"), "Stable Diffusion 3"),
    (re.compile(r"lora_te2_|text_encoder_2\."), "Stable Diffusion XL"),
)


def sign(names: Iterable[str]) -> str | None:
    """The first tensor that shows the file to be one of these. GLoRA's names alone (a1, b2) are too short a sign."""
    likely = (name for name in names if any(word in name for word in _QUICK))
    return next((name for name in likely if (m := _MARK.fullmatch(name)) and _type(m) != "GLoRA"), None)


def facts(shapes: Mapping[str, Shape]) -> dict[str, str]:
    """What the header tells: type, rank, how many modules of what it changes, for which architecture."""
    types: dict[str, set[str]] = {}
    ranks: Counter[int] = Counter()
    modules: set[str] = set()
    for name, shape in shapes.items():
        if match := _MARK.fullmatch(name):
            modules.add(match[1])
            types.setdefault(_type(match), set()).add(match[1])
            if shape and _RANKED.fullmatch(name):
                ranks[shape[0]] += 1
    kinds = sorted(types, key=lambda t: -len(types[t]))
    if any(name.endswith(_DORA) for name in shapes):
        kinds.append("DoRA")
    found = {"type": " + ".join(kinds)}
    if ranks:
        low, high, usual = min(ranks), max(ranks), ranks.most_common(1)[0][0]
        found["rank"] = str(low) if low == high else f"{low} to {high}, mostly {usual}"
    text = sum(1 for module in modules if _TEXT.match(module))
    found["modules"] = f"{len(modules):,}" + (f", {text:,} of them of text encoders" if text else "")
    bundled = {n.split(".")[1] for n in shapes if n.startswith("bundle_emb.")}
    if bundled:
        found["embeddings"] = ", ".join(sorted(bundled))
    if title := _architecture(shapes, modules):
        found["for"] = f"for {title}"
    return found


def _type(match: re.Match[str]) -> str:
    return next(t for t, part in zip(_TYPES, match.groups()[1:], strict=True) if part is not None)


def _architecture(shapes: Mapping[str, Shape], modules: Iterable[str]) -> str | None:
    for pattern, title in _FAMILIES:
        if any(map(pattern.match, modules)):
            return title
    for name, shape in shapes.items():
        if len(shape) in (2, 4) and _CONTEXT.match(name) and _RANKED.fullmatch(name) and shape[1] in _WIDTHS:
            return _WIDTHS[shape[1]]
    return None
