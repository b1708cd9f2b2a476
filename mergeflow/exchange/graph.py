"""What mergeflow wrote into an output, back as a recipe: the recipe's own text where the output embeds it, else the
canonical graph, whose forms become steps, and whose shares that differ from tensor to tensor become profiles. What the
graph does not say, such as tensors that were left out, is taken from the output's header (held.py).

The graph knows sources by the digests of their models, and not where they are: by these they are looked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from mergeflow.errors import RecipeError
from mergeflow.exchange.blockweights import profile
from mergeflow.exchange.draft import Draft, Imported, Value, escape_template, spelled
from mergeflow.exchange.graph_calls import arguments, degrees, filled, probe
from mergeflow.exchange.graph_merges import merges
from mergeflow.exchange.held import NOTHING, Held, set_outright
from mergeflow.exchange.regions import Regions, is_primary_first, regions, sources_of
from mergeflow.exchange.shares import Share, shares_of, terms
from mergeflow.methods.registry import find
from mergeflow.recipe.expression import spell
from mergeflow.tensors import BY_LABEL

GRAPH, RECIPE, DIGEST, KIND = "mergeflow", "mergeflow.recipe", "mergeflow.digest", "mergeflow.kind"
SCHEMAS = ("mergeflow/graph/1", "mergeflow/graph/2")
_DIGEST = re.compile("b3:[0-9a-f]{64}")
_OF_ENTRY = ("apply", "version", "source", "to")
MOST_FORMS = 100_000


def read(metadata: Mapping[str, str], path: str, held: Held = NOTHING) -> Imported:
    """The recipe of an output that says `metadata` of itself. `held`: its tensors, where they are known.

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
        return _Reader(graph, path, own, held, delta=metadata.get(KIND) == "delta").whole()
    except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError) as error:
        raise RecipeError(f"{path}: the graph in its metadata is damaged ({type(error).__name__})") from None


class _Reader:
    def __init__(
        self,
        graph: Mapping[str, Any],
        path: str,
        metadata: Mapping[str, str],
        held: Held,
        *,
        delta: bool,
    ) -> None:
        self.graph, self.path, self.delta, self.metadata, self.held = graph, path, delta, metadata, held
        self.forms: list[Mapping[str, Any]] = graph["forms"]
        if len(self.forms) > MOST_FORMS:
            raise ValueError
        self.draft = Draft(f"the graph in {path.rpartition('/')[2]}")
        self.steps: dict[int, str] = {}
        self.models = sources_of(self.forms)
        self.own = {n for n, models in enumerate(self.models) if graph["primary"] in models}
        self.primary = self._first_sources()
        self.donated: Sequence[str] = ()  # the components that are another model's
        self.inner = self._used()
        self.degrees = degrees(self.forms)
        self.seeds = {str(form["seed"]) for form in self.forms if "seed" in form}

    def whole(self) -> Imported:
        graph, draft = self.graph, self.draft
        value: dict[str, Value]
        if graph.get("policy") == "a1111":
            value = {"from": merges(graph["merges"], draft, self._source, cast=bool(graph.get("dtype")))}
            draft.options["policy"] = "a1111"
        else:
            value = self._expression()
            if {*range(len(self.forms))} > {self._cases()[0], *self._cases()[1]} | self.inner:
                draft.lose(
                    "sums of tensors that were left out: the tensors are the same, what the file says of itself is not"
                )
            if "compute" in graph:
                draft.options["compute"] = str(graph["compute"])
            if len(self.seeds) == 1 and self.seeds != {"0"}:
                (draft.options["seed"],) = self.seeds
        if "dtype" in graph:
            value["dtype"] = str(graph["dtype"])
        said = set_outright(self.held, BY_LABEL[str(graph["dtype"])] if "dtype" in graph else None, self.donated)
        value |= {key: what for key, what in said.items() if key != "dtype" or "policy" not in draft.options}
        if self.metadata:
            value["metadata"] = dict(self.metadata)
        name = escape_template(self.path.rpartition("/")[2])
        draft.outputs[name] = value if len(value) > 1 else value["from"]
        draft.lose("the names and folders of sources: a graph knows models by their digests, by which they are found")
        return draft.finish()

    def _first_sources(self) -> str:
        """The primary, before all others; but behind those that fill it up where the order of forms tells that."""
        found = self._regions()
        others = found.filler if found is not None else None
        usual, elsewhere = self._cases()
        if others is not None and not is_primary_first(usual, elsewhere, self.own, self.held):
            for digest in sorted(self.models[others]):
                self._source(digest)
        return self._source(self.graph["primary"])

    def _source(self, digest: str) -> str:
        if not _DIGEST.fullmatch(digest):
            raise ValueError
        return spell(self.draft.source(digest, f"x_{digest[3:13]}", f"hash:{digest}"))

    # -- sums ----------------------------------------------------------------------------------------------------

    def _expression(self) -> dict[str, Value]:
        """The output's expression, with what has to be said beside it: its primary, replaced components."""
        usual, elsewhere = self._cases()
        if any("apply" in self.forms[n] for n in (usual, *elsewhere)):
            raise ValueError
        free = {self.degrees[n] for n in (usual, *elsewhere)} != {Fraction(0 if self.delta else 1)}
        if free and self.delta:
            raise RecipeError(f"{self.path}: a difference whose shares do not add up to 0 is no expression here")
        if elsewhere and not free and not self.delta:
            return self._of_regions(self._regions() or Regions(usual, {}, elsewhere))
        shares = shares_of(self.forms, self.graph["primary"], usual, elsewhere)
        value: dict[str, Value] = {"from": self._sum(shares, free=free)}
        if not self.delta and self._is_hidden(shares):
            value["like"] = self.primary
        return value

    def _cases(self) -> tuple[int, dict[int, Sequence[str]]]:
        """The form of most tensors, and the tensors of each other one."""
        others = self.graph.get("others", {})
        return int(self.graph["form"]), {int(n): list(names) for n, names in others.items()}

    def _regions(self) -> Regions | None:
        return regions(*self._cases(), self.own, self.held) if self.held.tensors and self.forms else None

    def _of_regions(self, found: Regions) -> dict[str, Value]:
        self.donated = [c for c in self.held.architecture.components if self._is_replaced(c, found.replaced)]
        shares = shares_of(self.forms, self.graph["primary"], found.main, found.elsewhere)
        expr = self._from_primary(shares) if found.elsewhere else self._sum(shares, free=False)
        like: dict[str, Value] = {"like": self.primary} if not found.elsewhere and self._is_hidden(shares) else {}
        if like and found.replaced:  # its primary is not that of the components
            expr, like = spell(self.draft.step("mixed", {"expr": expr, **like})), {}
        if found.filler is not None:
            expr = f"fallback({expr}, {self._other(found.filler)})"
            self.draft.lose("tensors that only the model has which fills in, and that were dropped, are not left out")
        value: dict[str, Value] = {"from": expr, **like}
        if found.replaced:
            value["replace"] = {component: self._other(n) for component, n in found.replaced.items()}
        return value

    def _is_replaced(self, component: str, replaced: Mapping[str, int]) -> bool:
        groups = self.held.architecture.groups
        return any(component == part or component in groups.get(part, ()) for part in replaced)

    def _is_hidden(self, shares: Mapping[str, Share]) -> bool:
        """Whether an expression of these shares has another primary than the output."""
        return shares.get(self.graph["primary"], Share()).usual <= 0

    def _other(self, n: int) -> str:
        """A form as an expression of its own."""
        found = terms(self.forms[n])
        ordered = sorted(found, key=lambda leaf: leaf != self.graph["primary"])
        return self._sum({leaf: Share(found[leaf]) for leaf in ordered}, free=False)

    def _sum(self, shares: Mapping[str, Share], *, free: bool) -> str:
        """Terms as they are; in a list of models where they do not add up to a model or a difference."""
        listed = [leaf for leaf in shares if free and self._is_model(leaf)]
        parts = [self._part(self._leaf(leaf), shares[leaf], plain=False) for leaf in listed]
        parts = [f"linear([{', '.join(parts)}], normalize=false)"] if listed else []
        rest = [leaf for leaf in shares if leaf not in listed]
        parts += [self._part(self._leaf(leaf), shares[leaf], plain=True) for leaf in rest]
        return " + ".join(parts).replace("+ -", "- ") or f"{self.primary} - {self.primary}"

    def _from_primary(self, shares: Mapping[str, Share]) -> str:
        """The same sum as its primary and differences from it: where a model lacks a tensor its difference is nothing,
        while a sum with it would be the primary's. Two models with opposite shares are a difference already."""
        left = {leaf: share for leaf, share in shares.items() if leaf != self.graph["primary"]}
        if len(left) == 1 and self._is_model(next(iter(left))):
            ((leaf, share),) = left.items()
            return f"weighted_sum({self.primary}, {self._leaf(leaf)}, {self._weight(share)})"
        parts = [self.primary]
        while left:
            leaf = next(iter(left))
            share = left.pop(leaf)
            if not self._is_model(leaf):
                parts.append(self._part(self._leaf(leaf), share, plain=True))
                continue
            other = next((o for o, s in left.items() if s == -share and self._is_model(o)), self.graph["primary"])
            left.pop(other, None)
            if other != self.graph["primary"] and share.least < 0:
                leaf, other, share = other, leaf, -share
            parts.append(self._part(f"({self._leaf(leaf)} - {self._leaf(other)})", share, plain=True))
        return " + ".join(parts).replace("+ -", "- ")

    def _is_model(self, leaf: str) -> bool:
        kind, _, rest = leaf.partition(" ")
        return kind not in ("round", "apply") or self.degrees[int(rest.rpartition(" ")[2])] != 0

    def _part(self, name: str, share: Share, *, plain: bool) -> str:
        """One term, as share * model or, in a list of models, as model @ share."""
        if not share.others and (share.usual == 1 or (plain and share.usual == -1)):
            return name if share.usual == 1 else f"-{name}"
        return f"{self._weight(share)}*{name}" if plain else f"{name} @ {self._weight(share)}"

    def _weight(self, share: Share) -> str:
        if not share.others:
            return spelled(share.usual)
        return self.draft.param("k", profile(share.usual, share.others, self.held, self.donated))

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
        free = self.degrees[n] not in (0, 1)
        expr = self._sum({leaf: Share(share) for leaf, share in terms(form).items()}, free=free)
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
