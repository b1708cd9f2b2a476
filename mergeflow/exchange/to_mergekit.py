"""A recipe's output as a configuration of mergekit, one document for each merge.

Steps that are sums are one `linear` over the models, whatever steps lie between; calls of methods that mergekit has are
documents of their own, which later ones use by name (`mergekit-multi` runs several).
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from mergeflow.errors import RecipeError
from mergeflow.exchange.calls import Called, Tree, called, items, number
from mergeflow.exchange.outline import Exported, Outline, Term, outline, terms
from mergeflow.ir.nodes import Load, Named, Node, Round
from mergeflow.ir.numbers import Number, Varying, evaluate, profiles_in
from mergeflow.plan.bound import Profile
from mergeflow.recipe import Expression, Recipe, Step
from mergeflow.recipe.command import quote
from mergeflow.tensors import DType

_DTYPES = (DType.F32, DType.F16, DType.BF16, DType.F64)
_HINT = "mergekit's linear, task_arithmetic, ties and the like are exported; write the rest as steps of those"
# method: its name there, and (our parameter, theirs, scale) of what is common to all models
_METHODS: dict[str, tuple[str, tuple[tuple[str, str, int], ...]]] = {
    "linear": ("linear", (("normalize", "normalize", 1),)),
    "task_arithmetic": ("task_arithmetic", (("scale", "lambda", 1), ("normalize", "normalize", 1))),
    "ties": ("ties", (("density", "density", 1), ("scale", "lambda", 1), ("normalize", "normalize", 1))),
    "dare": ("dare_linear", (("density", "density", 1), ("scale", "lambda", 1), ("rescale", "rescale", 1))),
    "dare_linear": ("dare_linear", (("density", "density", 1), ("scale", "lambda", 1), ("rescale", "rescale", 1))),
    "dare_ties": ("dare_ties", (("density", "density", 1), ("scale", "lambda", 1), ("rescale", "rescale", 1),
                                ("normalize", "normalize", 1))),
    "breadcrumbs": ("breadcrumbs", (("density", "density", 1), ("gamma", "gamma", 1), ("scale", "lambda", 1),
                                    ("rescale", "rescale", 1))),
    "breadcrumbs_ties": ("breadcrumbs_ties", (("density", "density", 1), ("gamma", "gamma", 1),
                                              ("scale", "lambda", 1), ("rescale", "rescale", 1),
                                              ("normalize", "normalize", 1))),
    "della": ("della", (("density", "density", 1), ("epsilon", "epsilon", 2), ("scale", "lambda", 1),
                        ("rescale", "rescale", 1), ("normalize", "normalize", 1))),
    "della_linear": ("della_linear", (("density", "density", 1), ("epsilon", "epsilon", 2), ("scale", "lambda", 1),
                                      ("rescale", "rescale", 1))),
    "nuslerp": ("nuslerp", ()),
    "multislerp": ("multislerp", ()),
    "karcher": ("karcher", ()),
    "model_stock": ("model_stock", ()),
    "sce": ("sce", (("select", "select_topk", 1),)),
    "ram": ("ram", (("epsilon", "epsilon", 1),)),
    "ram_plus": ("ramplus_tl", (("r", "r", 1), ("most", "alpha", 1), ("epsilon", "epsilon", 1))),
    "arcee_fusion": ("arcee_fusion", ()),
    "slerp": ("slerp", (("t", "t", 1),)),
    "nearswap": ("nearswap", (("t", "t", 1),)),
    "scale": ("passthrough", ()),
}  # fmt: skip
_UNWEIGHTED = ("karcher", "model_stock", "sce", "ram", "ram_plus")
_PAIRS = {"slerp": ("a", "b"), "nearswap": ("a", "b"), "arcee_fusion": ("base", "model")}  # the base, the other
_DEFAULTS: dict[str, dict[str, Any]] = {
    "linear": {"normalize": True},
    "ties": {"density": Fraction(1, 5), "normalize": True},
    "dare": {"rescale": "expected"},
    "dare_linear": {"rescale": "expected"},
    "dare_ties": {"rescale": "expected", "normalize": True},
    "breadcrumbs": {"gamma": Fraction(1, 100)},
    "breadcrumbs_ties": {"gamma": Fraction(1, 100), "normalize": True},
    "della": {"rescale": "expected", "normalize": True},
    "della_linear": {"rescale": "expected"},
}
_FIXED = {"elect": "sum", "norm": "own", "filter_wise": "false"}  # what mergekit has in one way
_RANDOM = ("dare", "dare_linear", "dare_ties", "della", "della_linear")


def export(recipe: Recipe, wanted: str | None) -> Exported:
    """The documents that make an output.

    Raises:
        RecipeError: what mergekit cannot be asked for, with its place.
    """
    found = outline(recipe, wanted)
    documents = list(_Documents(found).whole())
    lines: list[str] = []
    for i, document in enumerate(documents):
        lines += ["---"] if i else []
        lines += _yaml(document)
    return Exported("\n".join(lines) + "\n", tuple(found.losses))


class _Documents:
    def __init__(self, found: Outline) -> None:
        self.found, self.recipe = found, found.bound.recipe
        point = found.bound.points[found.path]
        self.numbers = {**found.bound.numbers, **point.numbers}
        self.names: dict[int, str] = {}  # nodes that are documents -> their names
        self.sources: dict[str, str] = {}

    def whole(self) -> Iterator[dict[str, Any]]:
        self._check_output()
        root, output = self.found.root, self.found.output
        assert isinstance(root, Named)
        steps = {id(node): name for name, node in self.found.bound.steps.items()}
        for node in self.found.order:
            name = steps.get(id(node), "")
            if not name or node is root:
                continue
            step = self.recipe.steps[name]
            if step.replace or step.like:
                raise self.found.refuse(node, "has replace: or like:, which mergekit has not", _HINT)
            document = self._call(step, node)
            if document is None and isinstance(node, Round):
                document = self._linear(node.of)
            if document is not None:
                if isinstance(node, Round):
                    document["out_dtype"] = self._dtype(node.dtype)
                self.names[id(node)] = name
                yield {"name": name, **document}
        final = self._call(output.expr, root) or self._linear(root)
        if output.dtype is not None:
            final["out_dtype"] = self._dtype(output.dtype)
        if final["merge_method"] not in ("linear", "slerp", "passthrough"):
            self.found.lose(
                "mergekit computes in the dtype of the tensors; add dtype: float32 for sums as exact as here"
            )
        yield final

    def _check_output(self) -> None:
        output = self.found.output
        for key in ("only", "drop", "replace", "like", "dtypes"):
            if getattr(output, key):
                raise RecipeError(f"{key}: of an output is nothing that mergekit has", place=output.place, hint=_HINT)
        for key in ("fix", "mark", "metadata", "metadata_for"):
            if getattr(output, key):
                self.found.lose(f"{key}: of the output")
        if self.recipe.options.policy != "exact":
            self.found.lose(f"policy: {self.recipe.options.policy}")

    def _dtype(self, dtype: DType) -> str:
        if dtype not in _DTYPES:
            raise RecipeError(f"mergekit does not write {dtype.label}", place=self.found.output.place)
        return dtype.label

    # -- sums ----------------------------------------------------------------------------------------------------

    def _linear(self, node: Node) -> dict[str, Any]:
        parts = terms(node, set(self.names))
        if len(parts) == 1 and parts[0].share == 1 and isinstance(parts[0].leaf, Load):
            return {"merge_method": "passthrough", "models": [{"model": self._model(parts[0])}]}
        models = [{"model": self._model(p), "parameters": {"weight": self._number(p.share, node)}} for p in parts]
        return {"merge_method": "linear", "models": models, "parameters": {"normalize": False}}

    def _model(self, part: Term) -> str:
        if id(part.leaf) in self.names:
            return self.names[id(part.leaf)]
        if not isinstance(part.leaf, Load):
            raise self.found.refuse(
                part.leaf, "holds something that is no sum and no step of its own", "give each method a step of its own"
            )
        return self._source(part.leaf)

    def _source(self, load: Load) -> str:
        ref = self.found.bound.sources[load.source]
        declared = ref.declared
        if declared.kind not in (None, "model") or declared.ema not in (None, "keep"):
            raise RecipeError(f"{ref.name} has kind: or ema:, which mergekit has not", place=declared.place, hint=_HINT)
        if not (declared.path or declared.url):
            self.found.lose(f"{ref.name}: the file's path, which is not known: write it in the place of the hash")
        elif declared.sha256 or declared.hash:
            self.found.lose(f"{ref.name}: the hash that its file must have")
        return declared.called

    def _number(self, value: Number, node: Node) -> Any:
        """A number; of a profile of patterns, mergekit's list of filters."""
        if isinstance(value, Fraction):
            return value
        names = sorted(profiles_in(value))
        profile = self.found.bound.profiles[names[0]]
        if len(names) > 1 or profile.listed is not None:
            raise self.found.refuse(
                node, "has block weights, or several profiles in one number", "mergekit has filters"
            )
        return self._filters(profile, value)

    def _filters(self, profile: Profile, value: Varying) -> list[dict[str, Any]]:
        rules: list[dict[str, Any]] = []
        for entry in profile.entries:
            text = entry.selector[1:-1]
            if not (entry.selector.startswith("*") and entry.selector.endswith("*") and text) or "*" in text:
                raise RecipeError(
                    f"mergekit's filters are parts of names, as *attn*; {entry.selector} is not", place=entry.place
                )
            if len(entry.numbers) > 1:
                raise RecipeError("a gradient over a pattern is not exported", place=entry.place)
            rules.append({"filter": text, "value": evaluate(value, {profile.name: entry.numbers[0]})})
        if profile.default is not None:
            rules.append({"value": evaluate(value, {profile.name: profile.default})})
        return rules

    # -- calls ---------------------------------------------------------------------------------------------------

    def _call(self, part: Step | Expression, node: Node) -> dict[str, Any] | None:
        """A document for a call of a method that mergekit has; None for what may be a sum."""
        call = called(part)
        if call is None or call.method not in _METHODS:
            return None
        name, settings = _METHODS[call.method]
        self._check_fixed(call, node)
        if call.method in _PAIRS:
            first, second = _PAIRS[call.method]
            models: list[Any] = [{"model": self._named(call.given[second], node)}]
            base: str | None = self._named(call.given[first], node)
        elif call.method == "scale":
            share = self._value(call.given["k"], node)
            return {
                "merge_method": name,
                "models": [{"model": self._named(call.given["x"], node), "parameters": {"scale": share}}],
            }
        else:
            models = list(self._weighted(call, node))
            base = self._named(call.given["base"], node) if "base" in call.given else None
        document: dict[str, Any] = {"merge_method": name}
        if base is not None and call.method != "karcher":
            document["base_model"] = base
        document["models"] = models
        along = call.given.get("along")
        common: dict[str, Any] = {}
        if along is not None and along.name in ("first", "last"):
            common = {"nuslerp_flatten": False, "nuslerp_row_wise": along.name == "first"}
        common |= {theirs: v for ours, theirs, by in settings if (v := self._setting(call, ours, by, node)) is not None}
        if call.method in ("dare", "dare_linear", "della_linear", "breadcrumbs"):
            common.setdefault("normalize", False)
        if common:
            document["parameters"] = common
        if call.method in _RANDOM:
            self.found.lose(f"{call.method}: the random masks are others in mergekit")
        return document

    def _check_fixed(self, call: Called, node: Node) -> None:
        for key, usual in _FIXED.items():
            if key in call.given and call.given[key].name != usual:
                raise self.found.refuse(node, f"has {key}={call.given[key].name}, which mergekit has not", _HINT)
        if (
            call.method in ("sce", "ram", "ram_plus")
            and "scale" in call.given
            and self._value(call.given["scale"], node) != 1
        ):
            raise self.found.refuse(node, f"has scale=, which mergekit's {call.method} has not", _HINT)
        if call.method == "karcher" and "base" in call.given:
            raise self.found.refuse(node, "has base=, which mergekit's karcher has not", _HINT)
        if call.method == "slerp" and not self._is_theirs(call):
            self.found.lose("slerp: above a cosine of 0.9995 mergekit's is linear")

    def _is_theirs(self, call: Called) -> bool:
        limit = call.given.get("lerp_above")
        return limit is not None and number(limit, self.numbers) == Fraction(9995, 10000)

    def _weighted(self, call: Called, node: Node) -> Iterator[dict[str, Any]]:
        for model, weight in items(call.given["models"]):
            entry: dict[str, Any] = {"model": self._named(model, node)}
            if call.method not in _UNWEIGHTED:
                value = Fraction(1) if weight is None else self._value(weight, node)
                entry["parameters"] = {"weight": value}
            elif weight is not None:
                raise self.found.refuse(node, f"has weights, which mergekit's {call.method} has not", _HINT)
            yield entry

    def _named(self, tree: Tree, node: Node) -> str:
        """A model that stands by its name: a source, or a step that is a document."""
        name = tree.name
        known = self.found.bound.nodes.get(name or "")
        while isinstance(known, Named) and id(known) not in self.names and isinstance(known.of, Load | Named):
            known = known.of
        if isinstance(known, Load):
            return self._source(known)
        if known is not None and id(known) in self.names:
            return self.names[id(known)]
        raise self.found.refuse(
            node,
            "takes a sum of models as an operand",
            "write that as a step with round: float32, a document of its own",
        )

    def _value(self, tree: Tree, node: Node) -> Any:
        found = number(tree, self.numbers)
        if found is not None:
            return found
        profile = self.found.bound.profiles.get(tree.name or "")
        if profile is not None and profile.listed is None:
            return self._filters(profile, Varying("profile", profile.name))
        raise self.found.refuse(node, "has a number that mergekit cannot be told", _HINT)

    def _setting(self, call: Called, ours: str, by: int, node: Node) -> Any:
        tree = call.given.get(ours)
        default = _DEFAULTS.get(call.method, {}).get(ours)
        if ours == "rescale":
            word = tree.name if tree is not None else default
            if word == "expected":
                self.found.lose(f"{call.method}: mergekit rescales to the same L1 norm, not by the density")
            return None if word is None else word not in ("none", "false")
        if tree is None:
            return default
        if tree.name in ("true", "false"):
            return tree.name == "true"
        value = self._value(tree, node)
        return value / by if isinstance(value, Fraction) else value


def _yaml(document: dict[str, Any]) -> list[str]:
    lines = []
    for key, value in document.items():
        if key == "models":
            lines.append("models:")
            lines += [f"  - {_flow(entry)}" for entry in value]
        else:
            lines.append(f"{key}: {_flow(value)}")
    return lines


def _flow(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Fraction):
        return _float(value)
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key}: {_flow(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return quote(str(value))


def _float(value: Fraction) -> str:
    """mergekit reads floats: the shortest decimal of the nearest one."""
    return repr(float(value)) if value.denominator != 1 else str(value.numerator)
