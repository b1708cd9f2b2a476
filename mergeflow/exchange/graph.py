"""What mergeflow wrote into an output, back as a recipe: the recipe's own text where the output embeds it, else the
canonical graph, whose forms become steps, and whose shares that differ from tensor to tensor become profiles.

The graph knows sources by the digests of their models, and not where they are: by these they are looked for.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from mergeflow.errors import RecipeError
from mergeflow.exchange.draft import Draft, Imported, Value, escape_template, spelled
from mergeflow.exchange.graph_calls import arguments, degrees, filled, probe
from mergeflow.methods.registry import find
from mergeflow.recipe.expression import spell

GRAPH, RECIPE, DIGEST, KIND = "mergeflow", "mergeflow.recipe", "mergeflow.digest", "mergeflow.kind"
SCHEMAS = ("mergeflow/graph/1", "mergeflow/graph/2")
_DIGEST = re.compile("b3:[0-9a-f]{64}")
_OF_ENTRY = ("apply", "version", "source", "to")
MOST_FORMS = 100_000


def read(metadata: Mapping[str, str], path: str, blocks: Mapping[str, str] = {}) -> Imported:
    """The recipe of an output that says `metadata` of itself. `blocks`: those of its tensors, where they are known.

    Raises:
        RecipeError: a graph of another version, a damaged one, or one that no recipe has.
    """
    if RECIPE in metadata:
        return Imported(metadata[RECIPE], f"the recipe inside {path}", ())
    try:
        graph = json.loads(metadata[GRAPH])
        schema = graph["schema"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise RecipeError(f"{path}: the graph in its metadata is damaged") from None
    if schema not in SCHEMAS:
        raise RecipeError(f"{path}: its graph is {str(schema)[:40]}, which this version does not read")
    try:
        own = {k: v for k, v in metadata.items() if k != "format" and k != GRAPH and not k.startswith(f"{GRAPH}.")}
        return _Reader(graph, path, own, blocks, delta=metadata.get(KIND) == "delta").whole()
    except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError) as error:
        raise RecipeError(f"{path}: the graph in its metadata is damaged ({type(error).__name__})") from None


@dataclass(slots=True)
class _Share:
    """A term's share: in most tensors, and in those where it is another."""

    usual: Fraction = Fraction(0)
    others: dict[str, Fraction] = field(default_factory=dict)


class _Reader:
    def __init__(
        self,
        graph: Mapping[str, Any],
        path: str,
        metadata: Mapping[str, str],
        blocks: Mapping[str, str],
        *,
        delta: bool,
    ) -> None:
        self.graph, self.path, self.delta, self.metadata, self.blocks = graph, path, delta, metadata, blocks
        self.forms: list[Mapping[str, Any]] = graph["forms"]
        if len(self.forms) > MOST_FORMS:
            raise ValueError
        self.draft = Draft(f"the graph in {path.rpartition('/')[2]}")
        self.steps: dict[int, str] = {}
        self.primary = self._source(graph["primary"])
        self.inner = self._used()
        self.degrees = degrees(self.forms)
        self.seeds = {str(form["seed"]) for form in self.forms if "seed" in form}

    def whole(self) -> Imported:
        graph, draft = self.graph, self.draft
        value: dict[str, Value]
        if graph.get("policy") == "a1111":
            value = {"from": self._merges(graph["merges"])}
            draft.options["policy"] = "a1111"
        else:
            expr, like = self._expression()
            value = {"from": expr}
            if like:
                value["like"] = self.primary
            if "compute" in graph:
                draft.options["compute"] = str(graph["compute"])
            if len(self.seeds) == 1 and self.seeds != {"0"}:
                (draft.options["seed"],) = self.seeds
        if "dtype" in graph:
            value["dtype"] = str(graph["dtype"])
        if self.metadata:
            value["metadata"] = dict(self.metadata)
        name = escape_template(self.path.rpartition("/")[2])
        draft.outputs[name] = value if len(value) > 1 else value["from"]
        draft.lose("the names and folders of sources: a graph knows models by their digests, by which they are found")
        return draft.finish()

    def _source(self, digest: str) -> str:
        if not _DIGEST.fullmatch(digest):
            raise ValueError
        return spell(self.draft.source(digest, f"x_{digest[3:13]}", f"hash:{digest}"))

    # -- sums ----------------------------------------------------------------------------------------------------

    def _expression(self) -> tuple[str, bool]:
        """The output's expression, and whether its primary has to be said."""
        usual = int(self.graph["form"])
        elsewhere = {int(n): list(names) for n, names in self.graph.get("others", {}).items()}
        if any("apply" in self.forms[n] for n in (usual, *elsewhere)):
            raise ValueError
        shares = self._shares(usual, elsewhere)
        free = {self.degrees[n] for n in (usual, *elsewhere)} != {Fraction(0 if self.delta else 1)}
        if free and self.delta:
            raise RecipeError(f"{self.path}: a difference whose shares do not add up to 0 is no expression here")
        if elsewhere and not free and not self.delta:
            return self._from_primary(shares), False
        first = shares.get(self.graph["primary"], _Share())
        return self._sum(shares, free=free), first.usual <= 0 and not self.delta

    def _sum(self, shares: Mapping[str, _Share], *, free: bool) -> str:
        """Terms as they are; in a list of models where they do not add up to a model or a difference."""
        listed = [leaf for leaf in shares if free and self._is_model(leaf)]
        parts = [self._part(self._leaf(leaf), shares[leaf], plain=False) for leaf in listed]
        parts = [f"linear([{', '.join(parts)}], normalize=false)"] if listed else []
        rest = [leaf for leaf in shares if leaf not in listed]
        parts += [self._part(self._leaf(leaf), shares[leaf], plain=True) for leaf in rest]
        return " + ".join(parts).replace("+ -", "- ") or f"{self.primary} - {self.primary}"

    def _from_primary(self, shares: Mapping[str, _Share]) -> str:
        """The same sum as its primary and differences from it: where a model lacks a tensor its difference is nothing,
        while a sum with it would be the primary's."""
        parts = [self.primary]
        for leaf, share in shares.items():
            if leaf != self.graph["primary"]:
                name = self._leaf(leaf)
                moved = f"({name} - {self.primary})" if self._is_model(leaf) else name
                parts.append(self._part(moved, share, plain=True))
        return " + ".join(parts).replace("+ -", "- ")

    def _is_model(self, leaf: str) -> bool:
        kind, _, rest = leaf.partition(" ")
        return kind not in ("round", "apply") or self.degrees[int(rest.rpartition(" ")[2])] != 0

    def _shares(self, usual: int, elsewhere: Mapping[int, list[str]]) -> dict[str, _Share]:
        """The share of each term, the primary's first. A term that a form has not has the share 0 there."""
        leaves = {leaf: None for n in (usual, *elsewhere) for leaf in self._terms(n)}
        found: dict[str, _Share] = {}
        for leaf in sorted(leaves, key=lambda leaf: leaf != self.graph["primary"]):
            share = found[leaf] = _Share(self._terms(usual).get(leaf, Fraction(0)))
            for n, names in elsewhere.items():
                here = self._terms(n).get(leaf, Fraction(0))
                if here != share.usual:
                    share.others |= dict.fromkeys(names, here)
        return found

    def _terms(self, n: int) -> dict[str, Fraction]:
        form = self.forms[n]
        over = int(form["over"])
        return {str(leaf): Fraction(int(count), over) for count, leaf in form["terms"]}

    def _part(self, name: str, share: _Share, *, plain: bool) -> str:
        """One term, as share * model or, in a list of models, as model @ share."""
        weight = spelled(share.usual)
        if share.others:
            weight = self.draft.param("k", self._lines(share))
        elif share.usual == 1 or (plain and share.usual == -1):
            return name if share.usual == 1 else f"-{name}"
        return f"{weight}*{name}" if plain else f"{name} @ {weight}"

    def _lines(self, share: _Share) -> dict[str, Value]:
        """A share that differs from tensor to tensor as a profile: a line for each block that mostly has another, and
        one for each tensor that is not as its block."""
        by_block: dict[str, Counter[Fraction]] = {}
        for tensor, block in self.blocks.items():
            by_block.setdefault(block, Counter())[share.others.get(tensor, share.usual)] += 1
        most = {block: counts.most_common(1)[0][0] for block, counts in by_block.items()}
        lines: dict[str, Value] = {"default": spelled(share.usual)}
        lines |= {block: spelled(value) for block, value in sorted(most.items(), key=_in_order) if value != share.usual}
        for tensor in sorted({*self.blocks, *share.others}):
            value = share.others.get(tensor, share.usual)
            if value != most.get(self.blocks.get(tensor, ""), share.usual):
                lines[tensor] = spelled(value)
        return lines

    def _leaf(self, leaf: str) -> str:
        kind, _, rest = leaf.partition(" ")
        if kind == "round":
            dtype, _, number = rest.partition(" ")
            return self._form(int(number), dtype)
        if kind == "apply":
            return self._form(int(rest))
        return self._source(leaf)

    def _form(self, n: int, dtype: str = "") -> str:
        """The step of an inner form. Inner forms come before those that use them, so this does not go deep: forms that
        are used are made in order first."""
        for m in range(n + 1):
            if m not in self.steps and m in self.inner:
                self._make(m)
        name = self.steps[n]
        if dtype:
            wanted = {"expr": spell(name), "round": dtype}
            known = next((step for step, value in self.draft.steps.items() if value == wanted), None)
            name = known or self.draft.step(f"{name}_{dtype}", wanted)
        return spell(name)

    def _used(self) -> frozenset[int]:
        """The forms that others use."""
        used: set[int] = set()
        for form in self.forms:
            leaves: Iterable[Any] = form.get("to", form.get("terms", ()))
            for _, leaf in leaves:
                if isinstance(leaf, int):
                    used.add(leaf)
                elif str(leaf).startswith(("round ", "apply ")):
                    used.add(int(str(leaf).rpartition(" ")[2]))
        return frozenset(used)

    def _make(self, n: int) -> None:
        form = self.forms[n]
        if "apply" in form:
            self.steps[n] = self.draft.step(str(form["apply"]), self._call(form))
            return
        terms = self._terms(n)
        free = self.degrees[n] not in (0, 1)
        expr = self._sum({leaf: _Share(share) for leaf, share in terms.items()}, free=free)
        if expr in self.draft.sources:
            self.steps[n] = expr
        else:
            self.steps[n] = self.draft.step(f"form_{n}", expr)

    def _call(self, form: Mapping[str, Any]) -> str:
        """A kernel as a call of the method that has its name, with what that method does around it undone."""
        method = find(str(form["apply"]))
        models = [(Fraction(str(weight)), spell(self.steps[int(n)])) for weight, n in form["to"]]
        known = {*_OF_ENTRY, "seed"} if len(self.seeds) == 1 else {*_OF_ENTRY}  # one seed is an option of the recipe
        given = {key: value for key, value in form.items() if key not in known}
        kernel = next((kernel for kernel in method.kernels if kernel.name == method.name), None)
        if kernel is None:
            raise RecipeError(f"{self.path}: {method.name} is no method of its own")
        first = method.parameters[0]
        if first.name == "base" and set(kernel.operands) == {"delta"}:  # its differences are taken from a base
            if self.graph.get("others"):
                self.draft.lose(f"{method.name}: where a model lacks tensors these may differ; `mergeflow hash` tells")
            moved = [f"{self.primary} + {model}" for _, model in models]
            moved += [self.primary] * (int(form.get("models", 0)) - len(moved))  # those that are the base
            settings = [f"{name}={text}" for name, text in arguments(method, given).items()]
            listed = f"[{', '.join(moved)}]"
            return f"{method.name}({', '.join([self.primary, listed, *settings])}) - {self.primary}"
        told = arguments(method, given)
        order, factor = probe(method, told, len(models))
        if order is None:
            raise RecipeError(f"{self.path}: what {method.name} was applied to is no call of it")
        places = [models[order.index(i)] for i in range(len(models))]
        call = f"{method.name}({', '.join(filled(method, told, places))})"
        return call if factor == 1 else f"{call} * {spelled(1 / factor)}"

    # -- the policy a1111 ----------------------------------------------------------------------------------------

    def _merges(self, moves: list[list[Any]]) -> str:
        names: list[str] = []
        for i, move in enumerate(moves):
            what = move[0]
            last = i == len(moves) - 1
            if what == "model":
                names.append(self._source(move[1]))
                continue
            if what == "half":
                if last and self.graph.get("dtype"):
                    names.append(names[move[1]])
                    continue
                value: Value = {"expr": names[move[1]], "round": "float16"}
            elif what == "weighted sum":
                value = f"weighted_sum({names[move[1]]}, {names[move[2]]}, {_exact(move[3])})"
            else:
                value = f"{names[move[1]]} + ({names[move[2]]} - {names[move[3]]}) * {_exact(move[4])}"
            names.append(spell(self.draft.step(f"run_{i}", value)))
        return names[-1]


def _in_order(block: tuple[str, Fraction]) -> list[tuple[int, str]]:
    """layers.2 before layers.10"""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", block[0])]


def _exact(text: str) -> str:
    """A multiplier as that merger has it, a float by its shortest decimal."""
    return spelled(Fraction(text))
