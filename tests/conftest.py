"""For all tests: properties are tried on the same examples everywhere, and no test sees the user's own caches."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "mergeflow",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("mergeflow")


@pytest.fixture(autouse=True)
def _own_caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERGEFLOW_MEMO", str(tmp_path_factory.getbasetemp() / "memo"))
    monkeypatch.delenv("MERGEFLOW_CACHE", raising=False)
