"""What a person wrote: recipes read into frozen values, with the place of everything for later errors."""

from __future__ import annotations

from mergeflow.recipe.command import from_command, recipe_text
from mergeflow.recipe.expression import (
    Call,
    Comparison,
    Expression,
    Instr,
    parse,
    parse_comparison,
    parse_value,
    spell,
)
from mergeflow.recipe.load import find_recipe, load, loads
from mergeflow.recipe.model import BlockList, Options, Output, Param, ProfileEntry, Recipe, Source, Step
from mergeflow.recipe.schema import schema

__all__ = [
    "BlockList",
    "Call",
    "Comparison",
    "Expression",
    "Instr",
    "Options",
    "Output",
    "Param",
    "ProfileEntry",
    "Recipe",
    "Source",
    "Step",
    "find_recipe",
    "from_command",
    "load",
    "loads",
    "parse",
    "parse_comparison",
    "parse_value",
    "recipe_text",
    "schema",
    "spell",
]
