"""A share that differs from tensor to tensor, as the lines of a profile that a person would write: a list of block
weights, or lines for components, ranges of blocks and blocks; and a line for each tensor that is not as its block."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from fractions import Fraction

from mergeflow.arch import Architecture, mbw
from mergeflow.arch.blocks import BASE
from mergeflow.errors import RecipeError
from mergeflow.exchange.draft import Value, spelled
from mergeflow.exchange.held import Held
from mergeflow.plan.profiles import spans

MOST_LINES = 4  # of blocks; a list is shorter than more of them


def profile(usual: Fraction, others: Mapping[str, Fraction], held: Held, elsewhere: Collection[str] = ()) -> Value:
    """`usual` is the share of all tensors but `others`. Tensors of the components `elsewhere` may have any share."""
    names = [name for name in held.tensors if held.place(name)[1] not in elsewhere]
    shares = {name: others.get(name, usual) for name in names} if held.tensors else dict(others)
    layout = held.architecture.layout
    by_block: dict[str, Counter[Fraction]] = {}
    by_component: dict[str, Counter[Fraction]] = {}
    for name, share in shares.items():
        block, component = held.place(name)
        if not block:
            continue
        by_block.setdefault(block, Counter())[share] += 1
        if component and block == BASE:
            by_component.setdefault(component, Counter())[share] += 1
    most = {block: _most(by_block[block], usual) for block in layout.sorted(by_block)}
    parts = {component: _most(counts, usual) for component, counts in by_component.items()}
    outside = {block: share for block, share in most.items() if layout.is_outside(block)}
    network = {block: share for block, share in most.items() if block not in outside}
    base = outside.get(BASE, usual)
    ranges = {blocks: text for blocks, text in _spans(network) if text != spelled(usual)}
    lines = _listed(network, base, held.architecture) if len(ranges) > MOST_LINES else None
    if lines is None:
        lines = {"default": spelled(usual), **({BASE: spelled(base)} if base != usual else {}), **ranges}
    lines |= {b: spelled(share) for b, share in outside.items() if b != BASE and ("mbw" in lines or share != usual)}
    lines |= {component: spelled(share) for component, share in parts.items() if share != base}
    for name, share in sorted(shares.items()):
        block, component = held.place(name)
        if share != parts.get(component if block == BASE else "", most.get(block, usual)):
            lines[name] = spelled(share)
    return lines


def _most(counts: Counter[Fraction], usual: Fraction) -> Fraction:
    return min(counts, key=lambda share: (-counts[share], share != usual, share))


def _spans(network: Mapping[str, Fraction]) -> list[tuple[str, str]]:
    """Blocks that follow on each other with one share together."""
    return list(spans((block, spelled(share)) for block, share in network.items()))


def _listed(network: Mapping[str, Fraction], base: Fraction, architecture: Architecture) -> dict[str, Value] | None:
    """The network's blocks as a list of numbers, where it has one that they fit in."""
    texts = [spelled(share) for share in network.values()]
    if any("/" in text for text in texts):
        return None
    text = ",".join(texts)
    try:
        read = mbw(text, architecture, base=True)
    except RecipeError:
        return None
    if {block: share for block, share in read.items() if block in network} != dict(network):
        return None
    return {"mbw": text, BASE: spelled(base)}
