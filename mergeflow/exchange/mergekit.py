"""mergekit's configurations: one merge, or several documents of which later ones use earlier ones by name.

Keys that mergekit ignored are said to have had no effect; what decides the result and cannot be said here is refused.
The arithmetic differs on purpose (sums here are exact), unless `faithful` asks for mergekit's roundings
(`rounding.py`), where those can be repeated.
"""

from __future__ import annotations

import re
from pathlib import Path

from mergeflow.errors import MissingInput, Place, RecipeError, UnknownName
from mergeflow.exchange.draft import Draft, Imported, Locate, Value, one_line, stem
from mergeflow.exchange.mergekit_documents import documents, in_order
from mergeflow.exchange.mergekit_merge import Input, Merge
from mergeflow.exchange.mergekit_methods import METHODS
from mergeflow.exchange.mergekit_settings import need, scalar_text, settings
from mergeflow.formats.contents import read_contents
from mergeflow.recipe import nodes
from mergeflow.recipe.expression import spell
from mergeflow.tensors import DType

DTYPES = {"float32": DType.F32, "float16": DType.F16, "bfloat16": DType.BF16, "float64": DType.F64}
FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
_KNOWN = ("merge_method", "name", "base_model", "models", "slices", "modules", "parameters", "dtype", "out_dtype",
          "tokenizer", "tokenizer_source", "chat_template")  # fmt: skip
_OTHER_TOOLS = {
    "genome": "a search by mergekit-evolve, which needs a score for each try",
    "experts": "a mixture of experts (mergekit-moe)",
    "gate_mode": "a mixture of experts (mergekit-moe)",
    "layer_slices": "a recipe for bakllama, which stacks layers",
}
_USE_MERGEKIT = "mergekit itself does that"


def is_config(text: str) -> bool:
    keys = re.findall(r"^([a-z_]+):", text, re.MULTILINE)
    others = bool(set(keys) & set(_OTHER_TOOLS))
    return "merge_method" in keys or ("models" in keys and "mergeflow" not in keys) or others


def read(text: str, path: str, *, faithful: bool = False, locate: Locate = lambda path: path) -> Imported:
    """The recipe of a configuration.

    Raises:
        RecipeError: what cannot be said in a recipe, with its place in the configuration.
    """
    roots = [nodes.compose(source) for source in documents(text, path)]
    return _Reader(path, Draft(f"mergekit's configuration {stem(path)}", locate), faithful).whole(roots)


class _Reader:
    def __init__(self, path: str, draft: Draft, faithful: bool) -> None:
        self.path, self.draft, self.faithful = path, draft, faithful
        self.stages: dict[str, str] = {}  # a document's name -> its step
        self.paths: dict[str, None] = {}  # of models, as they are typed
        self.folders = False  # whether one of them is no file

    def whole(self, roots: list[nodes.Mapping]) -> Imported:
        if not roots:
            raise RecipeError("the configuration is empty", place=Place(self.path))
        names = [scalar_text(root.items["name"][1]) if "name" in root.items else "" for root in roots]
        order = in_order(roots, names)
        last = order[-1]
        for i in order:
            self._document(roots[i], names[i], last=i == last)
        return self.draft.finish()

    def _document(self, root: nodes.Mapping, name: str, *, last: bool) -> None:
        self._refuse(root)
        method = scalar_text(need(root, "merge_method"))
        if method not in METHODS:
            place = root.items["merge_method"][1].where
            raise UnknownName("method of mergekit that is imported", method, METHODS, place=place)
        models = self._models(root)
        common = (
            settings(root.items["parameters"][1], "all", self.draft, layered=self.folders)
            if "parameters" in root.items
            else {}
        )
        base = self._model(root.items["base_model"][1]) if "base_model" in root.items else None
        dtype = _dtype(root, "dtype")
        known = METHODS[method]
        if not known.whole:
            models = [model for model in models if model.name != base]
        merge = Merge(method, base, models, common, root, self.draft, dtype, self.faithful)
        for key in [*common, *(key for model in models for key in model.own)]:
            if key not in known.settings:
                self.draft.lose(f"{one_line(key)}: had no effect on {method} in mergekit")
        if merge.faithful and merge.dtype is None:
            merge.dtype = self._common_dtype(root)
        elif merge.faithful and merge.dtype is not None:
            self._cast(merge, merge.dtype)
        if merge.faithful and merge.dtype is DType.F64:
            raise root.error(
                "--faithful repeats roundings to float32, float16 and bfloat16, and these models are float64",
                "leave it out: sums are computed in float64 and rounded once",
            )
        expr = known.call(merge)
        out = _dtype(root, "out_dtype") or merge.result or dtype
        self._keep(expr, out, name, root, last=last)

    def _cast(self, merge: Merge, dtype: DType) -> None:
        """dtype: rounds the models before anything else."""

        def cast(name: str) -> str:
            return spell(self.draft.step(f"{name}_{dtype.label}", {"expr": name, "round": dtype.label}))

        done = {name: cast(name) for name in dict.fromkeys([*merge.names(), *([merge.base] if merge.base else [])])}
        merge.base = done[merge.base] if merge.base else None
        for model in merge.models:
            model.name = done[model.name]

    def _keep(self, expr: str, out: DType | None, name: str, root: nodes.Mapping, *, last: bool) -> None:
        """A document as a step that others use, the last one as the output."""
        if not last:
            value: Value = {"expr": expr, "round": out.label} if out is not None and self.faithful else expr
            if out is not None and not self.faithful:
                self.draft.lose(f"between documents mergekit rounds to {out.label}; steps here are not rounded")
            self.stages[name] = self.draft.step(name, value)
            return
        if out is not None:
            label = out.label
            value = {"from": expr, "dtype": label}
        else:
            value = expr
        self.draft.output(f"{stem(Path(self.path).stem) or 'merged'}.safetensors", value)
        if not self.faithful:
            self.draft.lose("mergekit rounds as it goes, in the tensors' dtype; sums here are exact, rounded once")
        if self.folders:
            self.draft.lose("config.json and the tokenizer are not made: copy them from one of the models")

    def _refuse(self, root: nodes.Mapping) -> None:
        for key, (node, _) in root.items.items():
            if key in _OTHER_TOOLS:
                raise node.error(f"this is {_OTHER_TOOLS[key]}", _USE_MERGEKIT)
            if key not in _KNOWN:
                self.draft.lose(f"{one_line(key)}: had no effect in mergekit")
        for key in ("tokenizer", "tokenizer_source"):
            if key in root.items:
                self._tokenizer(root.items[key][1])
        if "modules" in root.items:
            raise root.key("modules").error("merges of models with several modules are not imported", _USE_MERGEKIT)
        if "chat_template" in root.items:
            self.draft.lose("chat_template: belongs to the tokenizer, which is not made")

    def _tokenizer(self, node: nodes.Node) -> None:
        if isinstance(node, nodes.Mapping):
            for key in ("tokens", "pad_to_multiple_of"):
                if key in node.items:
                    raise node.key(key).error(f"tokenizer: {key} changes the rows of embeddings", _USE_MERGEKIT)
            node = node.items["source"][1] if "source" in node.items else node
        if not isinstance(node, nodes.Scalar) or node.value == "union":
            raise node.error("a union of tokenizers changes the rows of embeddings, tensor by token", _USE_MERGEKIT)
        self.draft.lose(f"the tokenizer is not made: copy that of {one_line(node.value)}")

    # -- models --------------------------------------------------------------------------------------------------

    def _models(self, root: nodes.Mapping) -> list[Input]:
        given = [key for key in ("models", "slices") if key in root.items]
        if len(given) != 1:
            raise root.error("a merge has models: or slices:, one of them")
        node = root.items[given[0]][1]
        if given[0] == "slices":
            node = self._one_slice(node)
        if not isinstance(node, nodes.Sequence) or not node.items:
            raise node.error(f"{given[0]}: is a list of models")
        models = []
        for item in node.items:
            if not isinstance(item, nodes.Mapping) or "model" not in item.items:
                raise item.error("a model is an entry as - model: NAME")
            self._other_keys(item, ("model", "parameters", "layer_range"))
            name = self._model(item.items["model"][1])
            own = (
                settings(item.items["parameters"][1], name, self.draft, layered=self.folders)
                if "parameters" in item.items
                else {}
            )
            models.append(Input(name, own))
        if len({model.name for model in models}) < len(models):
            raise node.error("a model is listed twice", "add its weights up")
        return models

    def _one_slice(self, node: nodes.Node) -> nodes.Node:
        """Slices that are no stack of layers: one, with the same layers of all models, taken for the whole of them."""
        slices = node.items if isinstance(node, nodes.Sequence) else []
        if len(slices) != 1 or not isinstance(slices[0], nodes.Mapping) or "sources" not in slices[0].items:
            raise node.error(
                "slices that stack layers are not imported: the tensors of the result would be other layers'",
                _USE_MERGEKIT,
            )
        self._other_keys(slices[0], ("sources",))
        sources = slices[0].items["sources"][1]
        ranges = set()
        for item in sources.items if isinstance(sources, nodes.Sequence) else []:
            if isinstance(item, nodes.Mapping) and "layer_range" in item.items:
                span = item.items["layer_range"][1]
                ranges.add(
                    tuple(map(scalar_text, span.items)) if isinstance(span, nodes.Sequence) else (scalar_text(span),)
                )
        if len(ranges) != 1 or next(iter(ranges))[0] != "0":
            raise sources.error("the models' layers are not the same, from 0 on: a stack of layers", _USE_MERGEKIT)
        self.draft.lose(f"layer_range [{', '.join(next(iter(ranges)))}] is taken for all layers of the models")
        return sources

    def _other_keys(self, node: nodes.Mapping, known: tuple[str, ...]) -> None:
        for key, (where, _) in node.items.items():
            if key in ("base_model", "parameters") and key not in known:
                raise where.error(f"{key}: of a slice is not imported", "give it once, for the whole merge")
            if key not in known:
                self.draft.lose(f"{one_line(key)}: had no effect in mergekit")

    def _model(self, node: nodes.Node) -> str:
        """The name of a model, as expressions spell it."""
        if isinstance(node, nodes.Mapping):
            if "lora" in node.items:
                raise node.key("lora").error("a LoRA on a model is not imported", "bake it first, and name the result")
            inner = need(node, "model")
            path = scalar_text(need(inner, "path")) if isinstance(inner, nodes.Mapping) else scalar_text(inner)
            named = inner.items.get("revision") if isinstance(inner, nodes.Mapping) else None
            return self._source(path, scalar_text(named[1]) if named is not None else "")
        text = scalar_text(node)
        if text in self.stages:
            return spell(self.stages[text])
        if text.lower().endswith(FILES):
            return self._source(text, "")
        path, plus, _ = text.partition("+")
        if plus:
            raise node.error("a LoRA on a model (model+lora) is not imported", "bake it first, and name the result")
        path, _, revision = path.partition("@")
        return self._source(path, revision)

    def _source(self, path: str, revision: str) -> str:
        path = one_line(path)
        self.paths.setdefault(path)
        if not path.lower().endswith(FILES):
            self.folders = True
            if re.fullmatch(r"[\w.-]+/[\w.-]+", path):
                self.draft.lose(f"{path} is taken as a folder of that name: download it there")
        if revision:
            self.draft.lose(f"{path}: revision {one_line(revision)} is not asked for; a lock holds what was used")
        return spell(self.draft.file(path))

    def _common_dtype(self, root: nodes.Mapping) -> DType:
        """The dtype that all models have, for which roundings can be written down."""
        found: set[DType] = set()
        for path in self.paths:
            try:
                found |= {spec.dtype for spec in read_contents(Path(path)).tensors.values() if spec.dtype.is_float}
            except MissingInput:
                found.clear()
                break
        if len(found) != 1:
            raise root.error(
                "--faithful has to know the dtype of the models, and they have not one, or are not there",
                "say dtype: in the configuration, or run it where the models are",
            )
        return found.pop()


def _dtype(root: nodes.Mapping, key: str) -> DType | None:
    if key not in root.items or (isinstance(n := root.items[key][1], nodes.Scalar) and n.is_null):
        return None
    node = root.items[key][1]
    if scalar_text(node) not in DTYPES:
        raise UnknownName("dtype of mergekit", scalar_text(node), DTYPES, place=node.where)
    return DTYPES[scalar_text(node)]
