"""Which architecture a header belongs to, and the sign that gave it away.

The rules of all architectures are tried part by part, the surest part first. The first part with a fit decides: alone,
an architecture is recognised; where several fit (a VAE that four of them share), none is, as a guess would only show
up later as a wrong merge. Each rule is a handful of look-ups, so the size of the header does not matter.

A user's own architectures are tried where none of ours fits: adding one can never change what is known already.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mergeflow.arch.aliases import Alias, Shape, canonical
from mergeflow.arch.base import UNKNOWN, Architecture
from mergeflow.arch.contents import junk
from mergeflow.arch.definition import PARTS, Rule
from mergeflow.arch.registry import load, names, user_names

Shapes = Mapping[str, Shape]

WORDS = {"layout": "network", "text_encoder": "text encoder", "vae": "VAE"}
_BEFORE_A_VAE = ("", "first_stage_model.", "vae.")
VAE = "vae"  # the architecture of autoencoders alone, and what every architecture calls that component


def detect(shapes: Shapes) -> tuple[Architecture, str]:
    """The architecture (UNKNOWN when nothing fits, or too much does) and the reason, in one line."""
    if not shapes:
        return UNKNOWN, "there are no tensors"
    architecture, reason = _decide(dict.fromkeys(_whole(), shapes))
    return architecture, reason or f"no architecture has tensors like {min(shapes)}"


def recognise(shapes: Shapes) -> tuple[Architecture, str, Mapping[str, Alias]]:
    """As detect, but also for files under names of other tools, for autoencoders alone (whose names many architectures
    share) and for architectures of the user's own; and what their tensors are called here."""
    architecture, reason = detect(shapes)
    if not shapes or _is_more_than_a_vae(architecture, shapes):
        return architecture, reason, canonical(architecture.aliases, shapes)
    if alone := _vae_alone(shapes):
        return alone
    if architecture is not UNKNOWN:
        return architecture, reason, canonical(architecture.aliases, shapes)
    return _elsewhere(_whole(), shapes) or _users(shapes) or (UNKNOWN, reason, {})


def _whole() -> tuple[str, ...]:
    """Ours, without the one of autoencoders alone: its names are parts of many other models' names."""
    return tuple(name for name in names() if name != VAE)


def _is_more_than_a_vae(architecture: Architecture, shapes: Shapes) -> bool:
    return architecture is not UNKNOWN and any(architecture.component(name) not in (VAE, None) for name in shapes)


def _vae_alone(shapes: Shapes) -> tuple[Architecture, str, Mapping[str, Alias]] | None:
    """When all tensors are an autoencoder's, but for what its training left behind."""
    if not any(f"{before}decoder.conv_in.weight" in shapes for before in _BEFORE_A_VAE):
        return None  # as of most files: the rest looks at every name
    architecture, rules = load(VAE)
    aliases = canonical(architecture.aliases, shapes)
    renamed = _renamed(shapes, aliases)
    rule = next((rule for rule in rules if rule.fits(renamed)), None)
    left = junk(shapes)
    others = (n for n in shapes if n not in left and not n.startswith("model_ema.") and not UNKNOWN.is_buffer(n))
    if rule is None or any(architecture.component(aliases[n].name if n in aliases else n) is None for n in others):
        return None
    return architecture, _reason(rule, renamed), aliases


def _elsewhere(among: Iterable[str], shapes: Shapes) -> tuple[Architecture, str, Mapping[str, Alias]] | None:
    """Among these architectures, the one under whose names for the tensors it fits."""
    heads = {name.partition(".")[0] for name in shapes}
    fitting = [name for name in among if not load(name)[0].aliases.known_heads.isdisjoint(heads)]
    aliases = {name: canonical(load(name)[0].aliases, shapes) for name in fitting}
    renamed = {name: _renamed(shapes, found) for name, found in aliases.items() if found}
    architecture, why = _decide(renamed)
    if architecture is UNKNOWN:
        return (UNKNOWN, why, {}) if why else None
    return architecture, f"under names of other tools, {why}", aliases[architecture.name]


def _users(shapes: Shapes) -> tuple[Architecture, str, Mapping[str, Alias]] | None:
    known = user_names()
    architecture, why = _decide(dict.fromkeys(known, shapes))
    if architecture is UNKNOWN:
        return _elsewhere(known, shapes)
    return architecture, why, canonical(architecture.aliases, shapes)


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
