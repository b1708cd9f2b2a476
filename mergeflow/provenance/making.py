"""What a file says of its making, read back from its metadata: the graph that `plan.embed` writes, as plain values.

A file's metadata is untrusted: whatever is not as mergeflow writes it is refused with what is wrong, never guessed at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from mergeflow.digest import hash_bytes
from mergeflow.errors import IntegrityError
from mergeflow.ir.numbers import decimal
from mergeflow.plan.embed import GRAPH, SCHEMA, SCHEMA_APPLIED
from mergeflow.plan.text import join_terms

_KNOWN = (SCHEMA, SCHEMA_APPLIED)
_DEEPEST = 4  # calls shown inside one another
_ENVIRONMENT = "torch-"
_NOT_ARGUMENTS = ("apply", "version", "source", "to")


@dataclass(frozen=True, slots=True)
class Making:
    """The graph of one file. `primary` and `sources` are model digests, the sources in the order they are first named
    in; `usual` is the number of the form of most tensors, `others` names the tensors that have another."""

    numerics: int
    primary: str
    sources: tuple[str, ...]
    forms: tuple[Mapping[str, Any], ...]
    usual: int
    others: Mapping[int, tuple[str, ...]]
    settings: Mapping[str, str]

    @property
    def environments(self) -> tuple[str, ...]:
        """What the bytes depend on besides the sources, of methods that are not exact (`methods.tiers`)."""
        words = [word for form in self.forms for word in str(form.get("source", "")).split()]
        return tuple(dict.fromkeys(word for word in words if word.startswith(_ENVIRONMENT)))

    def essence(self) -> object:
        """Equal for makings that differ at most in where they were made. Forms are known by what is in them, as their
        numbers depend on all that they say; operands are in no order."""
        keys: list[str] = []
        for form in self.forms:
            entry = {
                **form,
                "source": " ".join(w for w in form.get("source", "").split() if not w.startswith(_ENVIRONMENT)),
            }
            if "to" in form:
                entry["to"] = sorted([weight, keys[n]] for weight, n in form["to"])
            else:
                entry["terms"] = sorted([share, _keyed(leaf, keys)] for share, leaf in form["terms"])
            keys.append(hash_bytes(json.dumps(entry, sort_keys=True).encode()).hex())
        others = {keys[n]: names for n, names in self.others.items()}
        return self.numerics, self.primary, self.settings, keys[self.usual] if keys else "", others

    def text(self, name: Callable[[str], str], form: int | None = None) -> str:
        """A form, the usual one when none is named, in a line; `name` gives what a source is called by its digest."""
        return self._sum(self.usual if form is None else form, name, _DEEPEST) if self.forms else "0"

    def _sum(self, number: int, name: Callable[[str], str], depth: int) -> str:
        entry = self.forms[number]
        if "apply" in entry:
            return self._call(entry, name, depth)
        over = int(entry["over"])
        terms = [(Fraction(int(n), over), leaf.startswith("apply "), self._leaf(leaf, name, depth))
                 for n, leaf in entry["terms"]]  # fmt: skip
        return join_terms([(share, text) for share, _, text in sorted(terms, key=lambda t: (-t[0], *t[1:]))])

    def _leaf(self, leaf: str, name: Callable[[str], str], depth: int) -> str:
        word, _, rest = leaf.partition(" ")
        if word == "round":
            dtype, _, inner = rest.partition(" ")
            return f"round_{dtype}({self._sum(int(inner), name, depth - 1) if depth else '…'})"
        if word == "apply":
            return self._call(self.forms[int(rest)], name, depth)
        return name(leaf)

    def _call(self, entry: Mapping[str, Any], name: Callable[[str], str], depth: int) -> str:
        if not depth:
            return f"{entry['apply']}(…)"
        operands = []
        for weight, number in entry["to"]:
            text, one = self._sum(number, name, depth - 1), len(self.forms[number].get("terms", ".")) == 1
            text = text.removeprefix("1·") if one else text
            weighted = text if one else f"({text})"
            operands.append(text if weight == "1" else f"{weighted} @ {decimal(Fraction(weight))}")
        given = {key: value for key, value in entry.items() if key not in _NOT_ARGUMENTS}
        return f"{entry['apply']}({', '.join([*operands, *(f'{key}={_shown(v)}' for key, v in given.items())])})"

    def differs(self, other: Making, name: Callable[[str], str]) -> str:
        """How this making is another than `other`, in one phrase; empty where it is the same."""
        if self.numerics != other.numerics:
            return f"numerics version {self.numerics}, not {other.numerics}"
        if extra := [name(d) for d in self.sources if d not in other.sources]:
            lost = [name(d) for d in other.sources if d not in self.sources]
            return f"made of {', '.join(extra)}" + (f", not of {', '.join(lost)}" if lost else "")
        if lost := [name(d) for d in other.sources if d not in self.sources]:
            return f"not made of {', '.join(lost)}"
        for word in dict.fromkeys([*self.settings, *other.settings]):
            mine, theirs = (s.get(word, "as in the first model") for s in (self.settings, other.settings))
            if mine != theirs:
                return f"{word} {mine}, not {theirs}"
        if self.primary != other.primary:
            return f"{name(self.primary)} is its first model, not {name(other.primary)}"
        mine, theirs = self.text(name), other.text(name)
        if mine != theirs:
            return f"{mine}, not {theirs}"
        return "" if self == other else "other tensors are made in another way"


def read_making(metadata: Mapping[str, str]) -> Making | None:
    """What a file says of its making; None where it says nothing.

    Raises:
        IntegrityError: it says something that mergeflow does not write, or a newer version of it.
    """
    text = metadata.get(GRAPH)
    if text is None:
        return None
    try:
        document = json.loads(text)
        schema = document["schema"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise IntegrityError("what it says of its making is damaged: it is no graph of mergeflow's") from None
    if schema not in _KNOWN:
        raise IntegrityError(
            f"what it says of its making is a {str(schema)[:40]}, which this mergeflow does not know",
            hint="a newer mergeflow may",
        )
    try:
        return _making(document)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, ZeroDivisionError):
        raise IntegrityError("what it says of its making is damaged: its graph does not hold together") from None


def _making(document: Mapping[str, Any]) -> Making:
    forms = tuple(document["forms"])
    sources: dict[str, None] = {}
    for number, form in enumerate(forms):
        if "apply" in form:
            _check_earlier([n for _, n in form["to"]], number)
            for weight, _ in form["to"]:
                Fraction(weight)
            continue
        if int(form["over"]) < 1:
            raise ValueError(form["over"])
        for share, leaf in form["terms"]:
            int(share)
            words = leaf.split(" ")
            if words[0] in ("round", "apply"):
                _check_earlier([int(words[-1])], number)
            else:
                sources[_digest(leaf)] = None
    usual = int(document["form"])
    others = {int(n): tuple(map(str, names)) for n, names in document.get("others", {}).items()}
    for n in (usual, *others):
        if forms and not 0 <= n < len(forms):
            raise IndexError(n)
    settings = {word: str(document[word]) for word in ("dtype", "compute", "policy") if word in document}
    if "merges" in document:
        settings["merges"] = json.dumps(document["merges"], sort_keys=True)
    return Making(
        int(document["numerics"]), _digest(document["primary"]), tuple(sources), forms, usual, others, settings
    )


def _keyed(leaf: str, keys: Sequence[str]) -> str:
    word, _, number = leaf.rpartition(" ")
    return f"{word} {keys[int(number)]}" if word else leaf


def _check_earlier(numbers: Collection[int], number: int) -> None:
    """Forms use only those before them, so whoever follows them comes to an end."""
    if not all(0 <= n < number for n in numbers):
        raise IndexError(number)


def _digest(text: str) -> str:
    kind, _, digits = text.partition(":")
    if kind != "b3" or len(digits) != 64 or not set(digits) <= set("0123456789abcdef"):
        raise ValueError(text)
    return text


def check_tensors(making: Making, names: Collection[str]) -> None:
    """That a graph speaks of tensors that are there.

    Raises:
        IntegrityError: it names one that is not.
    """
    for group in making.others.values():
        if (strange := next((name for name in group if name not in names), None)) is not None:
            raise IntegrityError(f"what it says of its making names {strange}, a tensor that it does not hold")


def _shown(value: object) -> str:
    """An argument as a recipe has it: numbers are kept as fractions."""
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]+/[0-9]*[1-9][0-9]*", value):
        return decimal(Fraction(value))
    return str(value).lower() if isinstance(value, bool) else str(value)
