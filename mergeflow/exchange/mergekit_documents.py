"""The documents of a configuration of mergekit, of which later ones use earlier ones by name."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mergeflow.recipe import nodes
from mergeflow.recipe.places import SourceText


def documents(text: str, path: str) -> Iterator[SourceText]:
    """The YAML documents of a text, with line numbers of the whole."""
    begin = 0
    pieces: list[tuple[int, str]] = []
    for found in re.finditer(r"^---[^\S\n]*(?:#.*)?\n", text, re.MULTILINE):
        pieces.append((begin, text[begin : found.start()]))
        begin = found.end()
    pieces.append((begin, text[begin:]))
    for start, piece in pieces:
        if re.sub(r"#.*", "", piece).strip():
            yield SourceText(path, "\n" * text.count("\n", 0, start) + piece)


def in_order(roots: list[nodes.Mapping], names: list[str]) -> list[int]:
    """The documents, each after those that it uses; the one without a name, which uses all, last."""
    if names.count("") > 1:
        second = [root for root, name in zip(roots, names, strict=True) if not name][1]
        raise second.error("two documents have no name:", "the final merge alone needs none")
    if len(set(names)) < len(names):
        twice = next(root for i, root in enumerate(roots) if names[i] in names[:i])
        raise twice.error("two documents have one name", "rename one of them")
    uses = [[j for j, name in enumerate(names) if name and name in set(_mentioned(root))] for root in roots]
    order: list[int] = []
    waiting = list(range(len(roots)))
    while waiting:
        ready = [i for i in waiting if all(j in order for j in uses[i])]
        if not ready:
            raise roots[waiting[0]].error("these documents use each other in a circle")
        order += ready
        waiting = [i for i in waiting if i not in ready]
    return sorted(order, key=lambda i: (names[i] == "", order.index(i)))


def _mentioned(node: nodes.Node) -> Iterator[str]:
    """All texts that may name a model."""
    stack: list[nodes.Node] = [node]
    while stack:
        here = stack.pop()
        if isinstance(here, nodes.Mapping):
            for key, (_, value) in here.items.items():
                if key in ("model", "base_model", "path") and isinstance(value, nodes.Scalar):
                    yield value.value
                stack.append(value)
        elif isinstance(here, nodes.Sequence):
            stack += here.items
