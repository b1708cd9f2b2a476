"""Which architecture a header belongs to, and the sign that gave it away.

The rules of all architectures are tried part by part, the surest part first. The first part with a fit decides: alone,
an architecture is recognised; where several fit (a VAE that four of them share), none is, as a guess would only show
up later as a wrong merge. Each rule is a handful of look-ups, so the size of the header does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping

from mergeflow.arch.base import UNKNOWN, Architecture
from mergeflow.arch.registry import PARTS, Rule, load, names

WORDS = {"layout": "network", "text_encoder": "text encoder", "vae": "VAE"}


def detect(shapes: Mapping[str, tuple[int, ...]]) -> tuple[Architecture, str]:
    """The architecture (UNKNOWN when nothing fits, or too much does) and the reason, in one line."""
    if not shapes:
        return UNKNOWN, "there are no tensors"
    for part in PARTS:
        fitting = _fitting(part, shapes)
        if len(fitting) == 1:
            architecture, rule = fitting[0]
            return architecture, _reason(rule, shapes)
        if fitting:
            return UNKNOWN, f"its {WORDS.get(part, part)} fits {_listed([a.name for a, _ in fitting])} alike"
    return UNKNOWN, f"no architecture has tensors like {min(shapes)}"


def _fitting(part: str, shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[Architecture, Rule]]:
    """Each architecture that fits by this part, with the first of its rules that does."""
    found = []
    for architecture, rules in map(load, names()):
        rule = next((r for r in rules if r.part == part and r.fits(shapes)), None)
        if rule:
            found.append((architecture, rule))
    return found


def _reason(rule: Rule, shapes: Mapping[str, tuple[int, ...]]) -> str:
    tensor, pattern = rule.has[0]
    size = "×".join(map(str, shapes[tensor]))
    return f"{rule.why}: {tensor} is {size}" if pattern else f"{rule.why}: it has {tensor}"


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"
