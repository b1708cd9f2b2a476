"""Runs of a checkpoint merger as lines of text: what A1111's user does one after the other. Written for people, and
regular enough to be read back.

    1. Weighted sum: A = anything.safetensors, B = nai.safetensors, M = 0.3, save as float16 -> night
    2. Add difference: A = night, B = gape.safetensors, C = nai.safetensors, M = 1 -> final

sdweb-merge-board's recipes say the same in other words (`O = A + B, 0.3`), and are read here, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

from mergeflow.errors import Place, RecipeError
from mergeflow.exchange.draft import Draft, Imported, Locate, Value, one_line, spelled, stem
from mergeflow.exchange.loose import number
from mergeflow.recipe.expression import spell

TITLE = "# Runs of A1111's checkpoint merger"
SUM, ADD, NONE = "Weighted sum", "Add difference", "No interpolation"
_PARTS = {SUM: ("A", "B"), ADD: ("A", "B", "C"), NONE: ("A",)}
_LINE = re.compile(r"\d+\.\s+(?P<method>[A-Za-z ]+): (?P<given>.*) -> (?P<result>.+)")
_BOARD = re.compile(r"\s*(?P<result>[^=#]+?)\s*=\s*(?P<rest>.+)")
_VARIABLE = re.compile(r"__[^_\s](?:.*?[^_\s])?__|__\w__")
_PLUS = re.compile(r"\s+\+\s+|(?<=\.ckpt)\+|(?<=\.safetensors)\+|(?<=__)\+")  # names may hold one themselves
_FILES = (".safetensors", ".ckpt", ".pt")
_FLAGS = ("fp16", "half", "safetensors", "ckpt", "prune", "sigmoid")
MOST_LINES = 5000


class Run(NamedTuple):
    """One run. `models` are files, or results of earlier runs; `m` is None without interpolation."""

    method: str
    models: tuple[str, ...]
    m: Fraction | None
    half: bool
    result: str

    def line(self, n: int) -> str:
        given = [f"{letter} = {model}" for letter, model in zip("ABC", self.models, strict=False)]
        given += [f"M = {spelled(self.m).strip('()')}"] if self.m is not None else []
        given += ["save as float16"] if self.half else []
        return f"{n}. {self.method}: {', '.join(given)} -> {self.result}"


def is_runs(text: str) -> bool:
    return any(_LINE.fullmatch(line.strip()) for line in text.splitlines()[:200])


def is_board(text: str) -> bool:
    lines = [line for line in text.splitlines()[:200] if line.strip() and not line.lstrip().startswith("#")]
    return any((found := _BOARD.fullmatch(line)) and _is_sum(found["rest"]) and "," in found["rest"] for line in lines)


def _is_sum(text: str) -> bool:
    return _PLUS.search(text) is not None


def read(text: str, path: str, locate: Locate = lambda path: path) -> Imported:
    """The recipe of runs in our own words."""
    return _recipe(list(_own(text, path)), Draft(f"the merger's runs in {stem(path)}", locate))


def read_board(text: str, path: str, locate: Locate = lambda path: path) -> Imported:
    """The recipe of a text for sdweb-merge-board."""
    draft = Draft(f"the merge board's recipe {stem(path)}", locate)
    return _recipe(list(_boarded(text, path, draft)), draft)


def _recipe(runs: list[Run], draft: Draft) -> Imported:
    """Results that later runs use are steps; all others, and those that are files, are outputs."""
    used = {model for run in runs for model in run.models}
    steps: dict[str, str] = {}
    for run in runs:
        models = [spell(steps[m] if m in steps else draft.file(m)) for m in run.models]
        expr, file = _formula(run, models), run.result.lower().endswith(_FILES)
        value: Value = expr
        if run.result in used:
            value = {"expr": expr, "round": "float16"} if run.half else expr
            steps[run.result] = draft.step(stem(run.result), value)
            value = spell(steps[run.result])
        elif run.half:
            value = {"from": expr, "dtype": "float16"}
        if file or run.result not in used:
            draft.output(run.result, value)
    draft.options["policy"] = "a1111"
    return draft.finish()


def _formula(run: Run, models: list[str]) -> str:
    if run.m is None:
        return models[0]
    if run.method == SUM:
        return f"weighted_sum({models[0]}, {models[1]}, {spelled(run.m)})"
    return f"{models[0]} + ({models[1]} - {models[2]}) * {spelled(run.m)}"


def _own(text: str, path: str) -> Iterator[Run]:
    seen: set[str] = set()
    for at, line in _lines(text, path):
        if line.startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        if found is None or found["method"] not in _PARTS:
            message = f"this is no run: {one_line(line)[:80]}"
            raise RecipeError(message, place=Place(path, at, 1), hint=f"as in: 1. {SUM}: A = x, …")
        parts = (part.partition("=") for part in _split(found["given"]))
        given = {name.strip(): value.strip() for name, equals, value in parts if equals}
        letters = _PARTS[found["method"]]
        m = _quotient(given.get("M", ""))
        if any(letter not in given for letter in letters) or (m is None and found["method"] != NONE):
            wanted = ", ".join([*letters, *(["M"] if found["method"] != NONE else [])])
            raise RecipeError(f"a run of {found['method']} has {wanted}", place=Place(path, at, 1))
        half = "save as float16" in found["given"]
        result = found["result"].strip()
        if result in seen:
            raise RecipeError(f"two runs make {result}", place=Place(path, at, 1), hint="rename one of the results")
        seen.add(result)
        models = tuple(given[letter] for letter in letters)
        yield Run(found["method"], models, m if found["method"] != NONE else None, half, result)


def _split(given: str) -> list[str]:
    """At the commas before the next letter or option: file names may hold commas themselves."""
    return re.split(r", (?=[BCM] = |save as float16$)", given)


def _quotient(text: str) -> Fraction | None:
    over, slash, under = text.partition("/")
    first, second = number(over), number(under) if slash else Fraction(1)
    return None if first is None or not second else first / second


def _lines(text: str, path: str) -> Iterator[tuple[int, str]]:
    lines = text.splitlines()
    if len(lines) > MOST_LINES:
        raise RecipeError(f"the file has more than {MOST_LINES:,} lines", place=Place(path))
    for at, line in enumerate(lines, 1):
        if line.strip():
            yield at, line.strip()


def _boarded(text: str, path: str, draft: Draft) -> Iterator[Run]:
    variables: dict[str, str] = {}
    results: set[str] = set()
    count = 0
    for at, line in _lines(text, path):
        found = _BOARD.fullmatch(line.partition("#")[0].strip())
        if line.startswith("#"):
            continue
        if found is None:
            message = f"this is no merge: {one_line(line)[:80]}"
            raise RecipeError(message, place=Place(path, at, 1), hint="O = A + B, 0.3")
        name, (sum_, *rest) = found["result"], [part.strip() for part in found["rest"].split(",")]
        models = tuple(variables.get(part.strip(), part.strip()) for part in _PLUS.split(sum_))
        if _VARIABLE.fullmatch(name) and len(models) == 1 and not _is_sum(found["rest"]):
            variables[name] = models[0]  # what follows the comma is a note
            continue
        unmade = next((model for model in models if _VARIABLE.fullmatch(model) and model not in results), None)
        if unmade is not None:
            hint = f"{unmade} = file.ckpt"
            raise RecipeError(f"{unmade} is made by no earlier line", place=Place(path, at, 1), hint=hint)
        m = _quotient(rest[0]) if rest else None
        if len(models) not in (2, 3) or m is None:
            raise RecipeError(
                "a merge is O = A + B, M or O = A + B + C, M", place=Place(path, at, 1), hint="M is a number, as 0.3"
            )
        flags = [flag.lower() for flag in rest[1:] if flag]
        if "sigmoid" in flags:
            m = m * m * (3 - 2 * m)
            draft.lose(f"line {at}: Sigmoid is the weighted sum with M·M·(3 − 2M) = {spelled(m)}")
        for flag in flags:
            if flag not in _FLAGS or flag == "prune":
                draft.lose(f"line {at}: {one_line(flag)} is not imported")
        count += 1
        result = f"__O{count}__" if name in ("O", f"__O{count}__") else name
        variables[f"__O{count}__"] = result
        results.add(result)
        yield Run(ADD if len(models) == 3 else SUM, models, m, bool({"fp16", "half"} & set(flags)), result)
