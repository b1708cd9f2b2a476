"""Whole models that the tests of this folder share."""

from __future__ import annotations

import pytest
from kind_models import Model, sd1


@pytest.fixture(scope="session")
def whole() -> dict[str, Model]:
    return {letter: sd1(letter) for letter in "AB"}
