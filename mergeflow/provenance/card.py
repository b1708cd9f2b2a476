"""The model card of an output, as Hugging Face reads it: facts in YAML between two lines of dashes, then Markdown.

https://huggingface.co/docs/hub/model-cards: `base_model` lists repositories, `base_model_relation` is merge, `license`
is one of the hub's identifiers, or `other` with a `license_name`. Only what the recipe says is said of licences, and
only sources that the recipe has from the hub are base models there; all of them are in the table.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from mergeflow.digest import hash_bytes
from mergeflow.provenance.drawing import Drawing, mermaid
from mergeflow.provenance.statement import Made, Material
from mergeflow.recipe import Recipe

# Those of https://huggingface.co/docs/hub/repositories-licenses that models come with.
LICENSES = {
    "afl-3.0", "agpl-3.0", "apache-2.0", "artistic-2.0", "bigscience-bloom-rail-1.0", "bigscience-openrail-m",
    "bsd", "bsd-2-clause", "bsd-3-clause", "bsl-1.0", "cc", "cc-by-2.0", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0",
    "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-sa-3.0",
    "cc-by-sa-4.0", "cc0-1.0", "creativeml-openrail-m", "deepfloyd-if-license", "epl-2.0", "gemma", "gpl",
    "gpl-2.0", "gpl-3.0", "isc", "lgpl", "lgpl-2.1", "lgpl-3.0", "llama2", "llama3", "llama3.1", "llama3.2",
    "llama3.3", "llama4", "mit", "mpl-2.0", "ms-pl", "openrail", "openrail++", "osl-3.0", "other", "unknown",
    "unlicense", "wtfpl",
}  # fmt: skip
_HUB = re.compile(r"hf:([^/]+/[^/@]+)/")
_MARK = re.compile(r"<!-- made by mergeflow, ([0-9a-f]{16}) -->\n\Z")
_TAGS = {"sd1": "stable-diffusion", "sd2": "stable-diffusion", "sdxl": "stable-diffusion-xl", "flux": "flux"}


def card_text(made: Made, recipe: Recipe, architecture: str, drawing: Drawing, formula: str) -> str:
    """`formula` is what most tensors are, in the names of the recipe; `drawing` shows what led to it."""
    facts = yaml.safe_dump(_facts(made, recipe, architecture), sort_keys=False, allow_unicode=True, width=120)
    body = "\n".join(_body(made, recipe, drawing, formula))
    text = f"---\n{facts}---\n\n{body}\n"
    return f"{text}<!-- made by mergeflow, {_sum(text)} -->\n"


def is_card(path: Path) -> bool:
    """Whether a file is a card as mergeflow wrote it, without a later edit."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    mark = _MARK.search(text)
    return mark is not None and _sum(text[: mark.start()]) == mark[1]


def repository(material: Material) -> str:
    """The repository on the hub that a source comes from; '' of all others."""
    found = _HUB.match(material.origin)
    return found[1] if found else ""


def _sum(text: str) -> str:
    return hash_bytes(text.encode()).hex()[:16]


def _facts(made: Made, recipe: Recipe, architecture: str) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if recipe.license:
        known = recipe.license.strip().lower()
        facts |= {"license": known} if known in LICENSES else {"license": "other", "license_name": recipe.license}
    facts["tags"] = ["merge", "mergeflow", *([_TAGS[architecture]] if architecture in _TAGS else [])]
    if repositories := list(dict.fromkeys(filter(None, map(repository, made.materials)))):
        facts |= {"base_model": repositories, "base_model_relation": "merge"}
    return facts


def _body(made: Made, recipe: Recipe, drawing: Drawing, formula: str) -> Iterator[str]:
    yield f"# {_plain(recipe.name or Path(made.path).stem)}"
    if recipe.description:
        yield from ("", recipe.description.strip())
    yield from ("", f"A merge of {len(made.materials)} models, made with mergeflow: `{_code(formula)}`.")
    yield from ("", "## What it is made of", "")
    yield from _table(made.materials)
    yield from ("", "```mermaid", *mermaid(drawing), "```")
    yield from ("", "## Files", "", "| file | sha256 |", "|---|---|")
    yield from (f"| {_cell(name)} | `{sha256}` |" for name, sha256 in made.files.items())
    yield from ("", f"Digest of the tensors, whatever the file they are in: `{made.model}`.")
    if made.recipe:
        yield from ("", "## Recipe", "")
        yield from (f"Built with `{_code(line)}`.  " for line in made.overrides)
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", made.recipe)), default=0))
        yield from (*([""] if made.overrides else []), f"{fence}yaml", made.recipe.rstrip("\n"), fence)
        proof = f"`mergeflow verify --rebuild {_code(list(made.files)[-1])}` proves it"
        yield from ("", f"With the models above, `mergeflow build` makes the same bytes from it, and {proof}.")
    yield ""


def _table(materials: Sequence[Material]) -> Iterator[str]:
    licensed = any(m.license for m in materials)
    from_where = any(m.origin for m in materials)
    head = ["model", *(["from"] if from_where else []), *(["licence"] if licensed else []), "sha256", "tensors"]
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for m in materials:
        hub = repository(m)
        origin = f"[{hub}](https://huggingface.co/{hub})" if hub else _cell(m.origin)
        cells = [_cell(m.name), *([origin] if from_where else []), *([_cell(m.license)] if licensed else [])]
        cells += [f"`{m.sha256}`" if m.sha256 else "several files", f"`{m.model}`"]
        yield f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>#])", r"\\\1", " ".join(text.split()))


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")


def _code(text: str) -> str:
    return " ".join(text.split()).replace("`", "'")
