"""`sd_merge_recipe` and `sd_merge_models` of A1111's checkpoint merger, as it writes them into a result: the run that
made the file, and by the sha256 of files the runs that made what went into it.

The ancestry is walked with a stack; each ancestor that was merged itself is a step, each that was not a source. Under
`policy: a1111` the build has that merger's roundings. supermerger's variant is in `supermerger.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from mergeflow.errors import RecipeError
from mergeflow.exchange import supermerger
from mergeflow.exchange.draft import Draft, Imported, Value, one_line, spelled, stem
from mergeflow.exchange.loose import number, table, true, word
from mergeflow.recipe.expression import spell

RECIPE, MODELS = "sd_merge_recipe", "sd_merge_models"
PARTS = ("primary_model_hash", "secondary_model_hash", "tertiary_model_hash")
_DIGEST = re.compile("b3:[0-9a-f]{64}")  # of mergeflow's own, where a model had no sha256
_FALLBACK = ("primary", "secondary", "tertiary")
MOST_RUNS = 5000


def read(metadata: Mapping[str, str], path: str, architecture: str = "") -> Imported:
    """The recipe of a file with such metadata. `path` names the file, `architecture` what its tensors are of.

    Raises:
        RecipeError: the metadata is damaged, or says nothing that can be done again.
    """
    recipe = table(metadata.get(RECIPE))
    if not recipe:
        raise RecipeError(f"{path}: {RECIPE} is no JSON object", hint="the metadata was damaged or cut off")
    if not (recipe.get("type") == supermerger.TYPE or _parts(recipe) or _terms(recipe)):
        raise RecipeError(f"{path}: {RECIPE} names no model", hint="nothing can be made again from it")
    reader = _Reader(table(metadata.get(MODELS)), path, architecture)
    return reader.whole(recipe)


def _parts(recipe: Mapping[str, Any]) -> list[str]:
    return [word(recipe.get(part)) for part in PARTS if word(recipe.get(part))]


def _terms(recipe: Mapping[str, Any]) -> list[tuple[Fraction, str]]:
    """Of mergeflow's own: shares and the models that they are of."""
    found = recipe.get("terms")
    if not isinstance(found, list):
        return []
    pairs = [(_share(t[0]), word(t[1])) for t in found if isinstance(t, list) and len(t) == 2]
    terms = [(share, what) for share, what in pairs if share is not None and what]
    return terms if len(terms) == len(found) else []


def _share(text: object) -> Fraction | None:
    """A number, or a quotient of two."""
    over, slash, under = str(text).partition("/")
    first, second = number(over), number(under) if slash else Fraction(1)
    return None if first is None or not second else first / second


class _Reader:
    def __init__(self, models: Mapping[str, Any], path: str, architecture: str) -> None:
        self.models, self.path = models, path
        self.draft = Draft(f"the merge metadata of {stem(path)}")
        self.architecture = architecture
        self._done: dict[str, str] = {}  # a file's sha256 -> its source or step
        self.exact = False  # whether something keeps the result from having that merger's bytes

    def whole(self, recipe: Mapping[str, Any]) -> Imported:
        for sha256 in self._ancestors(recipe):
            own = self._recipe_of(sha256)
            self._done[sha256] = self._step(own, self._name(sha256)) if own else self._source(sha256)
        value = self._run(recipe, output=True)
        self.draft.output(self.path, value)
        if not self.exact:
            self.draft.options["policy"] = "a1111"
        return self.draft.finish()

    def _recipe_of(self, sha256: str) -> dict[str, Any]:
        """The run that made a model, where that is known."""
        found = table(self.models.get(sha256)).get(RECIPE)
        own = table(found)
        return own if own.get("type") == supermerger.TYPE or _parts(own) or _terms(own) else {}

    def _inputs(self, recipe: Mapping[str, Any]) -> list[str]:
        if recipe.get("type") == supermerger.TYPE:
            return [sha for sha in map(word, (recipe.get(f"model_{x}") for x in "abc")) if sha]
        return [*_parts(recipe), *(what for _, what in _terms(recipe))]

    def _ancestors(self, recipe: Mapping[str, Any]) -> list[str]:
        """The models under a run, each after those that it was made of.

        Raises:
            RecipeError: a model that is its own ancestor, or more runs than anybody makes.
        """
        order: dict[str, None] = {}
        open_: set[str] = set()
        stack = [(sha, False) for sha in reversed(self._inputs(recipe))]
        while stack:
            sha, expanded = stack.pop()
            if expanded:
                open_.discard(sha)
                order[sha] = None
                continue
            if sha in order:
                continue
            if sha in open_:
                raise RecipeError(f"{self.path}: by {MODELS}, {sha[:10]} is its own ancestor")
            if len(order) + len(open_) > MOST_RUNS:
                raise RecipeError(f"{self.path}: {MODELS} has more than {MOST_RUNS:,} ancestors")
            open_.add(sha)
            stack.append((sha, True))
            stack += [(below, False) for below in reversed(self._inputs(self._recipe_of(sha)))]
        return list(order)

    def _name(self, sha256: str) -> str:
        entry = table(self.models.get(sha256))
        return stem(one_line(word(entry.get("name")))) or f"model_{sha256.removeprefix('b3:')[:10]}"

    def _source(self, sha256: str) -> str:
        """A file: by the name it had there, which is a guess, and by its hash, which is not."""
        entry = table(self.models.get(sha256))
        name = one_line(word(entry.get("name"))).replace("\\", "/").rpartition("/")[2]
        short = sha256.removeprefix("b3:")[:10]
        path = name if name.lower().endswith((".safetensors", ".ckpt")) else f"{name or short}.safetensors"
        value: dict[str, Value] = {"path": path}
        if _DIGEST.fullmatch(sha256):
            value["hash"] = sha256
        elif len(sha256) == 64 and all(c in "0123456789abcdefABCDEF" for c in sha256):
            value["sha256"] = sha256.lower()
        else:
            value["note"] = one_line(sha256)
        if not name and not _DIGEST.fullmatch(sha256):
            self.draft.lose(f"no name is known of the model {short}: its path is a placeholder")
        return self.draft.source(sha256, self._name(sha256), value)

    def _step(self, recipe: Mapping[str, Any], wish: str) -> str:
        return self.draft.step(wish, self._run(recipe, output=False))

    def _model(self, recipe: Mapping[str, Any], part: int) -> str:
        """The name of A, B or C of a run."""
        sha256 = word(recipe.get(PARTS[part]))
        if sha256:
            return spell(self._done[sha256])
        # read before the webui had hashed the file: then the ancestry has the one that nothing else refers to
        left = [sha for sha in self.models if sha not in self._done]
        if len(left) == 1:
            self._done[left[0]] = self._source(left[0])
            return spell(self._done[left[0]])
        name = _FALLBACK[part]
        self.draft.lose(f"the {name} model was not hashed: {name}.safetensors is a placeholder for it")
        return spell(self.draft.source(name, name, f"{name}.safetensors"))

    def _run(self, recipe: Mapping[str, Any], *, output: bool) -> Value:
        """What one run made, as a step or as an output."""
        if recipe.get("type") == supermerger.TYPE:
            self.exact = True
            names = {x: spell(self._done[sha]) for x in "abc" if (sha := word(recipe.get(f"model_{x}")))}
            return supermerger.expression(self.draft, recipe, names, self.architecture)
        options: dict[str, Value] = {}
        if true(recipe.get("save_as_half")):
            options["dtype" if output else "round"] = "float16"
        self._bake(recipe, options)
        self._discard(recipe, options, output=output)
        expr = self._formula(recipe)
        if not options:
            return expr
        return {"from" if output else "expr": expr, **options}

    def _bake(self, recipe: Mapping[str, Any], options: dict[str, Value]) -> None:
        vae = word(recipe.get("bake_in_vae"))
        if vae and vae.lower() != "none":
            file = one_line(vae).replace("\\", "/").rpartition("/")[2]
            options["replace"] = {"vae": spell(self.draft.source(f"vae {file}", f"vae_{stem(file)}", file))}
            self.draft.lose(f"the baked VAE {file} is known by its name alone, without a hash")
            self._give_up("bakes a VAE")

    def _discard(self, recipe: Mapping[str, Any], options: dict[str, Value], *, output: bool) -> None:
        discarded = word(recipe.get("discard_weights"))
        if discarded and output:
            options["drop"] = [f"/{discarded}/"]
        elif discarded:
            self.draft.lose(
                f"an ancestor was saved without the tensors that match {one_line(discarded)}; the step still has them"
            )

    def _formula(self, recipe: Mapping[str, Any]) -> str:
        if terms := _terms(recipe):  # ours, exact, and any number of models
            self._give_up("is a sum that mergeflow has made")
            parts = [f"{spelled(share)}*{spell(self._done[what])}" for share, what in terms]
            first = spell(self._done[word(recipe.get(PARTS[0]))]) if word(recipe.get(PARTS[0])) else ""
            ours = [p for p in parts if p.endswith(f"*{first}")] + [p for p in parts if not p.endswith(f"*{first}")]
            return _joined(ours)
        a, method = self._model(recipe, 0), word(recipe.get("interp_method")).lower()
        given = number(recipe.get("multiplier"))
        m = Fraction(3, 10) if given is None else given
        if given is None and method not in ("no interpolation", ""):
            self.draft.lose("the multiplier is not in the metadata: 0.3, that merger's default, stands for it")
        if method == "weighted sum":
            return f"weighted_sum({a}, {self._model(recipe, 1)}, {spelled(m)})"
        if method == "add difference":
            b, c = self._model(recipe, 1), self._model(recipe, 2)
            return f"{a} + ({b} - {c}) * {spelled(m)}"
        if method in ("no interpolation", ""):
            return a
        raise RecipeError(
            f"{self.path}: the method {one_line(word(recipe.get('interp_method')))} is none of that merger's",
            hint="Weighted sum, Add difference and No interpolation are known",
        )

    def _give_up(self, why: str) -> None:
        self.exact = True
        self.draft.lose(f"the merge {why}: sums are exact, without the roundings of A1111's merger (policy: a1111)")


def _joined(parts: list[str]) -> str:
    """0.5*a + 0.5*b − 0.2*c"""
    text = " + ".join(parts)
    return text.replace("+ -", "- ")
