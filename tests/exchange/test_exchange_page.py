"""docs/exchange.md: what its blocks show is what the command says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from mergeflow.cli.main import cli
from mergeflow.exchange.mergekit_methods import METHODS

PAGE = (Path(__file__).resolve().parents[2] / "docs/exchange.md").read_text(encoding="utf-8")
FILES = {
    "linear.yml": "merge_method: linear\nmodels: [{ model: a.safetensors, parameters: { weight: 1 } }]\n",
    "mix.yaml": "mergeflow: 1\nsources: { a: a.safetensors, b: b.safetensors, c: c.safetensors }\n"
    "outputs: { mix.safetensors: a + (b - c) * 0.3 }\n",
}


@pytest.mark.parametrize("block", re.findall(r"^```console\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
def test_the_commands_say_what_is_shown(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    command, _, said = block.removeprefix("$ mergeflow ").partition("\n")
    found = CliRunner().invoke(cli, shlex.split(command))
    assert found.exit_code == 0, found.output
    assert found.stderr + found.stdout == said


def test_the_methods_of_the_page_are_imported() -> None:
    for name in ("linear", "task_arithmetic", "passthrough", "breadcrumbs", "slerp"):
        assert name in METHODS
        assert f"`{name}`" in PAGE
