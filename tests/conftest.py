"""For all tests: properties are tried on the same examples everywhere, and no test sees the user's own caches, models
and tokens."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from support.verified import Verified

VERIFIED: pytest.StashKey[Verified] = pytest.StashKey()
FOLDER = pytest.StashKey[Path]()


@pytest.fixture(autouse=True)
def _own_caches(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    request.config.stash[FOLDER] = tmp_path_factory.getbasetemp()
    monkeypatch.setenv("MERGEFLOW_MEMO", str(tmp_path_factory.getbasetemp() / "memo"))
    home = tmp_path_factory.getbasetemp() / "home"
    monkeypatch.setenv("HF_HOME", str(home / "huggingface"))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    monkeypatch.setenv("MERGEFLOW_DOWNLOADS", str(home / "downloads"))
    for name in ("MERGEFLOW_CACHE", "MERGEFLOW_MODELS", "HF_HUB_CACHE", "HF_TOKEN", "HF_TOKEN_PATH", "CIVITAI_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--verify-outputs", action="store_true", help="what tests build is accepted by `mergeflow verify`")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--verify-outputs"):
        from support.verified import Verified

        config.stash[VERIFIED] = Verified()
        config.stash[VERIFIED].watch_builds()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """When all fixtures are gone, and with them what they had put in other places."""
    given: dict[str, Any] = getattr(item, "funcargs", {})
    own = given.get("tmp_path")
    yield
    if (verified := item.config.stash.get(VERIFIED, None)) is None:
        return
    if own is not None:
        if item.get_closest_marker("forges"):
            verified.leave_out(own)
        verified.check_below(own)
    if nextitem is None:
        verified.check_below(item.config.stash[FOLDER])


def pytest_sessionfinish(session: pytest.Session) -> None:
    verified = session.config.stash.get(VERIFIED, None)
    if verified is not None and hasattr(session.config, "workeroutput"):  # of pytest-xdist, for what runs the workers
        session.config.workeroutput["verified"] = verified.checked


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    if (verified := node.config.stash.get(VERIFIED, None)) is not None:
        verified.checked += getattr(node, "workeroutput", {}).get("verified", 0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if (verified := config.stash.get(VERIFIED, None)) is not None:
        terminalreporter.write_line(f"{verified.checked:,} outputs were accepted by mergeflow verify")
