"""The command as a process: streams, signals, and what it costs to start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_models import write_model

from mergeflow.cli.report import Screen
from mergeflow.events import OutputDone, PhaseEnded, PhaseStarted, Progressed, Warned

COMMAND = [sys.executable, "-W", "error", "-m", "mergeflow"]
IMPORTED = """
import sys
from mergeflow.cli.main import cli
try:
    cli.main({arguments!r})
except SystemExit as stop:
    assert not stop.code, stop.code
print(*sorted({{name.partition(".")[0] for name in sys.modules}}))
"""


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, **environment},
    )


def imported(*arguments: str) -> set[str]:
    code = IMPORTED.format(arguments=list(arguments))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, encoding="utf-8")
    return set(run.stdout.splitlines()[-1].split())


def test_exit_codes_reach_the_shell(folder: Path) -> None:
    process = start("build", "nope.yaml")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 4
    assert stderr == "mergeflow: error: there is no recipe nope.yaml\n"


def test_nothing_is_imported_that_is_not_needed(folder: Path) -> None:
    assert not imported("--version") & {"torch", "rich", "networkx", "pydantic", "numpy", "yaml"}
    assert not imported("plan") & {"torch", "rich"}
    assert not imported("explain") & {"torch", "rich"}
    assert not imported("build") & {"torch", "rich"}  # sums are compiled; they can do without
    assert not imported("build") & {"torch", "rich", "networkx", "pydantic", "numpy"}


def test_streams_that_know_no_minus_sign_do_not_stop_it(folder: Path) -> None:
    process = start("plan", PYTHONIOENCODING="latin-1")
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "0.3" in stdout


@pytest.mark.skipif(os.name == "nt", reason="no signals of that kind there")
@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_an_interrupted_build_leaves_the_old_output_and_nothing_else(
    folder: Path, number: signal.Signals, exit_code: int
) -> None:
    for seed, name in enumerate("abc"):
        write_model(folder / f"{name}.safetensors", seed, 1 << 24)
    recipe = "mergeflow: 1\nsources: { a: a.safetensors, b: b.safetensors, c: c.safetensors }\n"
    steps = "\n".join(f"  s{i}: {f's{i - 1}' if i else 'a'} * 0.5 + b * 0.5" for i in range(2))
    text = f"{recipe}steps:\n{steps}\noutputs: {{ out/mix.safetensors: {{ from: s1, dtype: float32 }} }}\n"
    Path("recipe.yaml").write_text(text, encoding="utf-8")
    old = Path("out/mix.safetensors")
    old.parent.mkdir()
    old.write_bytes(b"the old output")
    process = start("build", "--force", "-j", "1")
    deadline = time.monotonic() + 60
    while not list(old.parent.glob(".*.part")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == exit_code, stderr
    assert "Traceback" not in stderr
    assert [p.name for p in old.parent.iterdir()] == ["mix.safetensors"]
    assert old.read_bytes() == b"the old output"


@pytest.mark.skipif(os.name == "nt", reason="pipes end differently there")
def test_a_reader_that_goes_away_is_no_error(folder: Path) -> None:
    process = start("schema")
    assert process.stdout is not None
    process.stdout.close()
    process.wait(timeout=60)
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()


def test_the_screen_counts_and_keeps_quiet_in_between(capsys: pytest.CaptureFixture[str]) -> None:
    with Screen() as screen:
        screen(PhaseStarted("hashing", "a", 3_000_000_000))
        for _ in range(1000):
            screen(Progressed(3_000_000))
        screen(PhaseEnded("hashing", "a"))
        screen(Warned("look out"))
        screen(Warned("look out"))
        screen(PhaseStarted("merging", "o.safetensors", 10))
        screen(PhaseEnded("merging", "o.safetensors"))
        screen(OutputDone("o.safetensors", True, "it is not there", 10))
        screen(OutputDone("p.safetensors", False, "it is up to date", 10))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].split() == ["hashed", "3.0", "GB", "0.0", "s", "a"]
    assert lines[1] == "warning: look out"
    assert lines[2].endswith("o.safetensors: it is not there")
    assert len(lines) == 3


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo terminal")
@pytest.mark.parametrize("no_color", ["", "1"])
def test_on_a_terminal_a_line_moves_and_goes_away_again(folder: Path, no_color: str) -> None:
    import pty

    for seed, name in enumerate("abc"):
        write_model(folder / f"{name}.safetensors", seed, 1 << 23)
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "NO_COLOR": no_color}
    process = subprocess.Popen([*COMMAND, "plan"], stdout=subprocess.PIPE, stderr=theirs, env=environment)
    os.close(theirs)
    seen = b""
    try:
        while chunk := os.read(ours, 65536):
            seen += chunk
    except OSError:
        pass
    os.close(ours)
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    text = seen.decode(errors="replace")
    assert "hashing a" in text
    assert "\x1b[?25h" in text.split("\x1b[?25l")[-1]  # the cursor is shown again
    assert ("\x1b[36m" in text) == (not no_color)
    assert b"\x1b" not in stdout
