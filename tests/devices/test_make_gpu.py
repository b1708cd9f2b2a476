"""`make gpu` where it cannot run: one line, and what would help."""

from __future__ import annotations

from pathlib import Path
from subprocess import CompletedProcess

import pytest

from bench import gpu


@pytest.mark.parametrize(
    ("why", "card", "said"),
    [
        ("it was built without CUDA", False, "(it was built without CUDA): nothing was run (`mergeflow devices` shows"),
        ("it was built without CUDA", True, "there is a card, for a build with CUDA: "),
        ("no driver or no card answers (too old)", True, "(no driver or no card answers (too old)): nothing was run"),
    ],
)
def test_one_line_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], why: str, card: bool, said: str
) -> None:
    monkeypatch.setattr(gpu.subprocess, "run", lambda command, **more: CompletedProcess(command, 0, f"{why}\n"))
    monkeypatch.setattr(gpu, "driver_is_there", lambda: card)
    assert gpu.main([]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("no CUDA device that torch can use (")
    assert said in line
    assert ("pip install --force-reinstall torch==" in line) == (card and "without" in why)


def test_rows_that_are_not_the_cards_say_so(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    lines = ["out.safetensors: 1 of 1", "warning: A (cuda:0) gives other bytes than the CPU for x: it is not used", ""]
    (tmp_path / "scratch" / "gpu.log").write_text("\n".join(lines))
    assert gpu.fallen_back(tmp_path) == [lines[1]]
