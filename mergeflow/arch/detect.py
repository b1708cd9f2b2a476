"""Which architecture a header belongs to, and the sign that gave it away.

The rules of all architectures are tried part by part, the surest part first. The first part with a fit decides: alone,
an architecture is recognised; where several fit (a VAE that four of them share), none is, as a guess would only show
up later as a wrong merge. Each rule is a handful of look-ups, so the size of the header does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping

from mergeflow.arch.aliases import Alias, Shape, canonical
from mergeflow.arch.base import UNKNOWN, Architecture
from mergeflow.arch.registry import PARTS, Rule, load, names

Shapes = Mapping[str, Shape]

WORDS = {"layout": "network", "text_encoder": "text encoder", "vae": "VAE"}


def detect(shapes: Shapes) -> tuple[Architecture, str]:
    """The architecture (UNKNOWN when nothing fits, or too much does) and the reason, in one line."""
    if not shapes:
        return UNKNOWN, "there are no tensors"
    architecture, reason = _decide(dict.fromkeys(names(), shapes))
    return architecture, reason or f"no architecture has tensors like {min(shapes)}"


def recognise(shapes: Shapes) -> tuple[Architecture, str, Mapping[str, Alias]]:
    """As detect, but also for files under names of other tools; and what their tensors are called here."""
    architecture, reason = detect(shapes)
    if architecture is UNKNOWN and shapes:
        heads = {name.partition(".")[0] for name in shapes}
        fitting = [name for name in names() if not load(name)[0].aliases.known_heads.isdisjoint(heads)]
        aliases = {name: canonical(load(name)[0].aliases, shapes) for name in fitting}
        renamed = {name: _renamed(shapes, found) for name, found in aliases.items() if found}
        architecture, why = _decide(renamed)
        if architecture is UNKNOWN:
            return UNKNOWN, why or reason, {}
        return architecture, f"under names of other tools, {why}", aliases[architecture.name]
    return architecture, reason, canonical(architecture.aliases, shapes)


def _renamed(shapes: Shapes, aliases: Mapping[str, Alias]) -> Shapes:
    pairs = (aliases.get(name, (name, shape)) for name, shape in shapes.items())
    return dict(pairs)


def _decide(shapes: Mapping[str, Shapes]) -> tuple[Architecture, str]:
    """Among the architectures given, each with the tensors as it would call them; no reason where nothing fits."""
    for part in PARTS:
        fitting = _fitting(part, shapes)
        if len(fitting) == 1:
            architecture, rule = fitting[0]
            return architecture, _reason(rule, shapes[architecture.name])
        if fitting:
            return UNKNOWN, f"its {WORDS.get(part, part)} fits {_listed([a.name for a, _ in fitting])} alike"
    return UNKNOWN, ""


def _fitting(part: str, shapes: Mapping[str, Shapes]) -> list[tuple[Architecture, Rule]]:
    """Each architecture that fits by this part, with the first of its rules that does."""
    found = []
    for name, renamed in shapes.items():
        architecture, rules = load(name)
        rule = next((r for r in rules if r.part == part and r.fits(renamed)), None)
        if rule:
            found.append((architecture, rule))
    return found


def _reason(rule: Rule, shapes: Shapes) -> str:
    tensor, pattern = rule.has[0]
    size = "×".join(map(str, shapes[tensor]))
    return f"{rule.why}: {tensor} is {size}" if pattern else f"{rule.why}: it has {tensor}"


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"
