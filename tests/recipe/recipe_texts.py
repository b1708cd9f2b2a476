"""Recipes for the tests, and how an error is caught from one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mergeflow.errors import MergeflowError, RecipeError
from mergeflow.recipe import loads

SMALL = """\
mergeflow: 1
sources: { a: a.safetensors, b: b.safetensors, c: c.safetensors }
outputs:
  mix.safetensors: a + (b - c) * 0.3
"""

HEAD = "mergeflow: 1\n"


def answer(text: str) -> RecipeError:
    """The error that this recipe gives; it names a place and fits a screen."""
    with pytest.raises(RecipeError) as caught:
        loads(text, "mix.yaml")
    error = caught.value
    assert error.exit_code in (2, 4)
    assert error.place is not None
    assert error.place.file == "mix.yaml"
    assert len(str(error)) < 700
    assert "pydantic" not in str(error)
    return error


def attempt(read: Callable[..., object], *args: object) -> MergeflowError | None:
    """The error that reading gives, if it gives one; anything but ours is a bug and passes through."""
    try:
        read(*args)
    except MergeflowError as error:
        return error
    return None


def check(text: str, place: str, message: str, hint: str = "") -> None:
    """`place` is line:column."""
    error = answer(text)
    assert message in error.message
    assert hint in error.hint
    assert str(error.place) == f"mix.yaml:{place}"
