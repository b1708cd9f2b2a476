"""What shells are offered: by click's own protocol, and in a real bash."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli_models import RECIPE
from support.commands import run


def offered(words: str, cwd: Path) -> list[str]:
    """The completions of the last word, which may be begun, as bash would ask for them."""
    given = ["mergeflow", *words.split(" ")]
    environment = os.environ | {
        "_MERGEFLOW_COMPLETE": "bash_complete",
        "COMP_WORDS": "\n".join(given),
        "COMP_CWORD": str(len(given) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-m", "mergeflow"], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert not done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("bui", ["plain,build"]),
        ("build out/", ["file,out/", "plain,out/lewd.safetensors", "plain,out/half.safetensors"]),
        ("build other.yaml ", ["file,", "plain,x-{s}.safetensors"]),
        ("build --set ", ["plain,m="]),
        ("build other.yaml --set k.", ["plain,k.unet="]),
        ("plan --source ", ["plain,a=", "plain,b=", "plain,c="]),
        ("export --to ", ["plain,mergekit", "plain,a1111-steps", "plain,text"]),
        ("methods ties", ["plain,ties", "plain,ties_trim"]),
        ("arch sdx", ["plain,sdxl", "plain,sdxl-refiner"]),
        ("build broken.yaml ", ["file,"]),
    ],
)
def test_completions(folder: Path, words: str, found: list[str]) -> None:
    (folder / "other.yaml").write_text(
        "mergeflow: 1\nsources: { a: a.safetensors }\nparams: { s: { sweep: [1, 2] }, k: { default: 0, unet: 1 } }\n"
        "outputs: { 'x-{s}.safetensors': a }\n"
    )
    (folder / "broken.yaml").write_text("mergeflow: 1\noutputs: [")
    assert offered(words, folder) == found


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_asks_the_command(shell: str) -> None:
    assert f"_MERGEFLOW_COMPLETE={shell}_complete" in run("completion", shell).output


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_in_bash(folder: Path) -> None:
    assert "out/lewd" in RECIPE
    (folder / "mergeflow").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mergeflow "$@"\n')
    (folder / "mergeflow").chmod(0o755)
    script = (
        "source <(mergeflow completion bash)\nCOMP_WORDS=(mergeflow build out/l)\nCOMP_CWORD=2\n"
        "compopt() { :; }\n_mergeflow_completion mergeflow\nprintf '%s\\n' \"${COMPREPLY[@]}\"\n"
    )
    environment = os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["out/lewd.safetensors"], done.stderr
