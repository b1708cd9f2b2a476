"""What is shown while a plan takes its time, and when nothing is."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
import pytest
from support.builds import HEAD, plan, project
from support.checkpoints import weights, write

from mergeflow.cli import report
from mergeflow.cli.report import Screen
from mergeflow.errors import MergeflowError
from mergeflow.events import Event, PhaseEnded, PhaseStarted, Planning

RECIPE = HEAD + "sources: { a: a.safetensors, b: b.safetensors }\nparams: { m: { sweep: [0.1, 0.2, 0.3] } }\n"
OUTPUTS = 'outputs: { "o-{m}.safetensors": a + (b - a)*m }\n'


class Terminal(io.StringIO):
    """A stream on which lines can be drawn over."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    stream = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(report, "PATIENCE", 0.0)
    return stream


def wait_until(true: Callable[[], bool]) -> None:
    for _ in range(500):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come")


def models(folder: Path) -> None:
    for seed, name in enumerate("ab"):
        write(folder / f"{name}.safetensors", {"w": weights(np.random.default_rng(seed), "F16", (5,))})


def test_outputs_are_counted_as_they_are_planned(tmp_path: Path) -> None:
    models(tmp_path)
    heard: list[Event] = []
    with project(tmp_path, RECIPE + OUTPUTS, heard.append) as opened:
        opened.plan()
        every = [event for event in heard if isinstance(event, Planning)]
        opened.plan(["o-0.2.safetensors"])
    assert every == [Planning(0, 3), Planning(1, 3), Planning(2, 3), Planning(3, 3)]
    assert [e for e in heard if isinstance(e, Planning)][4:] == [Planning(0, 1), Planning(1, 1)]


@pytest.mark.parametrize(
    ("total", "title", "count"), [(51, "planning 51 outputs", "20/51"), (1, "planning 1 output", "")]
)
def test_a_line_moves_once_patience_is_lost(terminal: Terminal, total: int, title: str, count: str) -> None:
    with redirect_stderr(terminal), Screen() as screen:
        screen(Planning(0, total))
        wait_until(lambda: title in terminal.getvalue())
        if count:
            screen(Planning(20, total))
            wait_until(lambda: count in terminal.getvalue())
        assert "bytes" not in terminal.getvalue()
        screen(Planning(total, total))
        before = terminal.getvalue()
        time.sleep(0.3)
        assert terminal.getvalue() == before
    assert "\x1b[?25h" in before.split("\x1b[?25l")[-1]  # the cursor is shown again


def test_other_phases_take_the_line(terminal: Terminal) -> None:
    with redirect_stderr(terminal), Screen() as screen:
        screen(Planning(0, 2))
        wait_until(lambda: "planning" in terminal.getvalue())
        screen(PhaseStarted("hashing", "an output", 1_000_000_000))
        wait_until(lambda: "hashing an output" in terminal.getvalue())
        screen(PhaseEnded("hashing", "an output"))
        screen(Planning(2, 2))


def test_quick_plans_and_pipes_are_quiet(tmp_path: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    models(tmp_path)
    monkeypatch.setattr(report, "PATIENCE", 60.0)
    with redirect_stderr(terminal), Screen() as screen, project(tmp_path, RECIPE + OUTPUTS, screen) as opened:
        opened.plan()
    assert "planning" not in terminal.getvalue()
    monkeypatch.setattr(report, "PATIENCE", 0.0)
    pipe = io.StringIO()
    with redirect_stderr(pipe), Screen() as screen:
        screen(Planning(0, 3))
        time.sleep(0.05)
        screen(Planning(3, 3))
    assert pipe.getvalue() == ""


def test_an_error_takes_the_line_away(tmp_path: Path, terminal: Terminal) -> None:
    models(tmp_path)
    write(tmp_path / "b.safetensors", {"w": weights(np.random.default_rng(0), "F16", (6,))})
    with redirect_stderr(terminal), pytest.raises(MergeflowError, match="shape"):
        _planned(tmp_path, terminal)
    before = terminal.getvalue()
    time.sleep(0.2)
    assert terminal.getvalue() == before


def _planned(folder: Path, terminal: Terminal) -> None:
    with Screen() as screen:
        screen(Planning(0, 1))
        wait_until(lambda: "planning" in terminal.getvalue())
        plan(folder, RECIPE + OUTPUTS)
