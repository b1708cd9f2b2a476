"""Three models with the names and, made narrow, the shapes of Stable Diffusion 1.5."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [p for p in (str(ROOT), str(ROOT / "tests")) if p not in sys.path]  # `bench` is a folder there


@pytest.fixture(scope="session")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a, b and c.safetensors of 8.6 MB."""
    from bench import layout

    folder = tmp_path_factory.mktemp("sd15")
    layout.main([str(folder), "--layout", "sd15", "--models", "3", "--shrink", "16"])
    for file in folder.glob("*.safetensors"):
        file.rename(folder / f"{file.stem[-1].lower()}.safetensors")
    return folder
