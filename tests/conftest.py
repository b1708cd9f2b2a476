"""For all tests: properties are tried on the same examples everywhere, and no test sees the user's own caches, models
and tokens."""

from __future__ import annotations

import signal
from typing import Any

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

# In the background of a shell interrupts are ignored, and every process that a test starts inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _own_caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERGEFLOW_MEMO", str(tmp_path_factory.getbasetemp() / "memo"))
    home = tmp_path_factory.getbasetemp() / "home"
    monkeypatch.setenv("HF_HOME", str(home / "huggingface"))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    monkeypatch.setenv("MERGEFLOW_DOWNLOADS", str(home / "downloads"))
    for name in ("MERGEFLOW_CACHE", "MERGEFLOW_MODELS", "HF_HUB_CACHE", "HF_TOKEN", "HF_TOKEN_PATH", "CIVITAI_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--verify-outputs", action="store_true", help="check each output that a test builds as `mergeflow verify` does"
    )


@pytest.fixture(autouse=True)
def _verified(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --verify-outputs: whatever a test builds in this process is accepted by verify as soon as it is there."""
    if not request.config.getoption("--verify-outputs"):
        return
    from mergeflow.build.project import Project
    from mergeflow.build.verification import check
    from mergeflow.events import silent

    build = Project.build

    def build_and_verify(self: Project, *given: Any, **named: Any) -> Any:
        result = build(self, *given, **named)
        for output in result.outputs:
            if output.built and output.error is None:
                verdict = check(output.target, {}, silent)
                assert verdict.verdict == "ok", verdict
        return result

    monkeypatch.setattr(Project, "build", build_and_verify)
