"""A recipe's output as runs of A1111's checkpoint merger, one after the other (`runs.py` has their form)."""

from __future__ import annotations

from fractions import Fraction
from pathlib import PurePosixPath

from mergeflow.errors import RecipeError
from mergeflow.exchange.outline import Exported, Outline, Term, degrees, outline, terms
from mergeflow.exchange.runs import ADD, NONE, SUM, TITLE, Run
from mergeflow.ir.nodes import Apply, Load, Named, Node, Pick, Replace, Round, Sum
from mergeflow.recipe import Recipe
from mergeflow.recipe.shared import file_name
from mergeflow.tensors import DType

_FLAT = "steps that are weighted sums and add differences can be exported; supermerger and others do block weights"


def export(recipe: Recipe, wanted: str | None) -> Exported:
    """The runs that make an output.

    Raises:
        RecipeError: what that merger cannot be asked for, with its place.
    """
    found = outline(recipe, wanted)
    runs = _Runs(found).whole()
    if recipe.options.policy != "a1111":
        found.lose("that merger rounds after every operation; the recipe's sums are exact")
    output = found.output
    for key in ("fix", "mark", "metadata", "metadata_for"):
        if getattr(output, key):
            found.lose(f"{key}: of the output")
    if output.dtype not in (None, DType.F16) or output.dtypes:
        found.lose("dtype: that merger keeps dtypes, or saves as float16")
    file = PurePosixPath(found.path).name
    lines = [f"{TITLE}: {recipe.name or file}", *(run.line(n) for n, run in enumerate(runs, 1))]
    return Exported("\n".join(lines) + "\n", tuple(found.losses))


class _Runs:
    def __init__(self, found: Outline) -> None:
        self.found = found
        self.degrees = degrees(found.order)
        inside = {id(node.of) for node in found.order if isinstance(node, Named)}
        self.stops = {
            id(node)
            for node in found.order
            if (isinstance(node, Named) or (isinstance(node, Sum) and id(node) not in inside)) and self._is_model(node)
        } | {id(node) for node in found.order if isinstance(node, Round)}
        self.runs: list[Run] = []
        self.results: dict[int, str] = {}
        self.taken: set[str] = set()

    def _is_model(self, node: Node) -> bool:
        return self.degrees[id(node)] == 1

    def whole(self) -> list[Run]:
        for node in self.found.order:
            if isinstance(node, Load):
                self._load(node)
            elif isinstance(node, Round):
                self._half(node)
            elif id(node) in self.stops:
                self._merge(node)
        file = PurePosixPath(self.found.path).name
        last = self.results.get(id(self.found.root))
        if last is None:
            raise self.found.refuse(self.found.root, "is a difference, and that merger makes models", _FLAT)
        if not any(run.result == last for run in self.runs):  # a file as it is
            self.runs.append(Run(NONE, (last,), None, False, file))
        self._rename(last, file)
        if self.found.output.dtype is DType.F16:
            self.runs = [run._replace(half=True) if run.result == file else run for run in self.runs]
        if self.found.output.only or self.found.output.drop or self.found.output.replace or self.found.output.like:
            raise RecipeError(
                "only:, drop:, replace: and like: of an output cannot be said to that merger",
                place=self.found.output.place,
            )
        return self.runs

    def _load(self, node: Load) -> None:
        ref = self.found.bound.sources[node.source]
        if ref.declared.kind not in (None, "model") or ref.declared.ema not in (None, "keep"):
            raise RecipeError(
                f"{ref.name} has kind: or ema:, which that merger knows nothing of", place=ref.declared.place
            )
        self.results[id(node)] = self._fresh(file_name(ref.declared.called or ref.name))

    def _half(self, node: Round) -> None:
        """`save as float16` of the run before; of a file, a run of its own."""
        if node.dtype is not DType.F16:
            raise self.found.refuse(
                node.of, f"rounds to {node.dtype.label}", "that merger saves as float16 or as it is"
            )
        result = self.results.get(id(node.of))
        if result is None:
            raise self.found.refuse(node.of, "rounds a difference", _FLAT)
        if any(run.result == result for run in self.runs):
            self.runs = [run._replace(half=True) if run.result == result else run for run in self.runs]
            self.results[id(node)] = result
            return
        name = self.found.owner[id(node.of)].name if id(node.of) in self.found.owner else "rounded"
        self.runs.append(Run(NONE, (result,), None, True, self._fresh(name)))
        self.results[id(node)] = self.runs[-1].result

    def _merge(self, node: Node) -> None:
        parts = [self._part(term) for term in terms(node, self.stops)]
        owner = self.found.owner.get(id(node))
        wish = owner.name if owner is not None else PurePosixPath(self.found.path).name
        if len(parts) == 1 and parts[0][0] == 1:
            self.results[id(node)] = parts[0][1]
            return
        steps = decompose(parts)
        before = ""
        for i, (method, models, m) in enumerate(steps):
            if not 0 <= m <= 1:
                self.found.lose("a multiplier that is not from 0 to 1 takes a webui without that limit, or its API")
            result = self._fresh(wish if i == len(steps) - 1 else f"{wish} part {i + 1}")
            self.runs.append(Run(method, tuple(model or before for model in models), m, False, result))
            before = result
        self.results[id(node)] = before

    def _part(self, term: Term) -> tuple[Fraction, str]:
        if not isinstance(term.share, Fraction):
            raise self.found.refuse(term.leaf, "has numbers that differ from tensor to tensor, or block weights", _FLAT)
        if id(term.leaf) not in self.results:
            what = f"the method {term.leaf.kernel.name}" if isinstance(term.leaf, Apply) else "like:"
            what = "replace:" if isinstance(term.leaf, Replace) else what
            what = "pick or fallback" if isinstance(term.leaf, Pick) else what
            raise self.found.refuse(term.leaf, f"holds {what}, which that merger cannot do", _FLAT)
        return term.share, self.results[id(term.leaf)]

    def _fresh(self, wish: str) -> str:
        base = " ".join(wish.replace("->", " ").split()).replace(", ", " ")
        name, n = base, 2
        while name in self.taken:
            name, n = f"{base} {n}", n + 1
        self.taken.add(name)
        return name

    def _rename(self, old: str, new: str) -> None:
        self.runs = [
            run._replace(
                models=tuple(new if m == old and run.method != NONE else m for m in run.models),
                result=new if run.result == old else run.result,
            )
            for run in self.runs
        ]


Single = tuple[str, tuple[str, ...], Fraction]


def decompose(parts: list[tuple[Fraction, str]]) -> list[Single]:
    """A sum whose shares add up to 1 as runs, (method, models, M) each; the model '' is the run before's result."""
    (first, a), others = parts[0], parts[1:]
    if len(others) == 1 and first + others[0][0] == 1:
        return [(SUM, (a, others[0][1]), others[0][0])]
    if first != 1 and all(share > 0 for share, _ in parts):
        done: list[Single] = []
        sofar = first
        for share, model in others:
            sofar += share
            done.append((SUM, (a if not done else "", model), share / sofar))
        return done
    pool = [(first - 1, a)] if first != 1 else []
    pool += others
    plus = [(share, model) for share, model in pool if share > 0]
    minus = [(-share, model) for share, model in pool if share < 0]
    done = []
    while plus and minus:
        (p, b), (n, c) = plus[0], minus[0]
        m = min(p, n)
        done.append((ADD, (a if not done else "", b, c), m))
        plus = [(p - m, b), *plus[1:]] if p > m else plus[1:]
        minus = [(n - m, c), *minus[1:]] if n > m else minus[1:]
    return done
