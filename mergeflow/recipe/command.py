"""`mergeflow merge EXPRESSION name=value … -o FILE` as a recipe's text: read like any other, fit to be saved."""

from __future__ import annotations

import re
from collections.abc import Mapping

from mergeflow.recipe import nodes
from mergeflow.recipe.expression import parse
from mergeflow.recipe.fields import line_of_text, name_of, path_text
from mergeflow.recipe.load import loads
from mergeflow.recipe.model import Recipe
from mergeflow.recipe.overrides import typed
from mergeflow.recipe.places import SourceText
from mergeflow.recipe.tokens import is_number

FILE = "command line"
MAX_PATH = 1000  # YAML keys have at most 1024
_PLAIN = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./ +*()-]*(?<! )")
_ALMOST = re.compile(r"\s*[-+]?[0-9.]+\s*%\s*|\s*[-+]?[0-9]+,[0-9]+\s*")  # 30% and 0,3 are no files
_RANGE = re.compile(r"-?[0-9.]+(?::-?[0-9.]+){1,2}")


def from_command(expr: str, names: Mapping[str, str], output: str, dtype: str | None = None) -> Recipe:
    """The recipe of one merge: numbers become params, everything else sources."""
    parse(expr, SourceText("expression", expr))
    return loads(recipe_text(expr, names, output, dtype), FILE)


def recipe_text(expr: str, names: Mapping[str, str], output: str, dtype: str | None = None) -> str:
    """The YAML text of that recipe."""
    params: list[str] = []
    sources: list[str] = []
    for name, value in names.items():
        node = typed(FILE, name, value)
        line = f"  {quote(name_of(_argument(name), 'a name'))}: {quote(path_text(node, name))}"
        if _ALMOST.fullmatch(value):
            parse(value, node)  # which says what was meant
        if _RANGE.fullmatch(value) and not is_number(value):
            raise node.error("merge makes one file, not a range of numbers", "a recipe does: { sweep: [0, 0.5] }")
        (params if is_number(value) else sources).append(line)
    lines = ["mergeflow: 1"]
    if sources:
        lines += ["sources:", *sources]
    if params:
        lines += ["params:", *params]
    path = path_text(_argument(output), "the output")
    if len(path) > MAX_PATH:
        raise _argument(output).error(f"the path of the output is longer than {MAX_PATH} characters")
    if dtype is None:
        lines += ["outputs:", f"  {quote(path)}: {quote_expression(expr, 4)}"]
    else:
        lines += [
            "outputs:",
            f"  {quote(path)}:",
            f"    from: {quote_expression(expr, 6)}",
            f"    dtype: {quote(line_of_text(_argument(dtype), 'the dtype'))}",
        ]
    return "\n".join(lines) + "\n"


def quote(text: str) -> str:
    """A text of one line as a YAML scalar."""
    if _PLAIN.fullmatch(text) and text.lower() not in ("null", "true", "false", "yes", "no", "on", "off", "y", "n"):
        return text
    return "'" + text.replace("'", "''") + "'"


def quote_expression(expr: str, indent: int) -> str:
    """An expression as a YAML value; one of several lines keeps them."""
    lines = expr.strip().splitlines()
    if len(lines) == 1:
        return quote(lines[0])
    return "|-\n" + "\n".join(" " * indent + line.strip() for line in lines)


def _argument(text: str) -> nodes.Scalar:
    return nodes.Scalar(SourceText(FILE, text), 0, len(text), value=text, style="typed")
