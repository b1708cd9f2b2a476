from __future__ import annotations

from pathlib import Path

import pytest
from check_models import write_sd15


@pytest.fixture(scope="session")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A, B and C share a base; `stranger` was trained apart from them. Not to be written to."""
    folder = tmp_path_factory.mktemp("sd15")
    files = {letter: write_sd15(folder / f"{letter}.safetensors", letter) for letter in "ABC"}
    return {**files, "stranger": write_sd15(folder / "stranger.safetensors", "A", seed=1)}
