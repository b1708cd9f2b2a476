"""Where an output's forms hold, as a person would say it: one expression, components that are another model's
(`replace:`), tensors that another model fills in (`fallback`), and what is left differs from tensor to tensor.

A graph does not tell a component that was replaced from one where the first model's share is zero. They differ in what
is copied and in dtypes alone, and the output says its dtypes; so whole components are always replaced here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from mergeflow.exchange.held import Held


class Regions(NamedTuple):
    """Numbers of forms. `main` is most tensors'; `replaced` by component; `elsewhere` the tensors of other forms, by
    form; `filler` the form of those that the first model may lack."""

    main: int
    replaced: Mapping[str, int]
    elsewhere: Mapping[int, Sequence[str]]
    filler: int | None = None


def regions(usual: int, others: Mapping[int, Sequence[str]], own: Collection[int], held: Held) -> Regions | None:
    """`own`: the forms that have a part of the first model. None where none of the output's has one, or where several
    other models fill in tensors.

    `usual` and `others` are as in the graph: most tensors' form, and the tensors of each other form.
    """
    of = _forms_of(usual, others, held)
    counts = Counter(n for n in of.values() if n in own)
    if not counts:
        return None
    main = min(counts, key=lambda n: (-counts[n], n))
    alike = _alike(of, held)
    replaced = {component: n for component, n in alike.items() if n not in own}
    left = {component: n for component, n in alike.items() if component not in replaced and n != main}
    if all(of[name] == main or held.place(name)[1] in {*replaced, *left} for name in of):
        replaced |= left  # then nothing differs from tensor to tensor
    elsewhere: dict[int, list[str]] = {}
    for name, n in of.items():
        if n != main and held.place(name)[1] not in replaced:
            elsewhere.setdefault(n, []).append(name)
    varied = any(n in own and _in_network(names, held) for n, names in elsewhere.items())
    # block weights, then, and of 1 where a whole block is another model's
    filling = {n for n, names in elsewhere.items() if n not in own and not (varied and _whole_blocks(names, held))}
    if len(filling) > 1:
        return None
    return Regions(main, _grouped(replaced, held), elsewhere, next(iter(filling), None))


def is_primary_first(usual: int, others: Mapping[int, Sequence[str]], own: Collection[int], held: Held) -> bool:
    """Whether the first model stood before those that have what it lacks. A graph lists its forms in the order in which
    their tensors come, model after model."""
    of = _forms_of(usual, others, held)
    donors_first = _first_seen(of[name] for name in sorted(of))
    return donors_first != sorted(donors_first) or donors_first == _first_seen(
        of[name] for name in sorted(of, key=lambda name: (of[name] not in own, name))
    )


def _first_seen(forms: Iterable[int]) -> list[int]:
    return list(dict.fromkeys(forms))


def _forms_of(usual: int, others: Mapping[int, Sequence[str]], held: Held) -> dict[str, int]:
    """The form of each tensor."""
    return dict.fromkeys(held.tensors, usual) | {name: n for n, names in others.items() for name in names}


def sources_of(forms: Sequence[Mapping[str, Any]]) -> list[frozenset[str]]:
    """The models that each form is made of, however deep inside. Inner forms come before those that use them."""
    found: list[frozenset[str]] = []
    for form in forms:
        own: frozenset[str] = frozenset()
        for _, leaf in form["to"] if "apply" in form else form["terms"]:
            if isinstance(leaf, int):
                own |= found[leaf]
            else:
                kind, _, number = str(leaf).rpartition(" ")
                own |= found[int(number)] if kind else {str(leaf)}
        found.append(own)
    return found


def _alike(of: Mapping[str, int], held: Held) -> dict[str, int]:
    """The components whose tensors all have one form, with it."""
    found = {component: {of[name] for name in names} for component, names in held.by_component().items()}
    return {component: next(iter(forms)) for component, forms in found.items() if len(forms) == 1}


def _in_network(names: Sequence[str], held: Held) -> bool:
    """Whether all of these are in blocks of the network."""
    blocks = {held.place(name)[0] for name in names}
    return all(block and not held.architecture.layout.is_outside(block) for block in blocks)


def _whole_blocks(names: Sequence[str], held: Held) -> bool:
    """Whether these are all tensors of some blocks of the network, as block weights would take them."""
    chosen = {held.place(name)[0] for name in names}
    return _in_network(names, held) and len(names) == sum(held.place(name)[0] in chosen for name in held.tensors)


def _grouped(replaced: Mapping[str, int], held: Held) -> dict[str, int]:
    """A group of components by its name where all of it is there and has one form."""
    found = dict(replaced)
    for group, members in held.architecture.groups.items():
        n = found.get(members[0])
        if n is not None and len(members) > 1 and all(found.get(member) == n for member in members):
            found = {component: form for component, form in found.items() if component not in members}
            found[group] = n
    return found
