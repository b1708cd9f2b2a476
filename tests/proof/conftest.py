from __future__ import annotations

from pathlib import Path

import pytest
from proof_models import write_model


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three small models in the current folder; memo and records are the test's own."""
    monkeypatch.setenv("MERGEFLOW_MEMO", str(tmp_path / "memo"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    for seed, name in enumerate("abc"):
        write_model(work / f"{name}.safetensors", seed)
    return work
