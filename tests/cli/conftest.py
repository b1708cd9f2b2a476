from __future__ import annotations

from pathlib import Path

import pytest
from cli_models import folder_with_recipe


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three models and a recipe; the current one. Memo and records are its own."""
    monkeypatch.setenv("MERGEFLOW_MEMO", str(tmp_path / "memo"))
    work = tmp_path / "work folder"
    work.mkdir()
    monkeypatch.chdir(work)
    return folder_with_recipe(work)
